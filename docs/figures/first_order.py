"""Where attribution patching fails: its error where routes flip and where they do not, and with the routes held."""

import numpy as np
import xarray as xr
from _runs import Sequence, main
from _two_texts import FAMILIES, SITE, errors, measure, pairs

import workbench as wb
from workbench.figures import Figure, bars, beside, scatter

__all__ = ["draw", "errors", "measure", "pairs"]


def draw() -> tuple[Figure, Sequence[wb.Trace]]:
    found, traces = measure()
    sure, flips = errors(found), found["flips"].values > 0
    four = [[sure[name] for name in names] for names in (("flip", "held_flip"), ("same", "held_same"))]
    coords = {"place": ["other experts", "same experts"], "routes": ["as they are", "held"]}
    mean = xr.DataArray(np.array([[each[:3] for each in row] for row in four]), coords, ("place", "routes", "bound"))
    value, low, high = mean.transpose("bound", ...)
    figure = beside(
        scatter(
            found["exact"].assign_attrs(long_name="patched (share of the gap)"),
            found["line"].assign_attrs(long_name="to first order (share of the gap)"),
            groups=["other experts in the two texts" if flip else "same experts" for flip in flips],
        ),
        bars(value.assign_attrs(long_name="mean error (share of the gap)"), by="routes", low=low, high=high),
        title="Where routes flip, attribution patching errs; with the routes held it errs as much",
        note=f"n = {found.attrs['n']} pairs of held-out texts ({', '.join(FAMILIES)}) that differ in the value of one "
        f"step; {len(flips)} places of {SITE}, other experts at {flips.mean():.0%}. 95 % intervals, cluster bootstrap "
        "over pairs. Held: both texts use the experts of the one that is patched, in patching and to first order.",
    )
    return figure, traces


if __name__ == "__main__":
    main(__file__, draw)
