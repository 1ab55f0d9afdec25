"""Draws a Figure with matplotlib for paper: SVG, PDF and PNG, with the same bytes whenever the same figure is made.

A reader's own settings have no effect: the backend uses matplotlib's defaults, the font that matplotlib ships, Agg,
no pyplot, no dates, and identifiers from the figure's own digest. Text is never taken for a formula, and a character
that the font does not have is shown by its code point.
"""

import json
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from workbench.checks import require
from workbench.errors import FigureError
from workbench.figures.labels import label
from workbench.figures.marks import Arcs, Bars, Blocks, Cells, Line, Mark, Points, Rule
from workbench.figures.theme import (
    FAINT,
    INK,
    LABEL,
    NOTHING,
    SERIES,
    SMALL,
    TICK,
    TINTS,
    TITLE,
    luminance,
    round_ticks,
    shades,
)
from workbench.text import number_text, visible

if TYPE_CHECKING:
    from workbench.figures.spec import Figure, Panel

FORMATS = ("svg", "pdf", "png")
DPI = 300
INCH, POINT = 25.4, 25.4 / 72  # mm
VECTOR = 4096  # cells; larger matrices are drawn as one image
MAX_LENGTH = 2000  # characters of one text; no figure has room for more, and matplotlib takes seconds for them
LETTER = 0.57  # approximate width of a letter, as a share of the type size
# The symbols that stand for control characters, which the font does not have, and the code points of the controls.
_CONTROLS = {0x2400 + code: code for code in range(0x20)} | {0x2421: 0x7F}


def images(
    figure: "Figure", formats: Sequence[str] = FORMATS, origin: Mapping[str, Any] | None = None
) -> dict[str, bytes]:
    """The bytes of each format, with `origin` in their metadata.

    Raises FigureError for an unknown format, MissingDependency without matplotlib.
    """
    for name in formats:
        if name not in FORMATS:
            raise FigureError(f"format must be one of {', '.join(FORMATS)}, got {visible(str(name))!r}")
    matplotlib = import_matplotlib()
    description = json.dumps(origin or {}, sort_keys=True)
    title = {"Title": drawable(figure.title)} if figure.title else {}
    metadata: dict[str, dict[str, Any]] = {
        "svg": {**title, "Description": description, "Creator": "workbench", "Date": None},
        "pdf": {**title, "Keywords": description, "Creator": "workbench", "Producer": None, "CreationDate": None},
        "png": {**title, "Description": description, "Software": "workbench"},
    }
    image_of = {}
    with _settings(matplotlib, figure.digest):
        sheet = _sheet(figure)
        for name in formats:
            buffer = BytesIO()
            sheet.savefig(buffer, format=name, dpi=DPI, metadata=metadata[name])
            image_of[name] = buffer.getvalue()
    return image_of


def import_matplotlib() -> Any:
    """The module matplotlib; MissingDependency if it is not installed."""
    for part in ("figure", "style"):  # submodules must be imported by name
        require(f"matplotlib.{part}", extra="figures")
    return require("matplotlib", extra="figures")


@lru_cache(maxsize=1)
def font() -> tuple[Path, frozenset[int]]:
    """The font that matplotlib ships, and the code points that it has."""
    matplotlib = import_matplotlib()
    from matplotlib.ft2font import FT2Font

    path = Path(matplotlib.get_data_path(), "fonts/ttf/DejaVuSans.ttf")
    return path, frozenset(FT2Font(str(path)).get_charmap())


def drawable(text: str) -> str:
    r"""Text as the shipped font can show it: a character that the font lacks is shown by its code point.

    >>> drawable("a\n\tb \u4e2d \U0001f600")
    'a↵⟨U+0009⟩b ⟨U+4E2D⟩ 😀'

    Raises FigureError for more than `MAX_LENGTH` characters.
    """
    if len(text) > MAX_LENGTH:
        raise FigureError(
            f"the text {text[:30]!r}… has {len(text):,} characters; a text in a figure has at most {MAX_LENGTH:,}. "
            f"Shorten it"
        )
    in_font = font()[1]

    def replacement(char: str) -> str:
        code = ord(char)
        return char if code in in_font else f"⟨U+{_CONTROLS.get(code, code):04X}⟩"

    return "".join(map(replacement, label(text)))


@contextmanager
def _settings(matplotlib: Any, salt: str) -> Iterator[None]:
    """matplotlib's defaults, whatever the user has set, with settings that make its output reproducible."""
    settings = {
        "svg.hashsalt": salt,
        "svg.fonttype": "path",  # looks the same where the font is not installed
        "pdf.fonttype": 42,  # text remains selectable text
        "text.parse_math": False,
        "font.size": LABEL,
        "axes.linewidth": 0.5,
        "axes.edgecolor": INK,
        "axes.labelcolor": INK,
        "text.color": INK,
        "xtick.color": INK,
        "ytick.color": INK,
        "xtick.major.width": 0.5,
        "ytick.major.width": 0.5,
        "xtick.major.size": 2.0,
        "ytick.major.size": 2.0,
        "xtick.major.pad": 1.5,
        "ytick.major.pad": 1.5,
        "xtick.labelsize": TICK,
        "ytick.labelsize": TICK,
        "axes.labelsize": LABEL,
        "axes.titlesize": LABEL,
        "axes.labelpad": 2.0,
        "legend.fontsize": TICK,
        "legend.frameon": False,
        "hatch.linewidth": 0.4,
    }
    with matplotlib.style.context(["default", settings]):
        yield


def _sheet(figure: "Figure") -> Any:
    from kiwisolver import UnsatisfiableConstraint
    from matplotlib.figure import Figure as Sheet
    from matplotlib.text import Text

    width, height = figure.width, figure.height or 0
    letters = int(width / (SMALL * LETTER * POINT)) - 2
    notes = textwrap.wrap(drawable(figure.note).replace(" %", "\u00a0%"), letters) if figure.note else []
    headings = textwrap.wrap(drawable(figure.title), int(width / (TITLE * LETTER * POINT))) if figure.title else []
    below = len(notes) * SMALL * 1.25 * POINT + (1.5 if notes else 0)
    above = len(headings) * TITLE * 1.3 * POINT + (1.0 if headings else 0)
    if below + above > 0.8 * height:
        raise FigureError(
            f"the title and the note take {below + above:.0f} mm of the figure's height of {height:g} mm. "
            f"Shorten them, or pass a larger height"
        )
    rect = (0, below / height, 1, 1 - (below + above) / height)
    sheet = Sheet(figsize=(width / INCH, height / INCH), dpi=DPI, layout="constrained")
    gap = 1.2 / INCH
    sheet.get_layout_engine().set(rect=rect, w_pad=gap, h_pad=gap / 2, wspace=0.03, hspace=0.02)  # pyright: ignore
    grid = sheet.add_gridspec(len(figure.rows), figure.columns, height_ratios=figure.rows)
    named: set[tuple[str, int]] = set()
    for i, panel in enumerate(figure.panels):
        axes = sheet.add_subplot(grid[divmod(i, figure.columns)])
        _panel(figure, panel, axes, named)
    edge = 1.2 / width
    for texts, y, va, size, color in (
        (headings, 1 - 0.8 / height, "top", TITLE, INK),
        (notes, 0.8 / height, "bottom", SMALL, "#4d4d4d"),
    ):
        if texts:
            sheet.text(edge, y, "\n".join(texts), va=va, ha="left", size=size, color=color, linespacing=1.2)
    shipped = font()[0]
    for text in sheet.findobj(Text):
        text.get_fontproperties().set_file(str(shipped))  # pyright: ignore
        text.set_parse_math(False)  # pyright: ignore
    try:
        sheet.get_layout_engine().execute(sheet)  # pyright: ignore  once for all formats
    except UnsatisfiableConstraint:
        raise FigureError(
            f"the titles, labels and notes leave no room for the panels on {width:g} x {height:g} mm: shorten them, or "
            f"give the figure a larger width or height"
        ) from None
    sheet.set_layout_engine(None)  # pyright: ignore
    for axes in sheet.axes:  # the layout's last bits differ between processes, and ids in the file depend on them
        left, bottom, width_, height_ = (round(side, 5) for side in axes.get_position().bounds)
        axes.set_position((left, bottom, width_, height_))
    return sheet


def _panel(figure: "Figure", panel: "Panel", axes: Any, named: set[tuple[str, int]]) -> None:
    left, right, bottom, top = panel.bounds()
    axes.set_xlim((right, left) if panel.x.flipped else (left, right))
    axes.set_ylim((top, bottom) if panel.y.flipped else (bottom, top))
    per_unit = figure.width * 0.85 / figure.columns / (right - left)  # mm, approximately
    for mark in panel.marks:
        _DRAW[mark.kind](axes, mark, per_unit)
    for letter, axis, ticks in (("x", panel.x, panel.ticks()[0]), ("y", panel.y, panel.ticks()[1])):
        axis_artist = getattr(axes, f"{letter}axis")
        axis_artist.set_ticks([at for at, _ in ticks], labels=[drawable(text) for _, text in ticks])
        axis_artist.set_ticks([], minor=True)
        axis_artist.set_label_text(drawable(axis.label))
        if axis.small:
            axes.tick_params(axis=letter, labelsize=SMALL, rotation=90 if letter == "x" else 0, length=1.0)
        if axis.hidden:
            axis_artist.set_visible(False)
    if bottom < 0 < top and any(isinstance(mark, Bars) for mark in panel.marks):
        axes.axhline(0, color=INK, lw=0.5, zorder=2)
    filled = any(isinstance(mark, Cells) for mark in panel.marks)
    shown = {"top": filled, "right": filled, "left": not panel.y.hidden, "bottom": not panel.x.hidden}
    for side, visible_ in shown.items():
        axes.spines[side].set_visible(visible_)
    if filled:
        axes.set_facecolor(NOTHING)
    lines = _legend(figure, panel, axes, named)
    if panel.title:
        axes.set_title(drawable(panel.title), loc="left", pad=2.5 + lines * TICK * 1.35, size=LABEL)


def _legend(figure: "Figure", panel: "Panel", axes: Any, named: set[tuple[str, int]]) -> int:
    """Adds a legend above the panel for names that no earlier panel has shown; returns the number of its lines."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    handles = []
    for mark in panel.marks:
        key = (mark.name, getattr(mark, "color", 0))
        if not mark.name or key in named:
            continue
        named.add(key)
        label, color = drawable(mark.name), _color(mark)
        if isinstance(mark, Bars):
            handles.append(Patch(facecolor=color, label=label))
        elif isinstance(mark, Points):
            handles.append(Line2D([], [], ls="", label=label, **_point(mark, color)))
        else:
            dashed = getattr(mark, "dashed", False)
            handles.append(Line2D([], [], color=color, lw=1.2, ls=(0, (3, 2)) if dashed else "-", label=label))
    if not handles:
        return 0
    lengths = [len(handle.get_label()) + 5 for handle in handles]
    room = figure.width * 0.85 / figure.columns / (TICK * LETTER * POINT)
    columns = len(handles) if sum(lengths) <= room else int(np.clip(room // max(lengths), 1, len(handles)))
    axes.legend(
        handles=handles,
        loc="lower left",
        bbox_to_anchor=(0.0, 1.0),
        ncols=columns,
        borderaxespad=0.1,
        borderpad=0.2,
        handlelength=1.5,
        handletextpad=0.5,
        columnspacing=1.2,
        labelspacing=0.3,
    )
    return -(-len(handles) // columns)


# One drawing function for each mark.


def _line(axes: Any, mark: Line, per_unit: float) -> None:
    color = _color(mark)
    if mark.low is not None:
        axes.fill_between(mark.x, mark.low, mark.high, color=color, alpha=0.18, lw=0)
    few = np.isfinite(mark.y).sum() <= 40 and not mark.dashed
    style = {"marker": "o", "ms": 2.0, "mew": 0} if few else {}
    axes.plot(mark.x, mark.y, color=color, lw=1.1, ls=(0, (3, 2)) if mark.dashed else "-", **style)


def _bars(axes: Any, mark: Bars, per_unit: float) -> None:
    from matplotlib.collections import PolyCollection

    left, right = mark.x - mark.width / 2, mark.x + mark.width / 2
    corners = np.stack([[left, right, right, left], [mark.base, mark.base, mark.y, mark.y]], -1).transpose(1, 0, 2)
    axes.add_collection(PolyCollection(list(corners[~np.isnan(mark.y)]), facecolors=_color(mark), lw=0), autolim=False)
    _whiskers(axes, mark)


def _points(axes: Any, mark: Points, per_unit: float) -> None:
    _whiskers(axes, mark)
    axes.plot(mark.x, mark.y, ls="", clip_on=False, zorder=3, **_point(mark, _color(mark)))


def _cells(axes: Any, mark: Cells, per_unit: float) -> None:
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import ListedColormap, Normalize

    colors, at = shades(mark.scale or "mass"), mark.shade()
    n_rows, n_columns = mark.values.shape
    hidden = np.ma.masked_where(at < 0, at)
    scale = ListedColormap(colors / 255)
    if mark.values.size <= VECTOR:
        edges = np.arange(n_columns + 1) - 0.5, np.arange(n_rows + 1) - 0.5
        axes.pcolormesh(*edges, hidden, cmap=scale, vmin=0, vmax=255, edgecolors="face", lw=0.1)
    else:
        extent = (-0.5, n_columns - 0.5, n_rows - 0.5, -0.5)
        axes.imshow(hidden, scale, vmin=0, vmax=255, interpolation="none", aspect="auto", extent=extent)
    if mark.written:
        light = luminance(colors) > 0.35
        for (row, column), value in np.ndenumerate(mark.values):
            if at[row, column] >= 0:
                text_color = INK if light[at[row, column]] else "#ffffff"
                label = f"{value:.{mark.decimals()}f}".replace("-", "−")
                axes.text(column, row, label, color=text_color, size=SMALL, ha="center", va="center")
    ends = float(mark.low or 0), float(mark.high or 0)
    shown = ScalarMappable(Normalize(*ends), scale)
    bar = axes.figure.colorbar(shown, ax=axes, aspect=22, fraction=0.06, pad=0.015)
    ticks = round_ticks(*ends, 5)
    bar.set_ticks(ticks, labels=[number_text(tick) for tick in ticks], minor=False)
    bar.set_label(drawable(mark.label), size=LABEL)
    bar.outline.set_linewidth(0.4)


def _blocks(axes: Any, mark: Blocks, per_unit: float) -> None:
    from matplotlib.patches import Rectangle

    for i, (start, stop, tint) in enumerate(zip(mark.start, mark.stop, mark.colors)):
        axes.add_patch(Rectangle((start, 0.04), stop - start, 0.92, facecolor=TINTS[tint], edgecolor="#ffffff", lw=0.6))
        text = drawable(mark.text[i]) if mark.text else ""
        if len(text) * TICK * LETTER * POINT <= (stop - start) * per_unit:
            axes.text((start + stop) / 2, 0.47, text, size=TICK, ha="center", va="center")


def _arcs(axes: Any, mark: Arcs, per_unit: float) -> None:
    for x, y, share in mark.paths():
        axes.plot(x, y, color=_color(mark), lw=0.4 + 2.2 * share, alpha=0.35 + 0.6 * share, solid_capstyle="butt")


def _rule(axes: Any, mark: Rule, per_unit: float) -> None:
    style = {"color": FAINT, "lw": 0.7, "ls": (0, (1, 1.5)), "zorder": 1}
    text_style = {"size": TICK, "color": "#4d4d4d"}
    if mark.axis == "y":
        axes.axhline(mark.at, **style)
        axes.text(
            1, mark.at, f" {drawable(mark.text)}", transform=axes.get_yaxis_transform(), va="center", **text_style
        )
    else:
        axes.axvline(mark.at, **style)
        axes.text(mark.at, 1, f" {drawable(mark.text)}", transform=axes.get_xaxis_transform(), va="top", **text_style)


def _whiskers(axes: Any, mark: Bars | Points) -> None:
    if mark.low is not None:
        axes.vlines(mark.x, mark.low, mark.high, color=INK, lw=0.7, zorder=2)


def _color(mark: Mark) -> str:
    color = getattr(mark, "color", 0)
    return SERIES[color] if color >= 0 else INK


def _point(mark: Points, color: str) -> dict[str, Any]:
    if mark.shape == "ring":
        return {"marker": "o", "ms": 5.5, "mfc": "none", "mec": color, "mew": 1.1}
    return {"marker": "o" if mark.shape == "dot" else "s", "ms": 2.8, "mfc": color, "mec": "#ffffff", "mew": 0.3}


_DRAW: dict[str, Any] = {
    "line": _line,
    "bars": _bars,
    "points": _points,
    "cells": _cells,
    "blocks": _blocks,
    "arcs": _arcs,
    "rule": _rule,
}
