"""Is the answer in the residual stream before it is said? A probe on other problems, at the ends of earlier steps.

What is claimed was seen on the problems of the seed "figures"; what is drawn are others.
"""

import numpy as np
import xarray as xr
from _probes import FAMILIES, LENGTH, PLACES, RECORD, N, measure, scores
from _runs import Sequence, main, read

import workbench as wb
from workbench.figures import WIDTHS, Figure, beside, line

__all__ = ["FAMILIES", "LENGTH", "PLACES", "RECORD", "N", "draw", "measure", "scores"]


def draw() -> tuple[Figure, Sequence[wb.Trace]]:
    panels, traces = [], []
    for family in FAMILIES:
        found = [measure(family, place) for place in PLACES]
        value, low, high = (np.stack([each[name] for each in found]) for name in ("accuracy", "low", "high"))
        null = max(float(each["null"].max()) for each in found)
        coords = {"read off": list(PLACES), "layer": found[0]["layer"].values}
        attrs = {"long_name": "accuracy of a linear probe", "units": "1"}
        accuracy = xr.DataArray(value, coords, ("read off", "layer"), attrs=attrs)
        panels.append(line(accuracy, by="read off", low=low, high=high, null=null, title=family))
        traces += [one.trace for one in read(family, N, LENGTH, RECORD, "fresh")]
    figure = beside(
        *panels,
        title="Nearly half of the next hops can be read off a step before they are said; no next value can",
        note=f"n = {N} held-out problems of length {LENGTH} a family, five folds of problems; 95 % intervals (Wilson). "
        "The dashed line is the highest 95th percentile of shuffled answers.",
        width=WIDTHS["page"],
        height=75,
    )
    return figure, traces


if __name__ == "__main__":
    main(__file__, draw)
