"""The PNGs of snapshots: bars and heat maps, with a palette and without dependencies but numpy."""

import struct
import zlib
from base64 import b64encode

import numpy as np

WIDTH = 720  # of a row, in pixels
# Colors that are readable on white and on black, since the background of a snapshot is unknown.
PALETTE = ("0072b2", "e69f00", "009e73", "cc79a7", "56b4e9", "d55e00", "b5a800", "7a70e8", "8a8a8a")
_BAR = "7090bd"
LEVELS = 33  # colors of a ramp; odd, so that a ramp of both signs has white for 0
RAMPS = {
    "blue": ("ffffff", "0b4a86"),
    "brown": ("ffffff", "8a3c00"),
    "green": ("ffffff", "06553f"),
    "purple": ("ffffff", "4c2a85"),
    "both": ("0b5ea8", "ffffff", "b3380a"),
}


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
    level = levels(cells, low, high)
    return png(_wide(np.repeat(level, max(1, height // len(cells)), 0)), ["", *ramp_colors(ramp)])


def levels(cells: np.ndarray, low: float, high: float) -> np.ndarray:
    """The index of each cell's color: 0 for NaN, then 1 for `low` to `LEVELS` for `high`.

    >>> levels(np.array([[0.0, 1.0, np.nan]]), 0, 1)
    array([[ 1, 33,  0]], dtype=uint8)
    """
    level = np.zeros(cells.shape, "u1")
    ok = np.isfinite(cells)
    last = LEVELS - 1
    level[ok] = 1 + np.clip(np.rint((cells[ok] - low) / (high - low or 1) * last), 0, last).astype("u1")
    return level


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


def ramp_colors(name: str) -> list[str]:
    """The `LEVELS` colors of a ramp.

    >>> ramp_colors("both")[LEVELS // 2]
    'ffffff'
    """
    rgb = np.array([list(bytes.fromhex(stop)) for stop in RAMPS[name]], float)
    at = np.linspace(0, len(rgb) - 1, LEVELS)
    mixed = np.stack([np.interp(at, np.arange(len(rgb)), rgb[:, k]) for k in range(3)], 1)
    return [bytes(round(x) for x in color).hex() for color in mixed]


def data_url(picture: bytes) -> str:
    """A PNG as a URL."""
    return "data:image/png;base64," + b64encode(picture).decode()
