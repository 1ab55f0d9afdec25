"""Can it be made to take a step back, and kept from it? More and more of what wrong and right steps differ by."""

import numpy as np
import xarray as xr
from _runs import Sequence, main
from _steering import DIRECTIONS, FAMILIES, LAYER, RANDOM, SCALES, N, measure, read, unrelated, vector

import workbench as wb
from workbench.figures import Figure, beside, line

__all__ = ["DIRECTIONS", "FAMILIES", "LAYER", "RANDOM", "SCALES", "N", "draw", "measure", "read", "unrelated", "vector"]


def draw() -> tuple[Figure, Sequence[wb.Trace]]:
    mean = wb.statistics.mean(np.moveaxis(measure(), 2, 0))
    figures = []
    for f, family in enumerate(FAMILIES):
        for t, text in enumerate(("after a right step", "after a wrong step")):
            value, low, high = (getattr(mean, end)[f, t] for end in ("value", "low", "high"))
            scale = ("scale", SCALES, {"long_name": "times the difference"})
            curve = xr.DataArray(value, {"direction": list(DIRECTIONS), "scale": scale}, ("direction", "scale"))
            curve.attrs["long_name"] = "p of “. Wait”"
            figures.append(line(curve, by="direction", low=low, high=high, title=f"{family}, {text}"))
    sheet = beside(*figures)
    figure = Figure(
        panels=sheet.panels,
        columns=2,
        width=wb.figures.WIDTHS["page"],
        height=130,
        title="One direction makes pocket take back what is right, and keep what is wrong",
        note=f"n = {N} held-out problems a family, others than the {len(read(FAMILIES[0])) // 2} whose difference of "
        f"means it is; added at the last token of the step, after layer {LAYER}; all directions of one length. "
        f"Unrelated: mean of late less early and of high less low token ids; random: mean of {RANDOM}. Bands: 95 % "
        "intervals over problems.",
    )
    return figure, [trace for family in FAMILIES for trace in read(family)]


if __name__ == "__main__":
    main(__file__, draw)
