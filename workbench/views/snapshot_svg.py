"""Pictures of snapshots as SVG: heat maps with ticks and a color scale, bands with names. Independent of traces.

They are data URLs of images, in which no script runs. The cells are a small PNG inside, enlarged without blur. Text and
lines have a gray that is readable on white and on black, since the background of a snapshot is unknown.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple
from urllib.parse import quote

import numpy as np

from workbench.text import html_of_shown, number_text
from workbench.views.snapshot_png import PALETTE, columns, data_url, levels, png, ramp_colors

MAX_CELLS = 192  # rows or columns of a heat map; more are pooled
MAX_BYTES = 24_000  # of a drawing as a URL; larger ones are pooled further
SIDE = 360  # pixels of a square heat map
WIDE = 560  # pixels of the width of any other one
HEIGHT = 110  # and of its height
GRAY = "#808080"
MAX_LABEL = 16  # letters of a row's name
_SAFE = "/+=:;,()!*' "  # characters of a drawing that need no escape in a quoted URL


class Drawing(NamedTuple):
    """An SVG and its size in pixels."""

    svg: str
    width: int
    height: int

    @property
    def url(self) -> str:
        """The drawing as a URL for `<img src="…">`."""
        return "data:image/svg+xml," + quote(self.svg, safe=_SAFE).replace("'", "%27")


@dataclass(frozen=True, slots=True)
class Axis:
    """One side of a heat map: what it counts, and the name of each row or column."""

    label: str
    names: Sequence[str]


@dataclass(frozen=True, slots=True)
class Scale:
    """The colors of a heat map: 0 is white. `ramp` is a name of snapshot_png.RAMPS."""

    low: float
    high: float
    ramp: str = "blue"
    label: str = ""


def heat_map(values: np.ndarray, rows: Axis, columns: Axis, scale: Scale, height: int = 0) -> Drawing:
    """A heat map of the values (row column), row 0 at the top, with square cells unless `height` is given.

    NaN is empty. Cells that are too many are pooled by their largest magnitude.

    >>> drawing = heat_map(np.eye(3), Axis("query", ["a 0", "b 1", "c 2"]), Axis("key", "012"), Scale(0, 1))
    >>> drawing.svg.count("<text"), len(drawing.url) < 3000
    (10, True)
    """
    limit = MAX_CELLS
    while True:
        drawing = _heat_map(_pooled(np.asarray(values, float), limit), rows, columns, scale, height)
        if len(drawing.url) <= MAX_BYTES or limit <= 24:
            return drawing
        limit = limit * 3 // 4


def _pooled(values: np.ndarray, limit: int) -> np.ndarray:
    """The values with at most `limit` rows and columns, each cell the value of largest magnitude."""
    for _ in range(2):
        high, low = columns(values, "max", limit), columns(values, "min", limit)
        values = np.where(-low > high, low, high).T
    return values


def _heat_map(cells: np.ndarray, rows: Axis, columns: Axis, scale: Scale, height: int) -> Drawing:
    count = max(len(rows.names), 1), max(len(columns.names), 1)
    if height:
        w, h = WIDE, height
    else:
        side = min(SIDE, 24 * max(count))
        w, h = (max(1, round(side * n / max(count))) for n in reversed(count))
    names = [name if len(name) <= MAX_LABEL else name[: MAX_LABEL - 1] + "…" for name in map(str, rows.names)]
    left, top = 22 + round(6.2 * max(map(len, names), default=0)), 4
    legend = max(w, 250)
    picture = png(levels(cells, scale.low, scale.high), ["", *ramp_colors(scale.ramp)])
    parts = [
        f'<rect x="{left - 0.5}" y="{top - 0.5}" width="{w + 1}" height="{h + 1}" fill="none" stroke="{GRAY}"/>',
        f'<image x="{left}" y="{top}" width="{w}" height="{h}" preserveAspectRatio="none" '
        f'image-rendering="pixelated" href="{data_url(picture)}"/>',
    ]
    parts += [
        _text(left - 5, top + (row + 0.5) * h / count[0] + 4, names[row], "end") for row in ticks(count[0], h, 14)
    ]
    widest = 8 + 6.5 * max(map(len, map(str, columns.names)), default=0)
    for column in ticks(count[1], w, widest):
        x = left + (column + 0.5) * w / count[1]
        parts.append(_text(x, top + h + 13, str(columns.names[column]), "middle"))
    parts.append(_text(left + w / 2, top + h + 28, columns.label, "middle", bold=True))
    middle = top + h / 2
    turned = f' transform="rotate(-90 9 {middle:.0f})"'
    parts.append(_text(9, middle + 4, rows.label, "middle", turned, bold=True))
    y = top + h + 36
    parts += _legend(left, y, scale)
    return Drawing(_svg(left + legend + 12, y + 26, parts), left + legend + 12, y + 26)


def ticks(count: int, length: float, spacing: float) -> range:
    """The indices that get a name: every 1st, 2nd, 5th, 10th …, so that names are `spacing` pixels apart.

    >>> ticks(98, 360, 20)
    range(0, 98, 10)
    """
    step, k = 1, 0
    while length / count * step < spacing:
        k += 1
        step = (1, 2, 5)[k % 3] * 10 ** (k // 3)
    return range(0, count, step)


def _legend(x: float, y: float, scale: Scale) -> list[str]:
    colors = ramp_colors(scale.ramp)
    bar = data_url(png(np.arange(1, len(colors) + 1, dtype="u1")[None], ["", *colors]))
    return [
        _text(x + 42, y + 9, number_text(scale.low, 3), "end"),
        f'<image x="{x + 48}" y="{y}" width="96" height="9" preserveAspectRatio="none" '
        f'image-rendering="pixelated" href="{bar}"/>',
        f'<rect x="{x + 47.5}" y="{y - 0.5}" width="97" height="10" fill="none" stroke="{GRAY}"/>',
        _text(x + 150, y + 9, f"{number_text(scale.high, 3)}  {scale.label}".rstrip(), "start"),
    ]


def bands(count: int, blocks: Sequence[tuple[int, int, int, str]], width: int) -> Drawing:
    """Blocks (start, stop, color of the palette, name) of `count` positions as one band, named where there is room.

    Below it are the positions: it is the axis of the rows that follow.

    >>> bands(10, [(0, 4, 0, "user"), (4, 10, 2, "final")], 200).svg.count("<rect")
    2
    """
    parts, count = [], max(count, 1)
    for start, stop, color, name in blocks:
        x, w = start * width / count, (stop - start) * width / count
        parts.append(f'<rect x="{x:.1f}" y="0" width="{w:.1f}" height="15" fill="#{PALETTE[color]}"/>')
        letters = int((w - 4) / 6.2)
        if letters >= 2:
            shown = name if len(name) <= letters else name[: letters - 1] + "…"
            parts.append(_text(x + 3, 11.5, shown, "start", fill="#000"))
    for position in ticks(count, width, 48):
        x = (position + 0.5) * width / count
        parts.append(_text(max(x, 4), 27, f"{position:,}", "middle" if x > 12 else "start"))
    return Drawing(_svg(width, 30, parts), width, 30)


def _text(x: float, y: float, text: str, anchor: str, more: str = "", *, bold: bool = False, fill: str = GRAY) -> str:
    weight = ' font-weight="600"' if bold else ""
    shown = html_of_shown(text)
    return f'<text x="{x:.1f}" y="{y:.1f}" fill="{fill}" text-anchor="{anchor}"{weight}{more}>{shown}</text>'


def _svg(width: int, height: int, parts: Sequence[str]) -> str:
    look = 'font-family="system-ui, DejaVu Sans, sans-serif" font-size="11" xml:space="preserve"'
    size = f'width="{width}" height="{height}" viewBox="0 0 {width} {height}"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size} {look}>{"".join(parts)}</svg>'
