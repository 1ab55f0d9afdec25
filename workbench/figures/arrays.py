"""Figures of labeled arrays, one function for each kind. Labels, units and n come from the array itself."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import xarray as xr

from workbench.checks import (
    check_flag,
    check_number,
    check_numbers,
    check_outcomes,
    check_text,
    check_texts,
    check_type,
)
from workbench.errors import FigureError
from workbench.figures.marks import NO_SERIES, Bars, Cells, Line, Mark, Points, Rule
from workbench.figures.spec import WIDTHS, Axis, Figure, Panel, Tick

MAX_TICK_LABELS = 40  # labels on one axis that can still be read
GROUP_WIDTH = 0.8  # share of a category's width that its bars take

Bound = xr.DataArray | np.ndarray | None
Null = xr.DataArray | np.ndarray | float | None


def line(
    array: xr.DataArray,
    *,
    by: str | None = None,
    low: Bound = None,
    high: Bound = None,
    null: Null = None,
    null_name: str = "chance",
    xlabel: str | None = None,
    ylabel: str | None = None,
    title: str = "",
    note: str = "",
    width: float = WIDTHS["text"],
    height: float | None = None,
) -> Figure:
    """A curve over the array's axis; with `by`, one curve for each coordinate of that axis.

    Args:
        array: the values, over one axis besides `by`; their label is `long_name` and `units`
        by: the axis whose coordinates become separate curves
        low, high: bounds of the band around each curve, with the array's shape
        null: the chance level, as a number or an array over the same axis
        null_name: what the chance level is, if it is another null, such as "random directions"
        xlabel, ylabel: the labels of the axes, instead of those of the array
        title, note: the texts above and below; if `attrs` has `n`, the note ends with it
        width, height: in mm

    Raises:
        FigureError: the array does not have exactly one axis besides `by`

    >>> curve = xr.DataArray([0.1, 0.4, 0.9], dims="step", attrs={"long_name": "forced answer", "units": "probability"})
    >>> figure = line(curve, null=0.1, null_name="guessing")
    >>> figure.panels[0].y.label, [mark.kind for mark in figure.panels[0].marks]
    ('forced answer (probability)', ['rule', 'line'])
    >>> line(trace.array("entropy"), ylabel="nats").panels[0].y.label
    'nats'
    """
    check_labeled("figures.line", array)
    dim, curves = _series(array, by)
    marks: list[Mark] = _null(null, array[dim], null_name)
    for index, (name, values) in enumerate(curves):
        lower, upper = _bound(low, array, by, index), _bound(high, array, by, index)
        marks.append(Line(x=_coordinates(array, dim), y=values, low=lower, high=upper, name=name, color=index % 7))
    panel = labeled_panel(marks, _axis(array, dim), Axis(label=_label(array)), xlabel, ylabel)
    return Figure(panels=[panel], title=title, note=_note(array, note), width=width, height=height)


def bars(
    array: xr.DataArray,
    *,
    by: str | None = None,
    low: Bound = None,
    high: Bound = None,
    null: Null = None,
    null_name: str = "chance",
    xlabel: str | None = None,
    ylabel: str | None = None,
    title: str = "",
    note: str = "",
    width: float = WIDTHS["text"],
    height: float | None = None,
) -> Figure:
    """A bar for each coordinate of the array's axis; with `by`, a group of bars side by side.

    Args:
        array: the values, over one axis besides `by`; their label is `long_name` and `units`
        by: the axis whose coordinates become bars side by side
        low, high: bounds of the interval of each bar, with the array's shape
        null: the chance level, as a number or an array over the same axis
        null_name: what the chance level is, if it is another null, such as "random directions"
        xlabel, ylabel: the labels of the axes, instead of those of the array
        title, note: the texts above and below; if `attrs` has `n`, the note ends with it
        width, height: in mm

    Raises:
        FigureError: the array does not have exactly one axis besides `by`

    >>> share = xr.DataArray([0.2, 0.9], {"effort": ["low", "high"]}, dims="effort")
    >>> figure = bars(share, low=[0.1, 0.8], high=[0.3, 0.95])
    >>> figure.panels[0].ticks()[0], [row.low for _, _, row in figure.numbers()]
    (((0.0, 'low'), (1.0, 'high')), [0.1, 0.8])
    """
    check_labeled("figures.bars", array)
    dim, series = _series(array, by)
    marks: list[Mark] = []
    bar_width = GROUP_WIDTH / len(series)
    for index, (name, values) in enumerate(series):
        x = np.arange(len(values)) + (index - (len(series) - 1) / 2) * bar_width
        lower, upper = _bound(low, array, by, index), _bound(high, array, by, index)
        marks.append(Bars(x=x, y=values, low=lower, high=upper, width=bar_width, name=name, color=index % 7))
    marks += _null(null, np.arange(array.sizes[dim]), null_name)
    panel = labeled_panel(marks, _categories(array, dim), Axis(label=_label(array)), xlabel, ylabel)
    return Figure(panels=[panel], title=title, note=_note(array, note), width=width, height=height)


def stacked(
    array: xr.DataArray,
    *,
    by: str,
    xlabel: str | None = None,
    ylabel: str | None = None,
    title: str = "",
    note: str = "",
    width: float = WIDTHS["text"],
    height: float | None = None,
) -> Figure:
    """A bar for each coordinate of the array's axis: its values along `by`, stacked.

    Parts above 0 are stacked upwards, parts below 0 downwards.

    Args:
        array: the values, over one axis besides `by`; their label is `long_name` and `units`
        by: the axis of the parts
        xlabel, ylabel: the labels of the axes, instead of those of the array
        title, note: the texts above and below; if `attrs` has `n`, the note ends with it
        width, height: in mm

    Raises:
        FigureError: the array does not have exactly one axis besides `by`, or contains NaN

    >>> parts = xr.DataArray([[0.2, 0.3], [0.8, 0.7]], {"part": ["sink", "rest"]}, dims=("part", "layer"))
    >>> [row.y for _, _, row in stacked(parts, by="part").numbers()]
    [0.2, 0.3, 1.0, 1.0]
    """
    check_labeled("figures.stacked", array)
    dim, series = _series(array, by)
    up, down = np.zeros(array.sizes[dim]), np.zeros(array.sizes[dim])
    marks: list[Mark] = []
    for index, (name, values) in enumerate(series):
        if np.isnan(values).any():
            raise FigureError(f"part {name!r} contains NaN, which cannot be stacked. Replace NaN, or use `bars`")
        base = np.where(values >= 0, up, down)
        marks.append(
            Bars(x=np.arange(len(values)), y=base + values, base=base, name=name, color=index % 7, width=GROUP_WIDTH)
        )
        up, down = up + np.maximum(values, 0), down + np.minimum(values, 0)
    panel = labeled_panel(marks, _categories(array, dim), Axis(label=_label(array)), xlabel, ylabel)
    return Figure(panels=[panel], title=title, note=_note(array, note), width=width, height=height)


def heatmap(
    array: xr.DataArray,
    *,
    marked: xr.DataArray | np.ndarray | None = None,
    marked_name: str = "marked",
    written: bool = False,
    low: float | None = None,
    high: float | None = None,
    xlabel: str | None = None,
    ylabel: str | None = None,
    title: str = "",
    note: str = "",
    width: float = WIDTHS["text"],
    height: float | None = None,
) -> Figure:
    """A cell for each number of an array with two axes: the first goes down, the second to the right.

    Values above 0 go from white to blue. If any value is below 0, values below 0 are blue, those above brown, and 0 is
    in the middle. NaN is gray.

    Args:
        array: the values, over two axes; their label is `long_name` and `units`
        marked: true for cells that get a ring, with the array's shape
        marked_name: their name in the legend
        written: whether the numbers are printed in the cells
        low, high: the ends of the color scale; by default the smallest and the largest of the values and 0
        xlabel, ylabel: the labels of the axes, instead of those of the array
        title, note: the texts above and below; if `attrs` has `n`, the note ends with it
        width, height: in mm

    Raises:
        FigureError: the array does not have two axes

    >>> figure = heatmap(xr.DataArray([[0.0, 1.0], [0.5, np.nan]], dims=("layer", "head")))
    >>> figure.panels[0].marks[0].scale, figure.panels[0].y.label, [row.value for _, _, row in figure.numbers()]
    ('mass', 'layer', [0.0, 1.0, 0.5, None])
    """
    check_labeled("figures.heatmap", array)
    written, marked_name = check_flag("written", written), check_text("marked_name", marked_name)
    if array.ndim != 2:
        raise FigureError(f"a heat map has two axes; this array has {_dims(array)}: choose a slice or take a mean")
    marks: list[Mark] = [Cells(values=array.values, label=_label(array), written=written, low=low, high=high)]
    marks += rings(marked, array.shape, marked_name)
    rows, columns = map(str, array.dims)
    panel = labeled_panel(marks, _categories(array, columns), _flipped(_categories(array, rows)), xlabel, ylabel)
    if height is None:
        height = float(np.clip(18 + 7 * array.sizes[rows], 35, 120))
    return Figure(panels=[panel], title=title, note=_note(array, note), width=width, height=height)


def scatter(
    x: xr.DataArray,
    y: xr.DataArray,
    *,
    groups: Sequence[str] | None = None,
    text: Sequence[str] = (),
    xlabel: str | None = None,
    ylabel: str | None = None,
    title: str = "",
    note: str = "",
    width: float = WIDTHS["column"],
    height: float | None = None,
) -> Figure:
    """A point for each pair of numbers of two arrays with the same shape.

    Args:
        x, y: the coordinates of the points; each array's label is its `long_name` and `units`
        groups: the group of each point, which decides its color
        text: a text for each point, shown on hovering
        xlabel, ylabel: the labels of the axes, instead of those of the array
        title, note: the texts above and below; if `attrs` of `y` has `n`, the note ends with it
        width, height: in mm

    Raises:
        FigureError: the arrays differ in shape, or there is not one group or text for each point

    >>> a = xr.DataArray([1.0, 2.0], dims="head", attrs={"long_name": "sink"})
    >>> scatter(a, a**2, groups=["sliding", "full"]).panels[0].x.label
    'sink'
    """
    check_labeled("figures.scatter", x)
    check_labeled("figures.scatter", y)
    if x.shape != y.shape:
        raise FigureError(f"x and y must have the same shape, got {list(x.shape)} and {list(y.shape)}")
    xs, ys = x.values.ravel().astype(float), y.values.ravel().astype(float)
    texts = check_texts("text", text) or [""] * len(xs)
    group_of = check_texts("groups", groups) if groups is not None else [""] * len(xs)
    if len(texts) != len(xs) or len(group_of) != len(xs):
        raise FigureError(
            f"groups and text must have one entry for each of the {len(xs)} points, "
            f"got {len(group_of)} groups and {len(texts)} texts"
        )
    marks: list[Mark] = []
    for number, group in enumerate(dict.fromkeys(group_of)):
        members = [i for i, name in enumerate(group_of) if name == group]
        marks.append(
            Points(x=xs[members], y=ys[members], name=group, color=number % 7, text=[texts[i] for i in members])
        )
    panel = labeled_panel(marks, Axis(label=_label(x)), Axis(label=_label(y)), xlabel, ylabel)
    return Figure(panels=[panel], title=title, note=_note(y, note), width=width, height=height)


# Shared by several kinds.


def check_labeled(function: str, array: Any) -> None:
    """Raises ArgumentTypeError unless `array` is a labeled array of real numbers; FigureError for an empty one."""
    check_type(function, array, xr.DataArray)
    if array.ndim:
        check_outcomes("the array", array)
    if not array.size:
        raise FigureError(f"{function} needs numbers; this array has {_dims(array)}, so it is empty")


def rings(marked: Any, shape: tuple[int, ...], name: str) -> list[Mark]:
    """Rings around the marked cells."""
    if marked is None:
        return []
    mask = check_outcomes("marked", marked) != 0
    if mask.shape != tuple(shape):
        raise FigureError(f"marked must have the array's shape {list(shape)}, got {list(mask.shape)}")
    rows, columns = np.nonzero(mask)
    return [Points(x=columns, y=rows, shape="ring", color=1, name=name)] if len(rows) else []


def _series(array: xr.DataArray, by: str | None) -> tuple[str, list[tuple[str, np.ndarray]]]:
    """The axis that goes to the right, and each series's name and numbers."""
    by = None if by is None else check_text("by", by)
    others = [str(dim) for dim in array.dims if dim != by]
    if len(others) != 1 or (by is not None and by not in array.dims):
        besides = f" besides by={by!r}" if by else ""
        raise FigureError(
            f"one axis goes to the right{besides}; this array has {_dims(array)}: choose a slice or take a mean"
        )
    if by is None:
        return others[0], [("", np.asarray(array.values, float))]
    numbers = np.asarray(array.transpose(by, ...).values, float)
    return others[0], [(_text(name, by), part) for name, part in zip(array[by].values, numbers)]


def _bound(bound: Bound, array: xr.DataArray, by: str | None, number: int) -> np.ndarray | None:
    if bound is None:
        return None
    values = check_numbers("a bound", bound)
    if values.shape != array.shape:
        raise FigureError(f"low and high must have the array's shape {list(array.shape)}, got {list(values.shape)}")
    if not isinstance(bound, xr.DataArray):
        bound = array.copy(data=values)
    elif {*bound.dims} != {*array.dims}:
        raise FigureError(f"low and high must have the array's axes {_dims(array)}; got {_dims(bound)}")
    return np.asarray((bound if by is None else bound.transpose(by, ...)[number]).values, float)


def _null(null: Null, x: Any, name: str) -> list[Mark]:
    name = check_text("null_name", name)
    if null is None:
        return []
    if np.isscalar(null) or getattr(null, "ndim", 1) == 0:
        return [Rule(at=check_number("null", null), text=name)]
    return [Line(x=np.asarray(x, float), y=check_numbers("null", null), name=name, color=NO_SERIES, dashed=True)]


def labeled_panel(marks: Sequence[Mark], x: Axis, y: Axis, xlabel: str | None, ylabel: str | None) -> Panel:
    """A panel whose axes have the labels that a caller gave, if any."""
    x = x if xlabel is None else replace(x, label=check_text("xlabel", xlabel))
    y = y if ylabel is None else replace(y, label=check_text("ylabel", ylabel))
    return Panel(marks=marks, x=x, y=y)


def _coordinates(array: xr.DataArray, dim: str) -> np.ndarray:
    """The coordinates of an axis: its numbers, or 0, 1, … if they are texts."""
    values = array[dim].values
    return values.astype(float) if np.issubdtype(values.dtype, np.number) else np.arange(len(values), dtype=float)


def _axis(array: xr.DataArray, dim: str) -> Axis:
    values = array[dim].values
    if np.issubdtype(values.dtype, np.number):
        units = array[dim].attrs.get("units")
        label = array[dim].attrs.get("long_name", dim.replace("_", " "))
        return Axis(label=f"{label} ({units})" if units else label, whole=bool((values == np.rint(values)).all()))
    return _categories(array, dim)


def _categories(array: xr.DataArray, dim: str) -> Axis:
    """An axis with equally spaced positions, one for each coordinate."""
    values, label = array[dim].values, array[dim].attrs.get("long_name", dim.replace("_", " "))
    if np.issubdtype(values.dtype, np.number) and (values == np.arange(len(values))).all():
        return Axis(label=label, whole=True)
    stride = -(-len(values) // MAX_TICK_LABELS)
    ticks: list[Tick] = [(float(i), _text(value, "")) for i, value in enumerate(values) if i % stride == 0]
    texts = not np.issubdtype(values.dtype, np.number)
    return Axis(label="" if texts else label, ticks=ticks)


def _flipped(axis: Axis) -> Axis:
    return replace(axis, flipped=True)


def _text(value: Any, dim: str) -> str:
    """A coordinate as text for a legend or an axis."""
    if isinstance(value, str):
        return str(value)  # numpy's strings are a subclass
    return f"{dim} {value}".strip()


def _label(array: xr.DataArray) -> str:
    name = str(array.attrs.get("long_name") or array.name or "")
    units = str(array.attrs.get("units") or "")
    return f"{name} ({units})" if name and units not in ("", "1") else name or units


def _note(array: xr.DataArray, note: str) -> str:
    n = array.attrs.get("n")
    return f"{note} n = {n}.".strip() if isinstance(n, int) and "n = " not in note else note


def _dims(array: xr.DataArray) -> str:
    return ", ".join(f"{dim} ({size})" for dim, size in array.sizes.items()) or "no axis"
