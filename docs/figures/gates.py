"""What sinks and far edges are worth: would pocket still write the solution, word by word, without them?

One pass tells: greedy text is the text that was read if, and only if, each of its tokens is the likeliest in its place.
"""

import numpy as np
import xarray as xr
from _gates import LENGTH, SEED, SETS, N, measure
from _runs import Sequence, main, texts

import workbench as wb
from workbench.figures import Figure, above, bars

__all__ = ["LENGTH", "SEED", "SETS", "N", "draw", "measure"]


def draw() -> tuple[Figure, Sequence[wb.Trace]]:
    found, sheets = measure(), []
    for name, label in (("written", "texts written word by word"), ("tokens", "tokens likeliest in their place")):
        sure = wb.statistics.mean(found[name].values)
        array = xr.DataArray(sure.value, {"set": list(SETS)}, "set", attrs={"long_name": "share"})
        sheets.append(bars(array, low=np.asarray(sure.low), high=np.asarray(sure.high), title=label, height=45))
    figure = above(
        *sheets,
        title="Sinks are gates: at the wrong tokens they harm more than if there were none",
        note=f"n = {found.sizes['problem']} held-out problems of length {LENGTH}, {N} a family; 95 % intervals over "
        "problems. Held: each head's sink at its mean over the text. Moved: sinks of other tokens of the text. Both "
        "leave it as much as before. Edges are cut in full layers: far ones reach beyond the window, near ones do not.",
    )
    return figure, texts(N, LENGTH, SEED)


if __name__ == "__main__":
    main(__file__, draw)
