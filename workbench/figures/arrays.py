"""Labelled arrays to figures: one function a kind. Labels, units and n come from the array itself."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr

from workbench.errors import FigureError
from workbench.figures.marks import INK, Bars, Cells, Line, Mark, Points, Rule
from workbench.figures.spec import WIDTHS, Axis, Figure, Panel, Tick

MANY = 40  # labels on one axis that can still be read
GROUP = 0.8  # of the room of a category that its bars take

Bound = xr.DataArray | np.ndarray | None
Null = xr.DataArray | np.ndarray | float | None


def line(
    array: xr.DataArray,
    *,
    by: str | None = None,
    low: Bound = None,
    high: Bound = None,
    null: Null = None,
    title: str = "",
    note: str = "",
    width: float = WIDTHS["text"],
    height: float | None = None,
) -> Figure:
    """A curve over the array's one axis; with `by`, one for each place of that axis.

    `low` and `high`, of the array's shape, are the band around it; `null` is what chance would give, a number or an
    array over the same axis. The label of the values is `long_name` and `units`, the note begins with `attrs["n"]`.

    >>> curve = xr.DataArray([0.1, 0.4, 0.9], dims="step", attrs={"long_name": "belief", "units": "probability"})
    >>> figure = line(curve, null=0.1)
    >>> figure.panels[0].y.label, [mark.kind for mark in figure.panels[0].marks]
    ('belief (probability)', ['rule', 'line'])

    Raises FigureError unless the array has one axis, besides `by`.
    """
    along, series = _series(array, by)
    marks: list[Mark] = _null(null, array[along])
    for number, (name, part) in enumerate(series):
        below, over = _bound(low, array, by, number), _bound(high, array, by, number)
        marks.append(Line(x=_places(array, along), y=part, low=below, high=over, name=name, color=number % 7))
    panel = Panel(marks=marks, x=_axis(array, along), y=Axis(label=_label(array)))
    return Figure(panels=[panel], title=title, note=_note(array, note), width=width, height=height)


def bars(
    array: xr.DataArray,
    *,
    by: str | None = None,
    low: Bound = None,
    high: Bound = None,
    null: Null = None,
    title: str = "",
    note: str = "",
    width: float = WIDTHS["text"],
    height: float | None = None,
) -> Figure:
    """A bar for each place of the array's one axis; with `by`, as many side by side as that axis has places.

    `low` and `high`, of the array's shape, are intervals; `null` is what chance would give.

    >>> share = xr.DataArray([0.2, 0.9], {"effort": ["low", "high"]}, dims="effort")
    >>> figure = bars(share, low=[0.1, 0.8], high=[0.3, 0.95])
    >>> figure.panels[0].ticks()[0], [row.low for _, _, row in figure.numbers()]
    (((0.0, 'low'), (1.0, 'high')), [0.1, 0.8])

    Raises FigureError unless the array has one axis, besides `by`.
    """
    along, series = _series(array, by)
    marks: list[Mark] = []
    room = GROUP / len(series)
    for number, (name, part) in enumerate(series):
        x = np.arange(len(part)) + (number - (len(series) - 1) / 2) * room
        below, over = _bound(low, array, by, number), _bound(high, array, by, number)
        marks.append(Bars(x=x, y=part, low=below, high=over, width=room, name=name, color=number % 7))
    marks += _null(null, np.arange(array.sizes[along]))
    panel = Panel(marks=marks, x=_categories(array, along), y=Axis(label=_label(array)))
    return Figure(panels=[panel], title=title, note=_note(array, note), width=width, height=height)


def stacked(
    array: xr.DataArray,
    *,
    by: str,
    title: str = "",
    note: str = "",
    width: float = WIDTHS["text"],
    height: float | None = None,
) -> Figure:
    """A bar for each place of the array's one axis, made of the places of `by`: parts of a whole.

    Parts above 0 stand on each other, parts below 0 hang below each other.

    >>> parts = xr.DataArray([[0.2, 0.3], [0.8, 0.7]], {"part": ["sink", "rest"]}, dims=("part", "layer"))
    >>> [row.y for _, _, row in stacked(parts, by="part").numbers()]
    [0.2, 0.3, 1.0, 1.0]

    Raises FigureError unless the array has one axis, besides `by`, and no gaps.
    """
    along, series = _series(array, by)
    up, down = np.zeros(array.sizes[along]), np.zeros(array.sizes[along])
    marks: list[Mark] = []
    for number, (name, part) in enumerate(series):
        if np.isnan(part).any():
            raise FigureError(f"part {name!r} holds NaN: parts of a whole have no gaps. Fill them, or draw `bars`")
        base = np.where(part >= 0, up, down)
        marks.append(Bars(x=np.arange(len(part)), y=base + part, base=base, name=name, color=number % 7, width=GROUP))
        up, down = up + np.maximum(part, 0), down + np.minimum(part, 0)
    panel = Panel(marks=marks, x=_categories(array, along), y=Axis(label=_label(array)))
    return Figure(panels=[panel], title=title, note=_note(array, note), width=width, height=height)


def heatmap(
    array: xr.DataArray,
    *,
    marked: xr.DataArray | np.ndarray | None = None,
    marked_name: str = "marked",
    written: bool = False,
    low: float | None = None,
    high: float | None = None,
    title: str = "",
    note: str = "",
    width: float = WIDTHS["text"],
    height: float | None = None,
) -> Figure:
    """A cell for each number of an array with two axes: the first downwards, the second to the right.

    Values above 0 go from white to blue; if any is below 0, blue is below, brown above, and 0 in the middle. NaN is
    grey. `written` puts the numbers into the cells. `marked`, true or false of the array's shape, rings some of them.

    >>> figure = heatmap(xr.DataArray([[0.0, 1.0], [0.5, np.nan]], dims=("layer", "head")))
    >>> figure.panels[0].marks[0].scale, figure.panels[0].y.label, [row.value for _, _, row in figure.numbers()]
    ('mass', 'layer', [0.0, 1.0, 0.5, None])

    Raises FigureError unless the array has two axes.
    """
    if array.ndim != 2:
        raise FigureError(f"a heat map has two axes; this array has {_dims(array)}: choose a slice or take a mean")
    marks: list[Mark] = [Cells(values=array.values, label=_label(array), written=written, low=low, high=high)]
    marks += rings(marked, array.shape, marked_name)
    rows, columns = map(str, array.dims)
    panel = Panel(marks=marks, x=_categories(array, columns), y=_flipped(_categories(array, rows)))
    if height is None:
        height = float(np.clip(18 + 7 * array.sizes[rows], 35, 120))
    return Figure(panels=[panel], title=title, note=_note(array, note), width=width, height=height)


def scatter(
    x: xr.DataArray,
    y: xr.DataArray,
    *,
    groups: Sequence[str] | None = None,
    text: Sequence[str] = (),
    title: str = "",
    note: str = "",
    width: float = WIDTHS["column"],
    height: float | None = None,
) -> Figure:
    """A point for each pair of numbers of two arrays of one shape, coloured by `groups`, saying `text` when hovered.

    >>> a = xr.DataArray([1.0, 2.0], dims="head", attrs={"long_name": "sink"})
    >>> scatter(a, a**2, groups=["sliding", "full"]).panels[0].x.label
    'sink'

    Raises FigureError if the arrays differ in shape, or groups are not as many.
    """
    if x.shape != y.shape:
        raise FigureError(f"one array has shape {list(x.shape)}, the other {list(y.shape)}: a point needs both numbers")
    xs, ys = x.values.ravel().astype(float), y.values.ravel().astype(float)
    told, of = list(text) or [""] * len(xs), list(groups) if groups is not None else [""] * len(xs)
    if len(told) != len(xs) or len(of) != len(xs):
        raise FigureError(f"{len(of)} groups and {len(told)} texts for {len(xs)} points: give one for each")
    marks: list[Mark] = []
    for number, group in enumerate(dict.fromkeys(of)):
        at = [i for i, name in enumerate(of) if name == group]
        marks.append(Points(x=xs[at], y=ys[at], name=group, color=number % 7, text=[told[i] for i in at]))
    panel = Panel(marks=marks, x=Axis(label=_label(x)), y=Axis(label=_label(y)))
    return Figure(panels=[panel], title=title, note=_note(y, note), width=width, height=height)


# What they share.


def rings(marked: Any, shape: tuple[int, ...], name: str) -> list[Mark]:
    """Rings around the cells that are marked."""
    if marked is None:
        return []
    where = np.asarray(marked, bool)
    if where.shape != tuple(shape):
        raise FigureError(f"marked has shape {list(where.shape)}, the array {list(shape)}")
    rows, columns = np.nonzero(where)
    return [Points(x=columns, y=rows, shape="ring", color=1, name=name)] if len(rows) else []


def _series(array: xr.DataArray, by: str | None) -> tuple[str, list[tuple[str, np.ndarray]]]:
    """The axis that goes to the right, and the numbers of each series with its name."""
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
    if not isinstance(bound, xr.DataArray):
        bound = array.copy(data=np.asarray(bound, float).reshape(array.shape))
    return np.asarray((bound if by is None else bound.transpose(by, ...)[number]).values, float)


def _null(null: Null, x: Any) -> list[Mark]:
    if null is None:
        return []
    if np.ndim(null) == 0:
        return [Rule(at=float(null), text="chance")]  # pyright: ignore[reportArgumentType]
    return [Line(x=np.asarray(x, float), y=np.asarray(null, float), name="chance", color=INK, dashed=True)]


def _places(array: xr.DataArray, dim: str) -> np.ndarray:
    """Where the places of an axis are: its numbers, or 0, 1, … where they are texts."""
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
    """An axis with one place for each coordinate, all equally far apart."""
    values, label = array[dim].values, array[dim].attrs.get("long_name", dim.replace("_", " "))
    if np.issubdtype(values.dtype, np.number) and (values == np.arange(len(values))).all():
        return Axis(label=label, whole=True)
    every = -(-len(values) // MANY)
    ticks: list[Tick] = [(float(i), _text(value, "")) for i, value in enumerate(values) if i % every == 0]
    texts = not np.issubdtype(values.dtype, np.number)
    return Axis(label="" if texts else label, ticks=ticks)


def _flipped(axis: Axis) -> Axis:
    return Axis(label=axis.label, ticks=axis.ticks, whole=axis.whole, flipped=True)


def _text(value: Any, of: str) -> str:
    """A coordinate as a legend or an axis says it."""
    if isinstance(value, str):
        return str(value)  # numpy has its own
    return f"{of} {value}".strip()


def _label(array: xr.DataArray) -> str:
    name = str(array.attrs.get("long_name") or array.name or "")
    units = str(array.attrs.get("units") or "")
    return f"{name} ({units})" if name and units not in ("", "1") else name or units


def _note(array: xr.DataArray, note: str) -> str:
    n = array.attrs.get("n")
    return f"{note} n = {n}.".strip() if isinstance(n, int) and "n = " not in note else note


def _dims(array: xr.DataArray) -> str:
    return ", ".join(f"{dim} ({size})" for dim, size in array.sizes.items()) or "no axis"
