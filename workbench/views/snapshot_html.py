"""Snapshots: static versions of views, as rows of HTML with small PNGs. This module is independent of traces.

A notebook saves them in its outputs. They are visible without a kernel, untrusted, on GitHub and in nbconvert's pages.
Programs that show notebooks run MathJax over HTML, which would turn `$5 and $7` of a model's text into a formula. It
skips <pre> and <code>, which every sanitizer keeps: texts are in <pre>, which also keeps white space, and labels with
such characters in <code>.
"""

import struct
import zlib
from base64 import b64encode
from dataclasses import dataclass

import numpy as np

from workbench.text import html_of_shown

WIDTH = 720  # of a row, in pixels
_WRAP = "white-space: pre-wrap; word-break: normal; overflow-wrap: anywhere"  # where styles are kept
# Colors that are readable on white and on black, since the background of a snapshot is unknown.
PALETTE = ("0072b2", "e69f00", "009e73", "cc79a7", "56b4e9", "d55e00", "b5a800", "7a70e8", "8a8a8a")
_BAR = "7090bd"
_RAMPS = {
    "blue": ("9fb4cc", "0b4a86"),
    "brown": ("d9bfa6", "8a3c00"),
    "green": ("a5c9bb", "06553f"),
    "purple": ("c3b4dd", "4c2a85"),
    "both": ("0b5ea8", "c9c9c9", "b3380a"),
}


def cut(text: str, max_length: int) -> str:
    """The text, or its first `max_length` characters and "…" if it is longer."""
    return text if len(text) <= max_length else text[:max_length] + "…"


@dataclass(frozen=True, slots=True)
class Row:
    """One row of a snapshot: label, unit, a picture (PNG) or a text, and the range of its scale.

    Text of a model in a row has gone through `workbench.text.visible`.
    """

    label: str
    unit: str = ""
    png: bytes = b""
    text: str = ""
    scale: str = ""
    height: int = 16


def columns(values: np.ndarray, keep: str, at_most: int = WIDTH) -> np.ndarray:
    """The last axis pooled to at most `at_most` columns, each the "max" or "min" of its values, ignoring NaN.

    >>> columns(np.array([1.0, 5, 2, np.nan, 3, 4]), "max", 3)
    array([5., 2., 4.])
    """
    n = values.shape[-1]
    if n <= at_most:
        return values
    starts = np.arange(at_most) * n // at_most
    return (np.fmax if keep == "max" else np.fmin).reduceat(values, starts, axis=-1)


def bars(values: np.ndarray, keep: str, low: float, high: float, height: int = 32) -> bytes:
    """A PNG with one bar per value, starting at 0, or at the end of the scale that is nearest to 0."""
    cells = columns(np.asarray(values, float), keep)
    zero = (min(max(0.0, low), high) - low) / (high - low or 1)
    share = np.clip((cells - low) / (high - low or 1), 0, 1)
    rows = (np.arange(height)[::-1, None] + 0.5) / height
    inside = (rows >= np.minimum(share, zero)) & (rows <= np.maximum(share, zero))
    return png(_wide(inside.astype("u1")), ["", _BAR])


def heat(values: np.ndarray, keep: str, low: float, high: float, ramp: str = "blue", height: int = 48) -> bytes:
    """A PNG of the cells (row column), row 0 at the bottom; NaN is transparent."""
    cells = columns(np.asarray(values, float), keep)[::-1]
    if len(cells) > height:
        cells = columns(cells.T, keep, height).T
    level = np.zeros(cells.shape, "u1")
    ok = np.isfinite(cells)
    level[ok] = 1 + np.clip((cells[ok] - low) / (high - low or 1) * 31, 0, 31).astype("u1")
    return png(_wide(np.repeat(level, max(1, height // len(cells)), 0)), ["", *_ramp(_RAMPS[ramp], 32)])


def ribbon(n: int, blocks: list[tuple[int, int, int]]) -> bytes:
    """A PNG of blocks (start, stop, index in the palette), 8 pixels high."""
    cells = np.zeros(max(n, 1), "u1")
    for start, stop, color in blocks:
        cells[start:stop] = color + 1
    at = np.arange(WIDTH) * len(cells) // WIDTH
    return png(np.repeat(cells[None, at], 8, 0), ["", *PALETTE])


def _wide(cells: np.ndarray) -> np.ndarray:
    """Columns repeated until the picture is as wide as a row, because browsers blur enlarged pictures."""
    n = cells.shape[1]
    return cells if n >= WIDTH or not n else cells[:, np.arange(WIDTH) * n // WIDTH]


def png(cells: np.ndarray, colors: list[str]) -> bytes:
    """A PNG with a palette: cells (row column) are indices into `colors`, each "rrggbb", or "" for transparent.

    >>> png(np.zeros((1, 1), "u1"), [""])[:4]
    b'\\x89PNG'
    """

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    height, width = cells.shape
    lines = np.zeros((height, width + 1), "u1")  # each line begins with its filter type, 0 for none
    lines[:, 1:] = cells
    head = struct.pack(">IIBBBBB", width, height, 8, 3, 0, 0, 0)
    palette = b"".join(bytes.fromhex(color or "000000") for color in colors)
    clear = bytes(0 if not color else 255 for color in colors)
    body = zlib.compress(lines.tobytes(), 6)
    parts = ((b"IHDR", head), (b"PLTE", palette), (b"tRNS", clear), (b"IDAT", body), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(name, data) for name, data in parts)


def _ramp(stops: tuple[str, ...], count: int) -> list[str]:
    rgb = np.array([list(bytes.fromhex(stop)) for stop in stops], float)
    at = np.linspace(0, len(stops) - 1, count)
    mixed = np.stack([np.interp(at, np.arange(len(stops)), rgb[:, k]) for k in range(3)], 1)
    return [bytes(round(x) for x in color).hex() for color in mixed]


def table(rows: list[Row]) -> str:
    """The rows as an HTML table, without script and class, which notebook viewers remove."""
    return "<table>" + "".join(map(_row, rows)) + "</table>"


def _row(row: Row) -> str:
    picture = ""
    if row.png:
        data = b64encode(row.png).decode()
        alt = html_of_shown(row.label)
        picture = f'<img src="data:image/png;base64,{data}" alt="{alt}" width="{WIDTH}" height="{row.height}">'
    label, unit, scale = map(label_html, (row.label, row.unit, row.scale))
    small = f"<br><small>{unit}</small>" if row.unit else ""
    text = f'<pre style="{_WRAP}">{html_of_shown(row.text)}</pre>' if row.text else ""
    return (  # a div in each cell, because Jupyter's style aligns cells to the right
        f'<tr><th scope="row"><div align="right">{label}{small}</div></th><td><div align="left">{picture}'
        f'{text}</div></td><td><div align="left"><small>{scale}</small></div></td></tr>'
    )


def label_html(shown: str) -> str:
    """A short text as HTML in which MathJax finds no formula, and which keeps white space.

    >>> label_html("entropy, nats"), label_html("$p$")
    ('entropy, nats', '<code>$p$</code>')
    """
    text = html_of_shown(shown)
    return f"<code>{text}</code>" if any(mark in text for mark in ("$", "\\", "  ")) else text
