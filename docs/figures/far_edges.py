"""Which method finds a used step that is not the neighbour? True pairs against others that are as far apart.

What is claimed was seen on the problems of the seed "figures"; what is drawn are others.
"""

import xarray as xr
from _far_pairs import LENGTH, METHODS, SETS, measure, read, worked
from _runs import Sequence, bounds, main

import workbench as wb
from workbench.figures import Figure, bars

__all__ = ["LENGTH", "METHODS", "SETS", "draw", "measure", "read", "worked"]


def draw() -> tuple[Figure, Sequence[wb.Trace]]:
    made = measure()
    value, low, high = bounds([[made.auroc[m, f] for f in SETS] for m in METHODS])
    coords = {"method": list(METHODS), "family": list(SETS)}
    counts = "; ".join(f"{f}: {t} true pairs, {o} others, {SETS[f]} problems" for f, (t, o) in made.pairs.items())
    figure = bars(
        xr.DataArray(value, coords, ("method", "family"), attrs={"long_name": "AUROC among pairs as far apart"}),
        by="method",
        low=low,
        high=high,
        null=0.5,
        title="Attention and hiding find what is used and not near; receiver heads are not shown to",
        note=f"Steps that work something out, two and more apart. {counts}; held-out, of length {LENGTH}. 95 % "
        "intervals, cluster bootstrap over problems. In lists only a step that puts another right reaches so far back.",
    )
    return figure, made.traces


if __name__ == "__main__":
    main(__file__, draw)
