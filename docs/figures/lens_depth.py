"""At which depth is the next token there? How far each layer's prediction is from the last, by what is predicted.

The title was chosen on the problems of the seed "figures"; what is drawn are others.
"""

import numpy as np
import xarray as xr
from _runs import Sequence, bounds, main, texts
from _settled import KINDS, LENGTH, N, measure

import workbench as wb
from workbench.figures import WIDTHS, Figure, beside, line

__all__ = ["KINDS", "draw", "measure"]


def draw() -> tuple[Figure, Sequence[wb.Trace]]:
    means, traces, panels = measure(), texts(N, LENGTH, "fresh", "lens"), []
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


if __name__ == "__main__":
    main(__file__, draw)
