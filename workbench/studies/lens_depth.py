"""At which depth is the next token there? How far each layer's prediction is from the last, by what is predicted.

How far the prediction of each layer is from the last one, by what is predicted.
The title was chosen on the problems of the seed "figures"; what is drawn are others.
"""

from collections.abc import Sequence
from functools import cache

import numpy as np
import xarray as xr

import workbench as wb
from workbench.analysis.statistics import Interval
from workbench.figures import WIDTHS, Figure, beside, line
from workbench.studies.held_out import bounds, texts

N, LENGTH = 6, 4
KINDS = {
    "a digit": str.isdigit,
    "a name": str.istitle,
    "punctuation": lambda text: not text.isalnum() and len(text) == 1,
}


@cache
def measure(model: wb.Model, seed: str = "fresh") -> list[Interval]:
    """For each kind of token, by layer (figure layer): the share that is settled there, and KL from the end in nats."""
    found = []
    for is_one in KINDS.values():
        values, of = [], []
        for number, trace in enumerate(texts(model, N, LENGTH, seed, "lens")):
            kl, depth = wb.lens.logit_lens(trace)["kl"].values, wb.lens.prediction_depth(trace).values
            settled = depth <= np.arange(len(kl))[:, None]
            for span in trace.spans:
                if span.channel == "analysis":
                    at = [
                        p for p in range(span.content_start, span.content_stop) if is_one(trace.str_tokens[p].strip())
                    ]
                    before = [p - 1 for p in at]  # a token is predicted at the one before
                    values.append(np.stack([settled[:, before].T, kl[:, before].T], 1))
                    of += [number] * len(at)
        found.append(wb.statistics.mean_interval(np.concatenate(values), of))
    return found


def draw(model: wb.Model) -> tuple[Figure, Sequence[wb.Trace]]:
    """The figure, and the traces behind it."""
    means, traces, panels = measure(model), texts(model, N, LENGTH, "fresh", "lens"), []
    counts = [f"{m.n} of {m.n_clusters} texts" for m in means]
    value, low, high = bounds(means)
    coords = {"predicted": list(KINDS), "layer": np.arange(traces[0].config["n_layers"])}
    for number, (name, units) in enumerate((("share whose likeliest token stays", "1"), ("KL from the end", "nats"))):
        array = xr.DataArray(
            value[:, number], coords, ("predicted", "layer"), attrs={"long_name": name, "units": units}
        )
        panels.append(line(array, by="predicted", low=low[:, number], high=high[:, number]))
    figure = beside(
        *panels,
        title="Nine digits in ten are decided by layer 3; a quarter of the names only in the last layer",
        note=f"Logit lens on tokens of the analysis; n = {', '.join(counts)} in that order; 95 % intervals, cluster "
        "bootstrap over texts. Left: what is likeliest there stays so. The last layer is the model.",
        width=WIDTHS["page"],
        height=70,
    )
    return figure, traces
