"""What can be drawn in a panel, with its numbers: each mark checks its numbers when it is made, and can list them.

Numbers are rounded when a mark is made, to a hundred-thousandth of the largest (whole numbers stay as they are). The
difference cannot be seen, and a machine that sums in another order then nearly always gives the same figure.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import ceil, floor, log10
from typing import Any, ClassVar, NamedTuple

import numpy as np

from workbench.checks import (
    check_flag,
    check_items,
    check_number,
    check_numbers,
    check_real,
    check_text,
    check_texts,
    check_whole,
)
from workbench.errors import ArgumentTypeError, FigureError
from workbench.figures.theme import SCALES, SERIES, TINTS
from workbench.text import shown, visible

DIGITS = 5
SHAPES = ("dot", "ring", "square")
NO_SERIES = -1  # a mark that belongs to no series has the color of text, theme.INK


class Row(NamedTuple):
    """One drawn item, in the units of its panel's axes; None where a mark has no such number."""

    x: float | None = None
    y: float | None = None
    low: float | None = None
    high: float | None = None
    value: float | None = None
    text: str | None = None


class Extent(NamedTuple):
    """The range of coordinates that a mark covers."""

    left: float
    right: float
    bottom: float
    top: float


def rounded(values: np.ndarray) -> np.ndarray:
    """Numbers as they are drawn and saved: rounded to a hundred-thousandth of the largest, if any is a fraction.

    >>> rounded(np.array([0.123456789, 1e-9])).tolist(), rounded(np.array([131071.0])).tolist()
    ([0.12346, 0.0], [131071.0])
    """
    values = np.asarray(values, np.float64)
    finite = values[np.isfinite(values)]
    if not len(finite) or (finite == np.rint(finite)).all():
        return values + 0.0
    largest = np.abs(finite).max()
    decimals = min(DIGITS - 1 - floor(log10(largest)), 300)  # 10^decimals must be finite
    return np.round(values, decimals) + 0.0  # no negative zeros


class Mark:
    """The base of all marks."""

    kind: ClassVar[str]
    name: str = ""

    def rows(self) -> Iterator[Row]:
        raise NotImplementedError

    def extent(self) -> Extent:
        raise NotImplementedError

    def _set(self, **values: Any) -> None:
        for name, value in values.items():
            object.__setattr__(self, name, value)

    def _error(self, problem: str) -> FigureError:
        return FigureError(
            f"{self.kind} {visible(str(self.name))!r}: {problem}" if self.name else f"{self.kind}: {problem}"
        )

    def _names(self, *fields: str) -> None:
        """Checks that the name of the mark, and other fields, are texts."""
        for field in ("name", *fields):
            check_text(field, getattr(self, field))

    def _numbers(self, *fields: str, gaps: Sequence[str] = ()) -> None:
        """Turns the fields into read-only columns of equal length; NaN is allowed only in the fields of `gaps`."""
        size = None
        for field in fields:
            values = getattr(self, field)
            if values is None and field in ("low", "high"):
                continue
            try:
                column = rounded(check_numbers(field, values))
            except ArgumentTypeError:
                raise self._error(f"{field} must be numbers, got {type(values).__name__}") from None
            if column.ndim != 1:
                raise self._error(f"{field} must have one axis, got {column.ndim}: choose a slice or take a mean")
            if np.isinf(column).any():
                raise self._error(f"{field} contains infinity; leave it out, or give NaN for a gap")
            if field not in gaps and np.isnan(column).any():
                allowed = f"only {', '.join(gaps)} may" if gaps else "no field of this mark may"
                raise self._error(f"{field} contains NaN; {allowed}")
            size = len(column) if size is None else size
            if len(column) != size:
                raise self._error(f"{field} must have as many numbers as {fields[0]}, got {len(column)} and {size}")
            column.flags.writeable = False
            self._set(**{field: column})

    def _interval(self) -> None:
        low, high = getattr(self, "low", None), getattr(self, "high", None)
        if (low is None) != (high is None):
            raise self._error("an interval has two bounds: give both low and high, or neither")
        if low is not None and high is not None and np.less(high, low).any():
            at = int(np.argmax(high < low))
            raise self._error(f"low must not exceed high; at index {at}, low is {low[at]:g} and high {high[at]:g}")

    def _color(self) -> None:
        color = check_whole("color", getattr(self, "color", 0))
        self._set(color=color)
        if not NO_SERIES <= color < len(SERIES):
            raise self._error(
                f"color must be a series from 0 to {len(SERIES) - 1}, or {NO_SERIES} for the text color; got {color!r}"
            )

    def _texts(self, field: str, n: int) -> None:
        texts = getattr(self, field)
        try:
            texts = check_texts(field, texts)
        except ArgumentTypeError:
            raise self._error(f"{field} must be a list of texts, one for each number") from None
        if texts and len(texts) != n:
            raise self._error(f"{len(texts)} texts for {n} numbers: give one for each, or none")
        self._set(**{field: tuple(texts)})


def _each(*columns: np.ndarray | None) -> Iterator[list[float | None]]:
    """Rows of the columns, with None for a missing column and for a gap."""
    n = next(len(column) for column in columns if column is not None)
    for i in range(n):
        yield [None if c is None or np.isnan(c[i]) else float(c[i]) for c in columns]


def _extent(x: np.ndarray, *ys: np.ndarray | float | None) -> Extent:
    y = np.concatenate([np.atleast_1d(values) for values in ys if values is not None])
    y = y[~np.isnan(y)]
    bottom, top = (float(y.min()), float(y.max())) if len(y) else (0.0, 1.0)
    left, right = (float(x.min()), float(x.max())) if len(x) else (0.0, 1.0)
    return Extent(left, right, bottom, top)


@dataclass(frozen=True, eq=False, kw_only=True)
class Line(Mark):
    """A curve, with a band from `low` to `high` if given. NaN in `y` is a gap.

    >>> wb.figures.Line(x=[0, 1, 2], y=[0.1, 0.4, 0.9]).kind
    'line'
    """

    kind: ClassVar[str] = "line"
    x: Any
    y: Any
    low: Any = None
    high: Any = None
    name: str = ""
    color: int = 0
    dashed: bool = False

    def __post_init__(self) -> None:
        self._names()
        self._set(dashed=check_flag("dashed", self.dashed))
        self._numbers("x", "y", "low", "high", gaps=("y", "low", "high"))
        self._interval()
        self._color()

    def rows(self) -> Iterator[Row]:
        for x, y, low, high in _each(self.x, self.y, self.low, self.high):
            yield Row(x, y, low, high)

    def extent(self) -> Extent:
        return _extent(self.x, self.y, self.low, self.high)


@dataclass(frozen=True, eq=False, kw_only=True)
class Bars(Mark):
    """Bars from `base` to `y`, `width` wide, with an interval from `low` to `high` if given.

    >>> wb.figures.Bars(x=[0, 1], y=[0.5, 0.7], low=[0.4, 0.6], high=[0.6, 0.8]).width
    0.8
    """

    kind: ClassVar[str] = "bars"
    x: Any
    y: Any
    low: Any = None
    high: Any = None
    base: Any = None  # 0 by default
    width: float = 0.8
    name: str = ""
    color: int = 0

    def __post_init__(self) -> None:
        self._names()
        if self.base is None:
            self._set(base=np.zeros(np.size(self.x)))
        self._numbers("x", "y", "low", "high", "base", gaps=("y", "low", "high"))
        self._interval()
        self._color()
        self._set(width=check_number("width", self.width))
        if not self.width > 0:
            raise self._error(f"width must be above 0, got {self.width}")

    def rows(self) -> Iterator[Row]:
        for x, y, low, high, base in _each(self.x, self.y, self.low, self.high, self.base):
            yield Row(x, y, low, high, base or None)

    def extent(self) -> Extent:
        inner = _extent(self.x, self.y, self.low, self.high, self.base)
        return Extent(inner.left - self.width / 2, inner.right + self.width / 2, inner.bottom, inner.top)


@dataclass(frozen=True, eq=False, kw_only=True)
class Points(Mark):
    """Points, with an interval from `low` to `high` if given, and a text for each that is shown on hovering.

    >>> wb.figures.Points(x=[0, 1], y=[0.5, 0.7], name="heads").name
    'heads'
    """

    kind: ClassVar[str] = "points"
    x: Any
    y: Any
    low: Any = None
    high: Any = None
    name: str = ""
    color: int = 0
    shape: str = "dot"
    text: Sequence[str] = ()

    def __post_init__(self) -> None:
        self._names()
        self._numbers("x", "y", "low", "high", gaps=("low", "high"))
        self._interval()
        self._color()
        self._texts("text", len(self.x))
        if not isinstance(self.shape, str) or self.shape not in SHAPES:
            raise self._error(f"shape must be one of {', '.join(SHAPES)}, got {shown(self.shape)}")

    def rows(self) -> Iterator[Row]:
        for i, (x, y, low, high) in enumerate(_each(self.x, self.y, self.low, self.high)):
            yield Row(x, y, low, high, None, self.text[i] if self.text else None)

    def extent(self) -> Extent:
        return _extent(self.x, self.y, self.low, self.high)


@dataclass(frozen=True, eq=False, kw_only=True)
class Cells(Mark):
    """A matrix (row column): the cell of row r and column c is at x = c, y = r. NaN cells have the color of no number.

    `low` and `high` are the ends of the color scale; "signed" has 0 in its middle. `written` prints the numbers in the
    cells.

    >>> wb.figures.Cells(values=[[0.1, 0.9], [0.5, float("nan")]]).values.shape
    (2, 2)
    """

    kind: ClassVar[str] = "cells"
    values: Any
    low: float | None = None
    high: float | None = None
    scale: str | None = None  # by default "signed" if any value is below 0, else "mass"
    label: str = ""
    written: bool = False
    name: str = ""

    def __post_init__(self) -> None:
        self._names("label")
        self._set(written=check_flag("written", self.written))
        values = rounded(check_numbers("values", self.values))
        if values.ndim != 2 or not values.size:
            raise self._error(f"values must have two axes, row and column; got shape {list(values.shape)}")
        if np.isinf(values).any():
            raise self._error("values contain infinity; give NaN for unknown values")
        values.flags.writeable = False
        finite = values[~np.isnan(values)]
        smallest, largest = (float(finite.min()), float(finite.max())) if len(finite) else (0.0, 1.0)
        scale = ("signed" if smallest < 0 else "mass") if self.scale is None else self.scale
        if not isinstance(scale, str) or scale not in SCALES:
            raise self._error(f"scale must be one of {', '.join(SCALES)}, got {shown(scale)}")
        low = min(smallest, 0.0) if self.low is None else check_number("low", self.low)
        high = max(largest, 0.0) if self.high is None else check_number("high", self.high)
        if scale == "signed" and self.low is None and self.high is None:
            low, high = -max(-low, high), max(-low, high)
        if low == high:
            high = low + 1.0
        if not low < high:
            raise self._error(f"low must be below high, got {low:g} and {high:g}")
        self._set(values=values, scale=scale, low=low, high=high)

    def rows(self) -> Iterator[Row]:
        for (y, x), value in np.ndenumerate(self.values):
            yield Row(float(x), float(y), value=None if np.isnan(value) else float(value))

    def extent(self) -> Extent:
        n_rows, n_columns = self.values.shape
        return Extent(-0.5, n_columns - 0.5, -0.5, n_rows - 0.5)

    def decimals(self) -> int:
        """How many decimals distinguish the cells when their numbers are printed."""
        assert self.low is not None
        assert self.high is not None
        return max(0, 2 - ceil(log10(self.high - self.low)))

    def shade(self) -> np.ndarray:
        """Where each cell is on the color scale, 0 to 255; -1 for NaN."""
        assert self.low is not None
        assert self.high is not None
        with np.errstate(invalid="ignore"):
            level = np.rint((self.values - self.low) / (self.high - self.low) * 255).clip(0, 255)
        return np.where(np.isnan(self.values), -1, level).astype(int)


@dataclass(frozen=True, eq=False, kw_only=True)
class Blocks(Mark):
    """Intervals of the x axis from `start` to `stop` as tinted blocks with texts, such as messages or steps.

    >>> wb.figures.Blocks(start=[0, 12], stop=[12, 40], text=["user", "analysis"]).kind
    'blocks'
    """

    kind: ClassVar[str] = "blocks"
    start: Any
    stop: Any
    text: Sequence[str] = ()
    colors: Sequence[int] = ()  # of each block; 0 by default
    name: str = ""

    def __post_init__(self) -> None:
        self._names()
        self._numbers("start", "stop")
        self._texts("text", len(self.start))
        given = [check_whole("a color", color) for color in check_items("colors", self.colors, low=0)]
        colors = tuple(given) or (0,) * len(self.start)
        if len(colors) != len(self.start) or not all(0 <= color < len(TINTS) for color in colors):
            raise self._error(f"colors must be tints from 0 to {len(TINTS) - 1}, one for each block")
        if (self.stop < self.start).any():
            raise self._error("start must not exceed stop in any block")
        self._set(colors=colors)

    def rows(self) -> Iterator[Row]:
        for i, (start, stop) in enumerate(_each(self.start, self.stop)):
            yield Row(low=start, high=stop, text=self.text[i] if self.text else None)

    def extent(self) -> Extent:
        return Extent(float(self.start.min(initial=0)), float(self.stop.max(initial=1)), 0.0, 1.0)


@dataclass(frozen=True, eq=False, kw_only=True)
class Arcs(Mark):
    """Arcs from one place of the x axis to another: the larger the weight, the thicker; the longer, the higher.

    >>> wb.figures.Arcs(source=[0, 1], target=[3, 2], weight=[0.5, 1.0]).kind
    'arcs'
    """

    kind: ClassVar[str] = "arcs"
    source: Any
    target: Any
    weight: Any
    name: str = ""
    color: int = 0

    def __post_init__(self) -> None:
        self._numbers("source", "target", "weight")
        self._color()
        self._names()
        if (self.weight < 0).any():
            raise self._error("weight must not be below 0: draw positive and negative weights as two marks")

    def rows(self) -> Iterator[Row]:
        for source, target, weight in _each(self.source, self.target, self.weight):
            yield Row(source, target, value=weight)

    def extent(self) -> Extent:
        ends = np.concatenate([self.source, self.target])
        reach = np.abs(self.target - self.source).max(initial=1.0)
        return Extent(float(ends.min(initial=0)), float(ends.max(initial=1)), 0.0, float(reach) / 2)

    def paths(self, points: int = 25) -> Iterator[tuple[np.ndarray, np.ndarray, float]]:
        """Each arc as x, y and its weight as a share of the largest, ordered so that the heaviest is last."""
        angle = np.linspace(0, np.pi, check_whole("points", points, 2, 10_000))
        largest = self.weight.max(initial=0) or 1.0
        for i in np.argsort(self.weight, kind="stable"):
            middle, half = (self.source[i] + self.target[i]) / 2, (self.target[i] - self.source[i]) / 2
            yield middle - half * np.cos(angle), np.abs(half) * np.sin(angle), float(self.weight[i] / largest)


@dataclass(frozen=True, eq=False, kw_only=True)
class Rule(Mark):
    """A thin line across the panel at one place of an axis: chance, a null, the step from which an answer is stable.

    >>> wb.figures.Rule(at=0.5, text="chance").axis
    'y'
    """

    kind: ClassVar[str] = "rule"
    at: float
    axis: str = "y"
    text: str = ""
    name: str = ""

    def __post_init__(self) -> None:
        self._names("text")
        if not isinstance(self.axis, str) or self.axis not in ("x", "y"):
            raise self._error(f"axis must be 'x' or 'y', got {shown(self.axis)}")
        at = check_real("at", self.at)
        if not np.isfinite(at):
            raise self._error(f"at must be finite, got {at}")
        self._set(at=at)
        self._set(at=float(rounded(np.array([self.at]))[0]))

    def rows(self) -> Iterator[Row]:
        yield Row(**{self.axis: self.at}, text=self.text or None)

    def extent(self) -> Extent:
        nan = float("nan")
        return Extent(self.at, self.at, nan, nan) if self.axis == "x" else Extent(nan, nan, self.at, self.at)
