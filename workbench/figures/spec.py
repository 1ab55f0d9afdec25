"""A figure as a value: panels, axes, marks. Checked when it is made, frozen, and the same for both faces."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields
from hashlib import sha256
from math import ceil, isfinite
from typing import TYPE_CHECKING, Any

import numpy as np

from workbench.errors import FigureError
from workbench.figures.marks import Arcs, Bars, Blocks, Cells, Mark, Row
from workbench.figures.theme import round_ticks
from workbench.text import number_text

if TYPE_CHECKING:
    from plotly.graph_objects import Figure as Interactive

WIDTHS = {"column": 85.0, "text": 140.0, "page": 180.0}  # mm: one of two columns, a page of one, a page of two
LEAST, MOST = 20.0, 1000.0  # mm
HEIGHT = 60.0  # mm of a row of panels
PIXELS = 6.0  # a mm on the screen: type of 7 points is then as large as that of a notebook

Tick = tuple[float, str]


@dataclass(frozen=True, kw_only=True)
class Axis:
    """One axis of a panel. Bounds and ticks follow from the marks unless given; `small` is for the texts of tokens."""

    label: str = ""
    low: float | None = None
    high: float | None = None
    ticks: Sequence[Tick] | None = None  # (place, text)
    whole: bool = False  # no fractions on it
    flipped: bool = False  # its low end is at the top, or at the right
    hidden: bool = False
    small: bool = False

    def __post_init__(self) -> None:
        for name in ("low", "high"):
            bound = getattr(self, name)
            if bound is not None and not isfinite(bound):
                raise FigureError(f"axis {self.label!r}: {name} is {bound}; an axis has finite ends")
        if self.low is not None and self.high is not None and not self.low < self.high:
            raise FigureError(f"axis {self.label!r}: it ends at {self.high:g}, not above where it begins, {self.low:g}")
        if self.ticks is not None:
            try:
                ticks = tuple((float(at), text) for at, text in self.ticks)
            except (TypeError, ValueError):
                raise FigureError(f"axis {self.label!r}: ticks are pairs of a place and a text") from None
            if not all(isfinite(at) and isinstance(text, str) for at, text in ticks):
                raise FigureError(f"axis {self.label!r}: ticks are pairs of a place and a text")
            object.__setattr__(self, "ticks", ticks)


@dataclass(frozen=True, kw_only=True, eq=False)
class Panel:
    """Marks on two axes."""

    marks: Sequence[Mark]
    x: Axis = field(default_factory=Axis)
    y: Axis = field(default_factory=Axis)
    title: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "marks", tuple(self.marks))
        if not self.marks:
            raise FigureError(f"the panel {self.title!r} has no marks: there is nothing to draw")
        for mark in self.marks:
            if not isinstance(mark, Mark):
                raise FigureError(f"a panel holds marks (Line, Bars, Points, Cells, …), not {type(mark).__name__}")

    def bounds(self) -> tuple[float, float, float, float]:
        """Left, right, bottom, top: what the marks cover with a little air, or what the axes say."""
        extents = np.array([mark.extent() for mark in self.marks])
        tight = any(isinstance(mark, Cells | Blocks) for mark in self.marks)
        found = []
        for axis, low, high in ((self.x, 0, 1), (self.y, 2, 3)):
            known = extents[:, [low, high]][~np.isnan(extents[:, low])]
            least, most = (float(known[:, 0].min()), float(known[:, 1].max())) if len(known) else (0.0, 1.0)
            if least == most:
                least, most = least - 0.5, most + 0.5
            air = 0.0 if tight else (most - least) * 0.04
            grounded = axis is self.y and any(isinstance(mark, Bars | Arcs) for mark in self.marks)
            if axis is self.y and not tight and 0 < least < most / 2:
                least = 0.0  # what has a true zero is shown from there, unless that hides its changes
            below = 0.0 if grounded and least == 0 else air
            above = 0.0 if grounded and most == 0 else air
            found += [
                least - below if axis.low is None else axis.low,
                most + above if axis.high is None else axis.high,
            ]
        return found[0], found[1], found[2], found[3]

    def ticks(self) -> tuple[Sequence[Tick], Sequence[Tick]]:
        """What stands at the x axis and at the y axis."""
        left, right, bottom, top = self.bounds()
        return _ticks(self.x, left, right), _ticks(self.y, bottom, top)


def _ticks(axis: Axis, low: float, high: float) -> Sequence[Tick]:
    if axis.hidden:
        return ()
    if axis.ticks is not None:
        return axis.ticks
    return [(at, number_text(at)) for at in round_ticks(low, high, whole=axis.whole)]


@dataclass(frozen=True, kw_only=True, eq=False)
class Figure:
    """Panels in rows of `columns`, a title above and a note below: what it rests on, how sure it is, what chance gives.

    Sizes are in mm, those of the paper: `WIDTHS` has the usual widths. `rows` are the heights of the rows of panels,
    relative to each other.

    >>> curve = wb.figures.Line(x=[0, 1, 2], y=[0.1, 0.5, 0.9], name="p")
    >>> figure = wb.figures.Figure(panels=[wb.figures.Panel(marks=[curve])], width=wb.figures.WIDTHS["column"])
    >>> figure.height, [row.y for _, _, row in figure.numbers()]
    (60.0, [0.1, 0.5, 0.9])

    Raises FigureError, which says what is wrong with it.
    """

    panels: Sequence[Panel]
    title: str = ""
    note: str = ""
    width: float = WIDTHS["text"]
    height: float | None = None
    columns: int = 1
    rows: Sequence[float] = ()

    def __post_init__(self) -> None:
        panels = tuple(self.panels)
        if not panels or not all(isinstance(panel, Panel) for panel in panels):
            raise FigureError("a figure has one panel at least, and panels only")
        if not isinstance(self.columns, int) or not 1 <= self.columns <= len(panels):
            raise FigureError(f"{len(panels)} panels stand in 1..{len(panels)} columns, not in {self.columns}")
        n_rows = ceil(len(panels) / self.columns)
        rows = tuple(map(float, self.rows)) or (1.0,) * n_rows
        if len(rows) != n_rows or not all(isfinite(row) and row > 0 for row in rows):
            raise FigureError(f"rows are {n_rows} heights above 0, relative to each other; these are {list(rows)}")
        height = HEIGHT * n_rows if self.height is None else float(self.height)
        for name, size in (("width", self.width), ("height", height)):
            if not LEAST <= size <= MOST:
                raise FigureError(f"the {name} is {size:g} mm; paper has {LEAST:g} to {MOST:g}")
        for name, value in (("panels", panels), ("rows", rows), ("height", height), ("width", float(self.width))):
            object.__setattr__(self, name, value)

    def numbers(self) -> Iterator[tuple[int, Mark, Row]]:
        """Everything that is drawn: the number of its panel, its mark, and its numbers."""
        for i, panel in enumerate(self.panels):
            for mark in panel.marks:
                for row in mark.rows():
                    yield i, mark, row

    def to_json(self) -> dict[str, Any]:
        """The figure as plain values."""
        return _plain(self)

    @property
    def digest(self) -> str:
        """The sha256 of all of it: two figures with one digest are one figure."""
        text = json.dumps(self.to_json(), sort_keys=True, separators=(",", ":"))
        return sha256(text.encode()).hexdigest()

    def plotly(self) -> "Interactive":
        """The same as an interactive `plotly.graph_objects.Figure`; MissingDependency without plotly (extra `lab`)."""
        from workbench.figures.backends.plotly import interactive

        return interactive(self)

    def image(self, format: str = "svg") -> bytes:
        """The same for paper, as the bytes of an SVG, a PDF or a PNG; MissingDependency without matplotlib."""
        from workbench.figures.backends.matplotlib import images

        return images(self, [format])[format]

    def _repr_mimebundle_(self, **_: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        """In Jupyter it shows itself, without a script and without a network, whether or not a kernel is there.

        As large as its type is easy to read: a figure of one column does not fill the page.
        """
        from base64 import b64encode

        from workbench.errors import MissingDependency

        plain = {"text/plain": repr(self)}
        try:
            shown = {"image/png": {"width": round(self.width * PIXELS)}}
            return plain | {"image/png": b64encode(self.image("png")).decode()}, shown
        except MissingDependency as missing:
            return {"text/plain": f"{self!r}\n{missing}"}, {}

    def __repr__(self) -> str:
        marks = ", ".join(mark.kind for panel in self.panels for mark in panel.marks)
        return f"Figure({self.title!r}, {self.width:g} x {self.height:g} mm: {marks})"


def _plain(value: Any) -> Any:
    if isinstance(value, Axis | Panel | Figure | Mark):
        kind = {"kind": value.kind} if isinstance(value, Mark) else {}
        return kind | {f.name: _plain(getattr(value, f.name)) for f in fields(value)}  # pyright: ignore[reportArgumentType]
    if isinstance(value, np.ndarray):
        return _plain(value.tolist())
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    if isinstance(value, float) and not isfinite(value):
        return None
    return value
