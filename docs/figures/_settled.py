"""How far the prediction of each layer is from the last one, by what is predicted."""

from functools import cache

import numpy as np
from _runs import texts

import workbench as wb
from workbench.analysis.statistics import Interval

N, LENGTH = 6, 4
KINDS = {
    "a digit": str.isdigit,
    "a name": str.istitle,
    "punctuation": lambda text: not text.isalnum() and len(text) == 1,
}


@cache
def measure(seed: str = "fresh") -> list[Interval]:
    """For each kind of token, by layer (figure layer): the share that is settled there, and KL from the end in nats."""
    found = []
    for is_one in KINDS.values():
        values, of = [], []
        for number, trace in enumerate(texts(N, LENGTH, seed, "lens")):
            kl, depth = wb.logit_lens(trace)["kl"].values, wb.settle_depth(trace).values
            settled = depth <= np.arange(len(kl))[:, None]
            for span in trace.spans:
                if span.channel == "analysis":
                    at = [p for p in range(span.content_start, span.content_stop) if is_one(trace.pieces[p].strip())]
                    before = [p - 1 for p in at]  # a token is predicted at the one before
                    values.append(np.stack([settled[:, before].T, kl[:, before].T], 1))
                    of += [number] * len(at)
        found.append(wb.statistics.mean(np.concatenate(values), of))
    return found
