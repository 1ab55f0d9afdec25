"""A figure as data: panels, axes and marks. It is validated when made, immutable, and the same for both backends."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields
from hashlib import sha256
from math import ceil, isfinite
from typing import TYPE_CHECKING, Any

import numpy as np

from workbench.checks import (
    check_flag,
    check_items,
    check_real,
    check_text,
    check_type,
    check_whole,
)
from workbench.errors import FigureError
from workbench.figures.marks import Arcs, Bars, Blocks, Cells, Mark, Row
from workbench.figures.theme import round_ticks
from workbench.text import number_text, shown, visible

if TYPE_CHECKING:
    from plotly.graph_objects import Figure as Interactive

WIDTHS = {"column": 85.0, "text": 140.0, "page": 180.0}  # mm: one of two columns, a one-column page, a two-column page
MIN_SIZE, MAX_SIZE = 20.0, 1000.0  # mm
HEIGHT = 60.0  # mm of a row of panels
MAX_TEXT = 2000  # characters of a title, label or note; the layout of longer ones takes minutes or fails
PIXELS = 6.0  # on the screen, for each mm: 7-point type then looks as large as a notebook's text

Tick = tuple[float, str]


@dataclass(frozen=True, kw_only=True)
class Axis:
    """One axis of a panel. Bounds and ticks follow from the marks by default; `small` is for the texts of tokens.

    >>> wb.figures.Axis(label="step", low=0, whole=True).label
    'step'
    """

    label: str = ""
    low: float | None = None
    high: float | None = None
    ticks: Sequence[Tick] | None = None  # (position, text)
    whole: bool = False  # ticks at whole numbers only
    flipped: bool = False  # the low end is at the top, or at the right
    hidden: bool = False
    small: bool = False

    def __post_init__(self) -> None:
        _check_text("the label of an axis", self.label)
        for name in ("whole", "flipped", "hidden", "small"):
            object.__setattr__(self, name, check_flag(name, getattr(self, name)))
        for name in ("low", "high"):
            if (bound := getattr(self, name)) is None:
                continue
            if not isfinite(check_real(name, bound)):
                raise FigureError(f"axis {self.label!r}: {name} must be finite, got {shown(bound)}")
            object.__setattr__(self, name, check_real(name, bound))
        if self.low is not None and self.high is not None and not self.low < self.high:
            raise FigureError(f"axis {self.label!r}: low must be below high, got {self.low:g} and {self.high:g}")
        if self.ticks is not None:
            try:
                ticks = tuple((check_real("a tick", at), text) for at, text in check_items("ticks", self.ticks, low=0))
            except (TypeError, ValueError):
                raise FigureError(f"axis {self.label!r}: ticks must be pairs of a position and a text") from None
            if not all(isfinite(at) and isinstance(text, str) for at, text in ticks):
                raise FigureError(f"axis {self.label!r}: ticks must be pairs of a position and a text")
            for _, text in ticks:
                _check_text("the text of a tick", text)
            object.__setattr__(self, "ticks", ticks)


@dataclass(frozen=True, kw_only=True, eq=False)
class Panel:
    """Marks on a pair of axes.

    >>> panel = wb.figures.Panel(marks=[wb.figures.Rule(at=0.5)], y=wb.figures.Axis(label="AUROC"))
    >>> panel.y.label, len(panel.marks)
    ('AUROC', 1)
    """

    marks: Sequence[Mark]
    x: Axis = field(default_factory=Axis)
    y: Axis = field(default_factory=Axis)
    title: str = ""

    def __post_init__(self) -> None:
        _check_text("the title of a panel", self.title)
        for axis in (self.x, self.y):
            check_type("a panel", axis, Axis)
        object.__setattr__(self, "marks", tuple(check_items("marks", self.marks, low=0)))
        if not self.marks:
            raise FigureError(f"panel {self.title!r} has no marks; give it at least one")
        for mark in self.marks:
            if not isinstance(mark, Mark):
                raise FigureError(f"marks must be Line, Bars, Points, Cells, …, got {type(mark).__name__}")
            _check_text(f"the name of {mark.kind}", mark.name)
            for field_name in ("label", "text"):
                text = getattr(mark, field_name, None)
                if isinstance(text, str):
                    _check_text(f"the {field_name} of {mark.kind}", text)

    def bounds(self) -> tuple[float, float, float, float]:
        """Left, right, bottom, top: the bounds of the axes, or by default the range of the marks with a margin."""
        extents = np.array([mark.extent() for mark in self.marks])
        tight = any(isinstance(mark, Cells | Blocks) for mark in self.marks)
        bounds = []
        for axis, low, high in ((self.x, 0, 1), (self.y, 2, 3)):
            present = extents[:, [low, high]][~np.isnan(extents[:, low])]
            smallest, largest = (float(present[:, 0].min()), float(present[:, 1].max())) if len(present) else (0.0, 1.0)
            if smallest == largest:
                smallest, largest = smallest - 0.5, largest + 0.5
            margin = 0.0 if tight else (largest - smallest) * 0.04
            from_zero = axis is self.y and any(isinstance(mark, Bars | Arcs) for mark in self.marks)
            if axis is self.y and not tight and 0 < smallest < largest / 2:
                smallest = 0.0  # start the axis at 0, unless the values would then fill less than half of it
            below = 0.0 if from_zero and smallest == 0 else margin
            above = 0.0 if from_zero and largest == 0 else margin
            bounds += [
                smallest - below if axis.low is None else axis.low,
                largest + above if axis.high is None else axis.high,
            ]
        return bounds[0], bounds[1], bounds[2], bounds[3]

    def ticks(self) -> tuple[Sequence[Tick], Sequence[Tick]]:
        """The ticks of the x axis and of the y axis."""
        left, right, bottom, top = self.bounds()
        return _ticks(self.x, left, right), _ticks(self.y, bottom, top)


def _check_text(what: str, text: str) -> None:
    if not isinstance(text, str):
        raise FigureError(f"{what} must be a text, got {type(text).__name__}")
    if len(text) > MAX_TEXT:
        raise FigureError(
            f"{what} has {len(text)} characters, and at most {MAX_TEXT} can be drawn: {text[:40]!r}…. Shorten it."
        )


def _ticks(axis: Axis, low: float, high: float) -> Sequence[Tick]:
    if axis.hidden:
        return ()
    if axis.ticks is not None:
        return axis.ticks
    return [(at, number_text(at)) for at in round_ticks(low, high, whole=axis.whole)]


@dataclass(frozen=True, kw_only=True, eq=False)
class Figure:
    """Panels in rows of `columns`, a title above, and a note below for the data, the uncertainty and the chance level.

    Sizes are in mm on paper: `WIDTHS` has the usual widths. `rows` are the heights of the rows of panels, relative to
    each other.

    >>> curve = wb.figures.Line(x=[0, 1, 2], y=[0.1, 0.5, 0.9], name="p")
    >>> figure = wb.figures.Figure(panels=[wb.figures.Panel(marks=[curve])], width=wb.figures.WIDTHS["column"])
    >>> figure.height, [row.y for _, _, row in figure.numbers()]
    (60.0, [0.1, 0.5, 0.9])

    Raises FigureError with the value that is not allowed.
    """

    panels: Sequence[Panel]
    title: str = ""
    note: str = ""
    width: float = WIDTHS["text"]
    height: float | None = None
    columns: int = 1
    rows: Sequence[float] = ()

    def __post_init__(self) -> None:
        for name, text in (("title", self.title), ("note", self.note)):
            _check_text(f"the {name} of a figure", text)
        panels = tuple(check_items("panels", self.panels, low=0))
        object.__setattr__(self, "columns", check_whole("columns", self.columns))
        if not panels or not all(isinstance(panel, Panel) for panel in panels):
            raise FigureError("a figure needs at least one panel, and takes only panels")
        if not 1 <= self.columns <= len(panels):
            raise FigureError(f"columns must be between 1 and {len(panels)}, the number of panels; got {self.columns}")
        n_rows = ceil(len(panels) / self.columns)
        rows = tuple(check_real("a row", row) for row in check_items("rows", self.rows, low=0)) or (1.0,) * n_rows
        if len(rows) != n_rows or not all(isfinite(row) and row > 0 for row in rows):
            raise FigureError(f"rows must be {n_rows} relative heights above 0, got {list(rows)}")
        height = HEIGHT * n_rows if self.height is None else check_real("height", self.height)
        width = check_real("width", self.width)
        for name, size in (("width", width), ("height", height)):
            if not MIN_SIZE <= size <= MAX_SIZE:
                raise FigureError(f"{name} must be between {MIN_SIZE:g} and {MAX_SIZE:g} mm, got {size:g}")
        for name, value in (("panels", panels), ("rows", rows), ("height", height), ("width", width)):
            object.__setattr__(self, name, value)

    def numbers(self) -> Iterator[tuple[int, Mark, Row]]:
        """Everything that is drawn, item by item: the index of its panel, its mark and its numbers."""
        for i, panel in enumerate(self.panels):
            for mark in panel.marks:
                for row in mark.rows():
                    yield i, mark, row

    def to_json(self) -> dict[str, Any]:
        """The figure as plain values."""
        return _plain(self)

    @property
    def digest(self) -> str:
        """The sha256 of all values: figures with the same digest are the same."""
        text = json.dumps(self.to_json(), sort_keys=True, separators=(",", ":"))
        return sha256(text.encode()).hexdigest()

    def plotly(self) -> "Interactive":
        """The figure as an interactive `plotly.graph_objects.Figure`; MissingDependency without the extra `lab`."""
        from workbench.figures.backends.plotly import interactive

        return interactive(self)

    def image(self, format: str = "svg") -> bytes:
        """The figure for paper, as the bytes of an SVG, a PDF or a PNG; MissingDependency without matplotlib."""
        from workbench.figures.backends.matplotlib import images

        return images(self, [check_text("format", format)])[format]

    def _repr_mimebundle_(self, **_: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        """The display in Jupyter: an image without scripts or network, which needs no kernel.

        It is just large enough for its type to be readable, so a one-column figure does not fill the page.
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
        return f"Figure({visible(repr(self.title))}, {self.width:g} x {self.height:g} mm: {marks})"


def _plain(value: Any) -> Any:
    if isinstance(value, Axis | Panel | Figure | Mark):
        kind = {"kind": value.kind} if isinstance(value, Mark) else {}
        return kind | {f.name: _plain(getattr(value, f.name)) for f in fields(value)}  # pyright: ignore[reportArgumentType]
    if isinstance(value, np.ndarray):
        return _plain(value.tolist())
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not isfinite(value):
        return None
    return value
