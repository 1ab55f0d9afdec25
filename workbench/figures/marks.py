"""What can stand in a panel, with its numbers: each mark checks itself when it is made, and can list what it draws.

Numbers are rounded when a mark is made, to a hundred-thousandth of the largest (whole numbers stay as they are): nobody
can see more, and what another machine adds up in another order is then, nearly always, the same figure.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import ceil, floor, log10
from typing import Any, ClassVar, NamedTuple

import numpy as np

from workbench.errors import FigureError
from workbench.figures.theme import SCALES, SERIES
from workbench.text import visible

DIGITS = 5
SHAPES = ("dot", "ring", "square")
INK = -1  # the colour of text, for what belongs to no series


class Row(NamedTuple):
    """One drawn thing, in the units of its panel's axes; None where a mark has no such number."""

    x: float | None = None
    y: float | None = None
    low: float | None = None
    high: float | None = None
    value: float | None = None
    text: str | None = None


class Extent(NamedTuple):
    """The bounds of what a mark covers."""

    left: float
    right: float
    bottom: float
    top: float


def settled(values: np.ndarray) -> np.ndarray:
    """Numbers as they are drawn and written: rounded to a hundred-thousandth of the largest, if any is a fraction.

    >>> settled(np.array([0.123456789, 1e-9])).tolist(), settled(np.array([131071.0])).tolist()
    ([0.12346, 0.0], [131071.0])
    """
    values = np.asarray(values, np.float64)
    known = values[np.isfinite(values)]
    if not len(known) or (known == np.rint(known)).all():
        return values + 0.0
    largest = np.abs(known).max()
    decimals = min(DIGITS - 1 - floor(log10(largest)), 300)  # 10^decimals is a number
    return np.round(values, decimals) + 0.0  # no negative zeros


class Mark:
    """What all marks share."""

    kind: ClassVar[str]
    name: str = ""

    def rows(self) -> Iterator[Row]:
        raise NotImplementedError

    def extent(self) -> Extent:
        raise NotImplementedError

    def _set(self, **values: Any) -> None:
        for name, value in values.items():
            object.__setattr__(self, name, value)

    def _refuse(self, why: str) -> FigureError:
        return FigureError(f"{self.kind} {visible(self.name)!r}: {why}" if self.name else f"{self.kind}: {why}")

    def _numbers(self, *fields: str, gaps: Sequence[str] = ()) -> None:
        """The fields become read-only columns of one length; NaN is allowed in `gaps` alone."""
        size = None
        for field in fields:
            given = getattr(self, field)
            if given is None:
                continue
            try:
                column = settled(np.asarray(given, np.float64))
            except (TypeError, ValueError):
                raise self._refuse(f"{field} must be numbers, not {type(given).__name__}") from None
            if column.ndim != 1:
                raise self._refuse(f"{field} must have one axis, and has {column.ndim}: choose a slice or take a mean")
            if np.isinf(column).any():
                raise self._refuse(f"{field} holds an infinite number; leave it out, or give NaN for a gap")
            if field not in gaps and np.isnan(column).any():
                raise self._refuse(f"{field} holds NaN; only {', '.join(gaps) or 'none of its numbers'} may have gaps")
            size = len(column) if size is None else size
            if len(column) != size:
                raise self._refuse(f"{field} has {len(column)} numbers where {fields[0]} has {size}")
            column.flags.writeable = False
            self._set(**{field: column})

    def _interval(self) -> None:
        low, high = getattr(self, "low", None), getattr(self, "high", None)
        if (low is None) != (high is None):
            raise self._refuse("an interval has two bounds: give both low and high, or neither")
        if low is not None and high is not None and np.less(high, low).any():
            at = int(np.argmax(high < low))
            raise self._refuse(f"the interval of number {at} ends at {high[at]:g}, below where it begins, {low[at]:g}")

    def _color(self) -> None:
        color = getattr(self, "color", 0)
        if not isinstance(color, int) or not INK <= color < len(SERIES):
            raise self._refuse(
                f"color is the number of a series, 0..{len(SERIES) - 1}, or {INK} for ink; not {color!r}"
            )

    def _texts(self, field: str, n: int) -> None:
        given = getattr(self, field)
        if isinstance(given, str) or not all(isinstance(text, str) for text in given):
            raise self._refuse(f"{field} is a list of texts, one for each number")
        if given and len(given) != n:
            raise self._refuse(f"{len(given)} texts for {n} numbers: give one for each, or none")
        self._set(**{field: tuple(given)})


def _each(*columns: np.ndarray | None) -> Iterator[list[float | None]]:
    """Side by side, with None for a column that is not there and for a gap."""
    n = next(len(column) for column in columns if column is not None)
    for i in range(n):
        yield [None if c is None or np.isnan(c[i]) else float(c[i]) for c in columns]


def _covered(x: np.ndarray, *ys: np.ndarray | float | None) -> Extent:
    every = np.concatenate([np.atleast_1d(y) for y in ys if y is not None])
    every = every[~np.isnan(every)]
    bottom, top = (float(every.min()), float(every.max())) if len(every) else (0.0, 1.0)
    left, right = (float(x.min()), float(x.max())) if len(x) else (0.0, 1.0)
    return Extent(left, right, bottom, top)


@dataclass(frozen=True, eq=False, kw_only=True)
class Line(Mark):
    """A curve, with a band from `low` to `high` if they are given. NaN in `y` is a gap."""

    kind: ClassVar[str] = "line"
    x: Any
    y: Any
    low: Any = None
    high: Any = None
    name: str = ""
    color: int = 0
    dashed: bool = False

    def __post_init__(self) -> None:
        self._numbers("x", "y", "low", "high", gaps=("y", "low", "high"))
        self._interval()
        self._color()

    def rows(self) -> Iterator[Row]:
        for x, y, low, high in _each(self.x, self.y, self.low, self.high):
            yield Row(x, y, low, high)

    def extent(self) -> Extent:
        return _covered(self.x, self.y, self.low, self.high)


@dataclass(frozen=True, eq=False, kw_only=True)
class Bars(Mark):
    """Bars from `base` to `y`, `width` wide, with an interval from `low` to `high` if they are given."""

    kind: ClassVar[str] = "bars"
    x: Any
    y: Any
    low: Any = None
    high: Any = None
    base: Any = None  # 0 unless given
    width: float = 0.8
    name: str = ""
    color: int = 0

    def __post_init__(self) -> None:
        if self.base is None:
            self._set(base=np.zeros(len(np.atleast_1d(self.x))))
        self._numbers("x", "y", "low", "high", "base", gaps=("y", "low", "high"))
        self._interval()
        self._color()
        if not self.width > 0:
            raise self._refuse(f"a bar is wider than 0; this one is {self.width}")

    def rows(self) -> Iterator[Row]:
        for x, y, low, high, base in _each(self.x, self.y, self.low, self.high, self.base):
            yield Row(x, y, low, high, base or None)

    def extent(self) -> Extent:
        inner = _covered(self.x, self.y, self.low, self.high, self.base)
        return Extent(inner.left - self.width / 2, inner.right + self.width / 2, inner.bottom, inner.top)


@dataclass(frozen=True, eq=False, kw_only=True)
class Points(Mark):
    """Points, with an interval from `low` to `high` if they are given, and a text each that shows on hovering."""

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
        self._numbers("x", "y", "low", "high", gaps=("low", "high"))
        self._interval()
        self._color()
        self._texts("text", len(self.x))
        if self.shape not in SHAPES:
            raise self._refuse(f"shape is one of {', '.join(SHAPES)}, not {self.shape!r}")

    def rows(self) -> Iterator[Row]:
        for i, (x, y, low, high) in enumerate(_each(self.x, self.y, self.low, self.high)):
            yield Row(x, y, low, high, None, self.text[i] if self.text else None)

    def extent(self) -> Extent:
        return _covered(self.x, self.y, self.low, self.high)


@dataclass(frozen=True, eq=False, kw_only=True)
class Cells(Mark):
    """A matrix (row column): the cell of row r and column c is at x = c, y = r. NaN is no number, and looks so.

    `low` and `high` are the ends of the scale; "signed" has its middle at 0. `written` puts each number into its cell.
    """

    kind: ClassVar[str] = "cells"
    values: Any
    low: float | None = None
    high: float | None = None
    scale: str | None = None  # by the numbers, unless given
    label: str = ""
    written: bool = False
    name: str = ""

    def __post_init__(self) -> None:
        values = settled(np.asarray(self.values, np.float64))
        if values.ndim != 2 or not values.size:
            raise self._refuse(f"values must have two axes, row and column; these have shape {list(values.shape)}")
        if np.isinf(values).any():
            raise self._refuse("values hold an infinite number; give NaN for what is unknown")
        values.flags.writeable = False
        known = values[~np.isnan(values)]
        least, most = (float(known.min()), float(known.max())) if len(known) else (0.0, 1.0)
        scale = self.scale or ("signed" if least < 0 else "mass")
        if scale not in SCALES:
            raise self._refuse(f"scale is one of {', '.join(SCALES)}, not {scale!r}")
        low = min(least, 0.0) if self.low is None else float(self.low)
        high = max(most, 0.0) if self.high is None else float(self.high)
        if scale == "signed" and self.low is None and self.high is None:
            low, high = -max(-low, high), max(-low, high)
        if low == high:
            high = low + 1.0
        if not low < high:
            raise self._refuse(f"the scale ends at {high:g}, below where it begins, {low:g}")
        self._set(values=values, scale=scale, low=low, high=high)

    def rows(self) -> Iterator[Row]:
        for (y, x), value in np.ndenumerate(self.values):
            yield Row(float(x), float(y), value=None if np.isnan(value) else float(value))

    def extent(self) -> Extent:
        n_rows, n_columns = self.values.shape
        return Extent(-0.5, n_columns - 0.5, -0.5, n_rows - 0.5)

    def decimals(self) -> int:
        """How many decimals tell the cells apart, where their numbers are written."""
        assert self.low is not None
        assert self.high is not None
        return max(0, 2 - ceil(log10(self.high - self.low)))

    def shade(self) -> np.ndarray:
        """Where on its scale each cell is, 0 to 255; -1 where there is no number."""
        assert self.low is not None
        assert self.high is not None
        with np.errstate(invalid="ignore"):
            place = np.rint((self.values - self.low) / (self.high - self.low) * 255).clip(0, 255)
        return np.where(np.isnan(self.values), -1, place).astype(int)


@dataclass(frozen=True, eq=False, kw_only=True)
class Blocks(Mark):
    """Stretches of the x axis from `start` to `stop` as tinted blocks with their texts: messages, steps."""

    kind: ClassVar[str] = "blocks"
    start: Any
    stop: Any
    text: Sequence[str] = ()
    colors: Sequence[int] = ()  # of each; 0 unless given
    name: str = ""

    def __post_init__(self) -> None:
        self._numbers("start", "stop")
        self._texts("text", len(self.start))
        colors = tuple(self.colors) or (0,) * len(self.start)
        if len(colors) != len(self.start) or not all(isinstance(c, int) and 0 <= c < len(SERIES) for c in colors):
            raise self._refuse(f"colors are numbers of series, 0..{len(SERIES) - 1}, one for each block")
        if (self.stop < self.start).any():
            raise self._refuse("a block ends before it begins")
        self._set(colors=colors)

    def rows(self) -> Iterator[Row]:
        for i, (start, stop) in enumerate(_each(self.start, self.stop)):
            yield Row(low=start, high=stop, text=self.text[i] if self.text else None)

    def extent(self) -> Extent:
        return Extent(float(self.start.min(initial=0)), float(self.stop.max(initial=1)), 0.0, 1.0)


@dataclass(frozen=True, eq=False, kw_only=True)
class Arcs(Mark):
    """Arcs from one place of the x axis to another, as thick as their weight; the further, the higher."""

    kind: ClassVar[str] = "arcs"
    source: Any
    target: Any
    weight: Any
    name: str = ""
    color: int = 0

    def __post_init__(self) -> None:
        self._numbers("source", "target", "weight")
        self._color()
        if (self.weight < 0).any():
            raise self._refuse("a weight is not below 0: draw the two signs as two marks")

    def rows(self) -> Iterator[Row]:
        for source, target, weight in _each(self.source, self.target, self.weight):
            yield Row(source, target, value=weight)

    def extent(self) -> Extent:
        ends = np.concatenate([self.source, self.target])
        reach = np.abs(self.target - self.source).max(initial=1.0)
        return Extent(float(ends.min(initial=0)), float(ends.max(initial=1)), 0.0, float(reach) / 2)

    def paths(self, points: int = 25) -> Iterator[tuple[np.ndarray, np.ndarray, float]]:
        """Each arc as x, y, and its weight as a share of the largest, the heaviest last."""
        turn = np.linspace(0, np.pi, points)
        most = self.weight.max(initial=0) or 1.0
        for i in np.argsort(self.weight, kind="stable"):
            middle, half = (self.source[i] + self.target[i]) / 2, (self.target[i] - self.source[i]) / 2
            yield middle - half * np.cos(turn), np.abs(half) * np.sin(turn), float(self.weight[i] / most)


@dataclass(frozen=True, eq=False, kw_only=True)
class Rule(Mark):
    """A thin line across the panel, at a place of one axis: chance, a null, the step at which something is settled."""

    kind: ClassVar[str] = "rule"
    at: float
    axis: str = "y"
    text: str = ""
    name: str = ""

    def __post_init__(self) -> None:
        if self.axis not in ("x", "y"):
            raise self._refuse(f"axis is 'x' or 'y', not {self.axis!r}")
        if not np.isfinite(self.at):
            raise self._refuse(f"it must stand somewhere, not at {self.at}")
        self._set(at=float(settled(np.array([self.at]))[0]))

    def rows(self) -> Iterator[Row]:
        yield Row(**{self.axis: self.at}, text=self.text or None)

    def extent(self) -> Extent:
        nan = float("nan")
        return Extent(self.at, self.at, nan, nan) if self.axis == "x" else Extent(nan, nan, self.at, self.at)
