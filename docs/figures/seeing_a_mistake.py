"""What does a model look at to see that it was wrong? Heads that carry it, and what has to be in sight."""

from dataclasses import replace

import xarray as xr
from _in_sight import FAMILIES, HIDDEN, N, measure, read
from _runs import Sequence, bounds, main

import workbench as wb
from workbench.figures import Figure, Panel, bars, heatmap

__all__ = ["FAMILIES", "HIDDEN", "N", "draw", "measure", "read"]


def draw() -> tuple[Figure, Sequence[wb.Trace]]:
    carried, waits = measure()
    panels: list[Panel] = []
    for family, rows in carried.items():
        many = xr.DataArray(rows.mean(0), dims=("layer", "head"), attrs={"long_name": "share of the gap"})
        sure = wb.statistics.max_t(rows) < 0.05
        [panel] = heatmap(many, marked=sure, marked_name="p < 0.05").panels
        panels.append(replace(panel, title=f"{family}: heads, patched one by one"))
    means = {family: wb.statistics.mean(rows) for family, rows in waits.items()}
    coords = {"family": list(means), "hidden": list(HIDDEN)}
    value, low, high = bounds(means.values())
    seen = xr.DataArray(value, coords, ("family", "hidden"), attrs={"long_name": "p of “. Wait”"})
    panels += bars(seen, by="family", low=low, high=high).panels
    figure = Figure(
        panels=panels,
        rows=(1, 1, 1.1),
        height=170,
        title="A wrong name is seen by looking at the token before it, a wrong number not by any one look",
        note=f"n = {N} held-out problems a family; a step that is written up to a wrong value. Above: what each head "
        "carries, at that token, of the logits of “.” against “,” (wrong value against right; rings: sign-flip test, "
        "max-T over 24 heads). Below: how likely “. Wait” is when that token does not see something; 95 % intervals.",
    )
    return figure, [trace for family in FAMILIES for _, trace in read(family)]


if __name__ == "__main__":
    main(__file__, draw)
