"""The lanes of the page: one number a token, or one a token and layer, drawn as plain SVG over one token axis.

Knows numbers and positions, and nothing of traces, text or models. What it draws has no size of its own: the columns
are stretched to the width of the page, so a position p of n lies at p/n of the width everywhere.
"""

from collections.abc import Sequence

import numpy as np

COLUMNS = 1024  # more tokens than this share columns
ROWS = 128  # more layers than this share rows
LEVELS = 10  # colours of a heat map: .q0 to .q9 in page.css
_HIGH = 40  # height of a bar lane in its own units


def columns(values: np.ndarray, keep: str, at_most: int = COLUMNS) -> np.ndarray:
    """The last axis cut to at most `at_most` columns; each keeps its "max" or "min", and NaN only if all are NaN.

    >>> columns(np.array([1.0, 5, 2, np.nan, 3, 4]), "max", 3)
    array([5., 2., 4.])
    """
    n = values.shape[-1]
    if n <= at_most:
        return values
    starts = np.arange(at_most) * n // at_most
    return (np.fmax if keep == "max" else np.fmin).reduceat(values, starts, axis=-1)


def spread(values: np.ndarray) -> tuple[float, float]:
    """The smallest and largest finite value; (0, 0) if there is none."""
    finite = values[np.isfinite(values)]
    return (float(finite.min()), float(finite.max())) if finite.size else (0.0, 0.0)


def bars(values: np.ndarray, low: float, high: float, *, hang: bool = False) -> str:
    """An SVG with a bar a column, from the bottom; with `hang`, from the top down to the value."""
    n = len(values)
    gap = 0.2 if n <= 256 else 0
    share = np.clip((values - low) / (high - low or 1), 0, 1)
    base = 0 if hang else _HIGH
    path = "".join(
        f"M{_short(i + gap / 2)} {base}V{_short(_HIGH * (1 - y))}h{_short(1 - gap)}V{base}z"
        for i, y in enumerate(share)
        if np.isfinite(y)
    )
    return _svg(n, _HIGH, f'<path class="bars" d="{path}"/>', "bar")


def heat(values: np.ndarray, low: float, high: float) -> str:
    """An SVG of the cells [layer, column], layer 0 at the bottom; a cell that is not finite stays empty."""
    n_rows, n = values.shape
    level = np.full(values.shape, -1)
    ok = np.isfinite(values)
    level[ok] = np.clip((values[ok] - low) / (high - low or 1) * LEVELS, 0, LEVELS - 1).astype(int)
    paths: list[list[str]] = [[] for _ in range(LEVELS)]
    for row, cells in enumerate(level):
        y = n_rows - 1 - row
        starts = np.flatnonzero(np.diff(cells, prepend=-2))
        stops = [*starts[1:], n]
        for start, stop in zip(starts, stops, strict=True):
            if cells[start] >= 0:
                paths[cells[start]].append(f"M{start} {y}h{stop - start}v1H{start}z")
    drawn = "".join(f'<path class="q{q}" d="{"".join(path)}"/>' for q, path in enumerate(paths) if path)
    return _svg(n, n_rows, drawn, f"heat {_tallness(n_rows)}")


def bands(n: int, stretches: Sequence[tuple[float, float, str]], ticks: Sequence[float]) -> str:
    """What lies behind all lanes: a shaded stretch (start, stop, class) a message, a hairline a step."""
    drawn = "".join(
        f'<rect class="{name}" x="{_short(start)}" width="{_short(stop - start)}" height="1"/>'
        for start, stop, name in stretches
    )
    lines = "".join(f"M{_short(tick)} 0V1" for tick in ticks)
    return _svg(n, 1, drawn + f'<path class="tick" d="{lines}"/>', "bands")


def ribbon(n: int, stretches: Sequence[tuple[int, int, str, str]]) -> str:
    """Blocks (start, stop, class, escaped label) in a row; a label shows as far as its block is wide."""
    drawn = []
    for start, stop, name, label in stretches:
        x, width = _percent(start, n), _percent(stop - start, n)
        text = f'<text x="4" y="12">{label}</text>' if label else ""
        drawn.append(
            f'<svg x="{x}" width="{width}" height="16"><title>{label}, {start}:{stop}</title>'
            f'<rect class="{name}" width="100%" height="16"/>{text}</svg>'
        )
    return f'<svg class="ribbon" role="img" aria-hidden="true">{"".join(drawn)}</svg>'


def axis(n: int) -> str:
    """The positions, at round numbers."""
    step = next(s for k in range(12) for s in (10**k, 2 * 10**k, 5 * 10**k) if n / s <= 12)
    marks = "".join(
        f'<text x="{_percent(p + 0.5, n)}" y="12">{p:,}</text>'
        for p in range(0, n, step)
        if p + step / 3 <= n or p == 0
    )
    return f'<svg class="axis" aria-hidden="true">{marks}</svg>'


def key() -> str:
    """The colours of a heat map, low to high."""
    cells = "".join(f'<rect class="q{q}" x="{q}" width="1" height="1"/>' for q in range(LEVELS))
    return _svg(LEVELS, 1, cells, "key")


def _svg(width: int, height: int, inside: str, name: str) -> str:
    return (
        f'<svg class="{name}" viewBox="0 0 {width} {height}" preserveAspectRatio="none" aria-hidden="true">'
        f"{inside}</svg>"
    )


def _tallness(rows: int) -> str:
    return "few" if rows <= 8 else "some" if rows <= 40 else "many"


def _percent(part: float, whole: int) -> str:
    return f"{100 * part / max(whole, 1):.4g}%"


def _short(x: float) -> str:
    return f"{x:.2f}".rstrip("0").rstrip(".")
