"""At which layer is the next token decided? Distance of each layer's logit-lens prediction from the final one.

By the kind of token that is predicted.
The title was chosen on the problems of the seed "figures"; the figure shows other problems.
"""

from collections.abc import Sequence
from functools import cache

import numpy as np
import xarray as xr

import workbench as wb
from workbench.analysis.statistics import Interval
from workbench.figures import WIDTHS, Figure, beside, line
from workbench.studies.held_out import bounds, chain_traces

N, LENGTH = 6, 4
KINDS = {
    "a digit": str.isdigit,
    "a name": str.istitle,
    "punctuation": lambda text: not text.isalnum() and len(text) == 1,
}


@cache
def measure(model: wb.Model, seed: str = "fresh") -> list[Interval]:
    """By kind of token, means (measure layer): the share whose prediction is final, and KL from the end in nats."""
    by_kind = []
    for is_kind in KINDS.values():
        values, text_numbers = [], []
        for number, trace in enumerate(chain_traces(model, N, LENGTH, seed, "lens")):
            kl, depth = wb.lens.logit_lens(trace)["kl"].values, wb.lens.prediction_depth(trace).values
            settled = depth <= np.arange(len(kl))[:, None]
            for span in trace.spans:
                if span.channel == "analysis":
                    content = range(span.content_start, span.content_stop)
                    # a token is predicted at the position before it
                    predicting = [p - 1 for p in content if is_kind(trace.str_tokens[p].strip())]
                    values.append(np.stack([settled[:, predicting].T, kl[:, predicting].T], 1))
                    text_numbers += [number] * len(predicting)
        by_kind.append(wb.statistics.mean_interval(np.concatenate(values), text_numbers))
    return by_kind


def draw(model: wb.Model) -> tuple[Figure, Sequence[wb.Trace]]:
    """The figure, and the traces behind it."""
    means, traces, panels = measure(model), chain_traces(model, N, LENGTH, "fresh", "lens"), []
    counts = [f"{m.n} of {m.n_clusters} texts" for m in means]
    value, low, high = bounds(means)
    coords = {"predicted": list(KINDS), "layer": np.arange(traces[0].config["n_layers"])}
    for number, (name, units) in enumerate((("share with the final prediction", "1"), ("KL from the end", "nats"))):
        array = xr.DataArray(
            value[:, number], coords, ("predicted", "layer"), attrs={"long_name": name, "units": units}
        )
        panels.append(line(array, by="predicted", low=low[:, number], high=high[:, number]))
    digits, names = value[0, 0], value[1, 0]  # by layer, the share whose prediction is final
    figure = beside(
        *panels,
        title=f"Nine in ten digits are decided by layer {int(np.argmax(digits >= 0.9))}; "
        f"{1 - names[-2]:.0%} of the names only in the last layer",
        note=f"Logit lens on tokens of the analysis; n = {', '.join(counts)} in the order of the legend; 95 % "
        "intervals, cluster bootstrap over texts. Left: the most likely token is final from that layer on. The last "
        "layer is the model's output.",
        width=WIDTHS["page"],
        height=70,
    )
    return figure, traces
