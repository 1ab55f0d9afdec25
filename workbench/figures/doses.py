"""The dose-response curve of a steering vector, beside random directions of the same length."""

import numpy as np
import xarray as xr

from workbench.checks import check_numbers, check_real, check_text, check_type
from workbench.errors import ArgumentError
from workbench.figures.arrays import labeled_panel
from workbench.figures.marks import NO_SERIES, Line, Mark, Rule
from workbench.figures.spec import WIDTHS, Axis, Figure

NEEDED = {"steered": ("scale",), "random": ("control", "scale"), "unrelated": ("contrast", "scale")}


def dose(
    effect: xr.Dataset,
    *,
    xlabel: str = "scale",
    ylabel: str = "metric",
    title: str = "",
    note: str = "",
    width: float = WIDTHS["text"],
    height: float | None = None,
) -> Figure:
    """How a metric changes with the scale of a steering vector: its curve, and the band of random directions.

    The band goes from the smallest to the largest value of the random directions at each scale; the line in it is their
    median. Each unrelated vector is a dashed line, and the metric without steering a thin one. The note has the slope,
    its p-value and the number of random directions.

    Args:
        effect: the result of `wb.steering.steering_effect`
        xlabel, ylabel: the labels of the axes; `ylabel` is the name of the metric
        title, note: the texts above and below
        width, height: in mm

    Raises:
        ArgumentError: the Dataset is not the result of `wb.steering.steering_effect`; ArgumentTypeError if its
            values are not numbers

    >>> scale = {"scale": [-1.0, 0.0, 1.0]}
    >>> effect = xr.Dataset(
    ...     {
    ...         "steered": ("scale", [0.1, 0.2, 0.6], {"plain": 0.2, "slope": 0.25, "p": 0.01}),
    ...         "random": (("control", "scale"), [[0.2, 0.2, 0.1], [0.1, 0.2, 0.3]]),
    ...         "unrelated": (("contrast", "scale"), [[0.3, 0.2, 0.2]]),
    ...     },
    ...     scale,
    ... )
    >>> figure = dose(effect, ylabel="probability of 'Wait'")
    >>> [mark.name for mark in figure.panels[0].marks if mark.name]
    ['random directions', 'unrelated vector', 'steered']
    >>> figure.note
    'Band: range of 2 random directions. Slope 0.25 per scale, p = 0.01.'
    """
    check_type("figures.dose", effect, xr.Dataset, "wb.steering.steering_effect")
    if any(name not in effect or {*effect[name].dims} != {*dims} for name, dims in NEEDED.items()):
        raise ArgumentError(
            "figures.dose needs the result of wb.steering.steering_effect, with steered (scale), random (control "
            f"scale) and unrelated (contrast scale); got {', '.join(map(str, effect)) or 'no variable'}."
        )
    x = check_numbers("the scale", effect["scale"].values)
    order = np.argsort(x, kind="stable")
    steered, random, unrelated = (
        check_numbers(name, effect[name].transpose(*dims).values)[..., order] for name, dims in NEEDED.items()
    )
    found = {
        name: check_real(f"attrs[{name!r}] of steered", effect["steered"].attrs[name])
        for name in ("plain", "slope", "p")
        if name in effect["steered"].attrs
    }
    marks: list[Mark] = []
    if np.isfinite(found.get("plain", np.nan)):
        marks.append(Rule(at=found["plain"], text="without steering"))
    if len(random):
        low, high = random.min(0), random.max(0)
        marks.append(
            Line(x=x[order], y=np.median(random, 0), low=low, high=high, name="random directions", color=NO_SERIES)
        )
    for number, each in enumerate(unrelated):
        name = "unrelated vector" if number == 0 else ""
        marks.append(Line(x=x[order], y=each, name=name, color=1, dashed=True))
    marks.append(Line(x=x[order], y=steered, name="steered", color=0))
    band = f"Band: range of {len(random)} random directions." if len(random) else ""
    slope = "".join(
        [
            f" Slope {found['slope']:.3g} per scale" if "slope" in found else "",
            f", p = {found['p']:.2g}." if {"slope", "p"} <= {*found} else "",
        ]
    )
    panel = labeled_panel(marks, Axis(), Axis(), xlabel, ylabel)
    return Figure(
        panels=[panel],
        title=title,
        note=f"{check_text('note', note)} {band}{slope}".strip(),
        width=width,
        height=height,
    )
