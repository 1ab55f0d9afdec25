"""The figures of the model card, as SVG files: accuracy by family and effort, the learning curve, the sinks."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from workbench.files import atomic_write
from workbench.pocket.rendering import EFFORTS

COLORS = {"low": "#c9c9c9", "medium": "#7fa7d1", "high": "#1f5a96"}
LINES = ("#1f5a96", "#c2571a", "#2a7f3f", "#8b3a8f", "#b0892b", "#777777", "#4fa3a5", "#b03a48")
FONT = 'font-family="sans-serif" font-size="11"'


def draw(results: dict[str, Any], curve: Path | None, folder: Path) -> None:
    """Writes the figures of these results; a figure whose numbers are missing is not written."""
    if "accuracy" in results:
        atomic_write(folder / "accuracy.svg", accuracy(results["accuracy"]))
    if "routing" in results:
        atomic_write(folder / "sinks.svg", sinks(results["routing"]["sink_mean"]))
    if curve is not None:
        atomic_write(folder / "curve.svg", learning(_scored(curve)))


def _scored(curve: Path) -> list[dict[str, Any]]:
    """The lines with scores; the token counts of the second course continue those of the first."""
    before, now, scored = 0, 0, []
    for line in map(json.loads, curve.read_text(encoding="utf-8").splitlines()):
        if "plan" in line:  # a course begins
            before, now = before + now, 0
            continue
        now = line["tokens"]
        if "high" in line:
            scored.append(line | {"tokens": before + now})
    return scored


def accuracy(cells: dict[str, Any]) -> str:
    """Bars with Wilson intervals: accuracy in new wordings, by family and effort."""
    parts, rows = [], list(dict.fromkeys(name.partition("/")[0] for name in cells))
    for i, row in enumerate(rows):
        for j, effort in enumerate(EFFORTS):
            cell = cells.get(f"{row}/{effort}")
            if cell is None:
                continue
            s, x = cell["new_wordings"], 50 + i * 88 + j * 22
            height = 160 * s["share"]
            parts.append(
                f'<rect x="{x}" y="{180 - height:.1f}" width="20" height="{height:.1f}" fill="{COLORS[effort]}"/>'
                f'<line x1="{x + 10}" x2="{x + 10}" y1="{180 - 160 * s["low"]:.1f}" y2="{180 - 160 * s["high"]:.1f}" '
                f'stroke="#000"/>'
            )
        parts.append(_text(50 + i * 88 + 32, 196, row, "middle"))
    for j, effort in enumerate(EFFORTS):
        parts.append(f'<rect x="{60 + 90 * j}" y="206" width="10" height="10" fill="{COLORS[effort]}"/>')
        parts.append(_text(75 + 90 * j, 215, effort))
    width = 60 + 88 * len(rows)
    return _svg(width, 224, [*_scale(width - 14), *parts])


def learning(lines: Sequence[dict[str, Any]]) -> str:
    """The learning curve: the share of held-out problems with all target tokens most likely, at high effort."""
    last = max((line["tokens"] for line in lines), default=1)
    parts, rows = [], list(dict.fromkeys(row for line in lines for row in line["high"]))
    for i, row in enumerate(rows):
        scored = [line for line in lines if row in line["high"]]  # the third course has more rows
        points = " ".join(f"{50 + 560 * p['tokens'] / last:.1f},{180 - 160 * p['high'][row]:.1f}" for p in scored)
        color, dash = LINES[i % len(LINES)], ' stroke-dasharray="4 2"' * (i // len(LINES) % 2)
        parts.append(f'<polyline points="{points}" fill="none" stroke="{color}" stroke-width="1.5"{dash}/>')
        parts.append(_text(620, 30 + 18 * i, row, color=color))
    parts.append(_text(610, 196, f"{last / 1e6:.1f} M tokens", "end"))
    return _svg(720, max(204, 30 + 18 * len(rows)), [*_scale(610), *parts])


def sinks(mean: Sequence[Sequence[float]]) -> str:
    """One cell per head: its mean sink mass."""
    parts = []
    for layer, row in enumerate(mean):
        parts.append(_text(44, 34 + 26 * layer, f"layer {layer}", "end"))
        for head, mass in enumerate(row):
            shade = round(255 - 200 * mass)
            x, y = 50 + 52 * head, 18 + 26 * layer
            parts.append(f'<rect x="{x}" y="{y}" width="50" height="24" fill="rgb({shade},{shade},255)"/>')
            parts.append(_text(x + 25, y + 16, f"{mass:.2f}", "middle", "#000" if mass < 0.6 else "#fff"))
    return _svg(60 + 52 * len(mean[0]), 30 + 26 * len(mean), parts)


def _scale(width: int) -> list[str]:
    lines = []
    for p in (0, 0.5, 0.95, 1):
        y = 180 - 160 * p
        lines.append(f'<line x1="46" x2="{width}" y1="{y}" y2="{y}" stroke="#ddd"/>')
        if p != 1:
            lines.append(_text(42, y + 4, f"{p:g}", "end"))
    return lines


def _text(x: float, y: float, text: str, anchor: str = "start", color: str = "#000") -> str:
    return f'<text x="{x}" y="{y}" text-anchor="{anchor}" fill="{color}" {FONT}>{text}</text>'


def _svg(width: int, height: int, parts: Sequence[str]) -> str:
    box = f'xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}"'
    return f"<svg {box}>\n" + "\n".join(parts) + "\n</svg>\n"
