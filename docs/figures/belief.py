"""When did it know? Made to answer after each step: is it the answer in the end, or what was written last?

The title was chosen on the problems of the seed "figures"; what is drawn are others.
"""

import numpy as np
import xarray as xr
from _belief import AROUND, FAMILIES, LENGTH, N, measure
from _runs import Sequence, main

import workbench as wb
from workbench.figures import Figure, line

__all__ = ["AROUND", "FAMILIES", "LENGTH", "N", "draw", "measure"]


def draw() -> tuple[Figure, Sequence[wb.Trace]]:
    share, _, traces = measure()
    what = ["the answer in the end", "what the last step says"]
    coords = {"what": what, "step": ("step", AROUND, {"long_name": "steps from the one that states the answer"})}
    figure = line(
        xr.DataArray(share.value, coords, ("what", "step"), attrs={"long_name": "share of belief", "units": "1"}),
        by="what",
        low=np.asarray(share.low),
        high=np.asarray(share.high),
        title="Made to answer early, pocket says what it wrote last",
        note=f"n = {share.n} of {N * len(FAMILIES)} held-out problems ({', '.join(FAMILIES)}; length {LENGTH}): those "
        f"in which only the last step has the value of the answer. Shares among the values of the last {len(AROUND)} "
        "steps. Bands: 95 % intervals over problems.",
    )
    return figure, traces


if __name__ == "__main__":
    main(__file__, draw)
