"""Draws a Figure with plotly: the same numbers, limits, ticks and colors, to zoom into and to hover over."""

import textwrap
from typing import TYPE_CHECKING, Any

import numpy as np

from workbench.checks import require
from workbench.figures.labels import label
from workbench.figures.marks import Arcs, Bars, Blocks, Cells, Line, Mark, Points, Rule
from workbench.figures.theme import FAINT, INK, LABEL, NOTHING, SERIES, SMALL, TICK, TINTS, TITLE, shades

if TYPE_CHECKING:
    from workbench.figures.spec import Figure, Panel

PX = 5.0  # pixels for each mm
POINT = 1.75  # pixels for each point of type
LETTER = 0.6  # approximate width of a letter, as a share of the type size
SYMBOLS = {"dot": "circle", "ring": "circle-open", "square": "square"}
_ESCAPES = str.maketrans({"&": "&amp;", "<": "&lt;", ">": "&gt;", "$": "&#36;", "%": "&#37;"})


def inert(text: str) -> str:
    """Text that plotly shows letter for letter: no markup, no formula, no template, no invisible character.

    plotly takes <b>, <a href> and entities for markup, $…$ for a formula where MathJax is loaded, and %{…} for a
    template.

    >>> inert('<b>x</b> $y$ %{z}')
    '&lt;b&gt;x&lt;/b&gt; &#36;y&#36; &#37;{z}'
    """
    return label(text).translate(_ESCAPES)


def interactive(figure: "Figure") -> Any:
    """The figure as a `plotly.graph_objects.Figure`; raises MissingDependency without plotly."""
    graph_objects = require("plotly.graph_objects", extra="lab")
    width, height = figure.width * PX, (figure.height or 0) * PX
    notes = textwrap.wrap(figure.note, int(width / (SMALL * POINT * LETTER)))
    layout: dict[str, Any] = {
        "width": width,
        "height": height,
        "template": "none",
        "font": {"size": LABEL * POINT, "color": INK, "family": "DejaVu Sans, Verdana, sans-serif"},
        "barmode": "overlay",
        "hovermode": "closest",
        "paper_bgcolor": "#ffffff",
        "plot_bgcolor": "#ffffff",
        "margin": {"l": 70, "r": 20, "t": 75 if figure.title else 55, "b": 55 + (20 + 14 * len(notes) if notes else 0)},
        "legend": {"orientation": "h", "y": 1 + 18 / height, "yanchor": "bottom", "x": 0, "traceorder": "normal"},
        "meta": {"workbench": figure.digest},
        "shapes": [],
        "annotations": [],
    }
    if figure.title:
        layout["title"] = {"text": inert(figure.title), "font": {"size": TITLE * POINT}, "x": 0.01, "xanchor": "left"}
    traces: list[dict[str, Any]] = []
    named: set[tuple[str, int]] = set()
    for number, panel in enumerate(figure.panels):
        _panel(figure, panel, number, traces, layout, named)
    if figure.note:
        annotation = _annotation("", 0, 0, "paper", "paper", yshift=-55, xanchor="left", yanchor="top", size=SMALL)
        layout["annotations"].append(annotation | {"text": "<br>".join(map(inert, notes))})
    return graph_objects.Figure({"data": traces, "layout": layout})


def _panel(
    figure: "Figure",
    panel: "Panel",
    number: int,
    traces: list[dict[str, Any]],
    layout: dict[str, Any],
    named: set[tuple[str, int]],
) -> None:
    here = "" if number == 0 else str(number + 1)
    left, right, bottom, top = panel.bounds()
    across, down = _domain(figure, number)
    for letter, axis, ticks, ends, domain, other in (
        ("x", panel.x, panel.ticks()[0], (left, right), across, "y"),
        ("y", panel.y, panel.ticks()[1], (bottom, top), down, "x"),
    ):
        layout[f"{letter}axis{here}"] = {
            "domain": domain,
            "anchor": other + here,
            "range": ends[::-1] if axis.flipped else ends,
            "tickvals": [at for at, _ in ticks],
            "ticktext": [inert(text) for _, text in ticks],
            "tickangle": -90 if axis.small else 0,
            "tickfont": {"size": (SMALL if axis.small else TICK) * POINT},
            "title": {"text": inert(axis.label), "standoff": 6},
            "visible": not axis.hidden,
            "automargin": True,
            "showgrid": False,
            "zeroline": letter == "y" and any(isinstance(mark, Bars) for mark in panel.marks),
            "showline": True,
            "linecolor": FAINT,
            "ticks": "outside",
            "ticklen": 3,
        }
    if panel.title:
        at = {"xref": f"x{here} domain", "yref": f"y{here} domain"}
        layout["annotations"].append(
            _annotation(panel.title, 0, 1, at["xref"], at["yref"], yanchor="bottom", xanchor="left", size=LABEL)
        )
    if any(isinstance(mark, Cells) for mark in panel.marks):
        layout[f"xaxis{here}"]["constrain"] = "domain"
    for mark in panel.marks:
        for trace in _drawn(mark, here, layout, across, down):
            key = (mark.name, getattr(mark, "color", 0))
            shown = trace.pop("first", True) and bool(mark.name) and key not in named
            if shown:
                named.add(key)
            trace |= {"xaxis": "x" + here, "yaxis": "y" + here, "name": inert(mark.name)}
            if trace["type"] != "heatmap":
                trace["showlegend"] = shown
            traces.append(trace)


def _domain(figure: "Figure", number: int) -> tuple[list[float], list[float]]:
    """The part of the sheet that a panel takes, as shares (0 to 1) from the left and from below."""
    gap = 0.11
    row, column = divmod(number, figure.columns)
    panel_width = (1 - gap * (figure.columns - 1)) / figure.columns
    panels_height = 1 - min(0.08, 0.5 / len(figure.rows)) * (len(figure.rows) - 1)
    row_gap = (1 - panels_height) / max(len(figure.rows) - 1, 1)
    shares = [height / sum(figure.rows) * panels_height for height in figure.rows]
    above = sum(shares[:row]) + row_gap * row
    start = column * (panel_width + gap)
    return [start, min(start + panel_width, 1.0)], [max(1 - above - shares[row], 0.0), 1 - above]


def _drawn(mark: Mark, here: str, layout: dict[str, Any], across: list[float], down: list[float]) -> list[dict]:
    color = SERIES[mark.color] if getattr(mark, "color", -1) >= 0 else INK  # pyright: ignore[reportAttributeAccessIssue]
    if isinstance(mark, Line):
        style = {"color": color, "width": 2, "dash": "dash" if mark.dashed else "solid"}
        drawn = [{"type": "scatter", "mode": "lines", "x": _list(mark.x), "y": _list(mark.y), "line": style}]
        if mark.low is not None:
            edge = {"type": "scatter", "mode": "lines", "hoverinfo": "skip", "line": {"width": 0}, "first": False}
            tint = f"rgba({','.join(str(int(color[i : i + 2], 16)) for i in (1, 3, 5))},0.18)"
            low = edge | {"x": _list(mark.x), "y": _list(mark.low)}
            high = edge | {"x": _list(mark.x), "y": _list(mark.high), "fill": "tonexty", "fillcolor": tint}
            drawn = [low, high, *drawn]
        return drawn
    if isinstance(mark, Bars):
        bar = {"type": "bar", "x": _list(mark.x), "y": _list(mark.y - mark.base), "base": _list(mark.base)}
        return [bar | {"width": mark.width, "marker": {"color": color}, **_interval(mark)}]
    if isinstance(mark, Points):
        point = {"type": "scatter", "mode": "markers", "x": _list(mark.x), "y": _list(mark.y), **_interval(mark)}
        look = {"color": color, "symbol": SYMBOLS[mark.shape], "size": 12 if mark.shape == "ring" else 6}
        hover = {"text": [inert(text) for text in mark.text], "hoverinfo": "text+x+y"} if mark.text else {}
        return [point | {"marker": look | {"line": {"width": 2, "color": color}}} | hover]
    if isinstance(mark, Cells):
        colors = shades(mark.scale or "mass", 16)
        background = {"type": "heatmap", "z": [[0.0] * mark.values.shape[1]] * mark.values.shape[0], "showscale": False}
        cells = {
            "type": "heatmap",
            "z": [_list(row) for row in mark.values],
            "zmin": mark.low,
            "zmax": mark.high,
            "colorscale": [[i / 15, f"rgb({r},{g},{b})"] for i, (r, g, b) in enumerate(colors.tolist())],
            "hoverongaps": False,
            "colorbar": {
                "title": {"text": inert(mark.label), "side": "right"},
                "thickness": 10,
                "len": down[1] - down[0],
                "y": (down[0] + down[1]) / 2,
                "x": across[1] + 0.01,
            },
        }
        if mark.written:
            cells["texttemplate"] = f"%{{z:.{mark.decimals()}f}}"
        return [background | {"colorscale": [[0, NOTHING], [1, NOTHING]], "hoverinfo": "skip"}, cells]
    if isinstance(mark, Blocks):
        for start, stop, tint in zip(mark.start, mark.stop, mark.colors):
            layout["shapes"].append(
                {
                    "type": "rect",
                    "xref": "x" + here,
                    "yref": "y" + here,
                    "x0": float(start),
                    "x1": float(stop),
                    "y0": 0.05,
                    "y1": 0.95,
                    "fillcolor": TINTS[tint],
                    "line": {"width": 0},
                    "layer": "below",
                }
            )
        middle = (mark.start + mark.stop) / 2
        text = {"type": "scatter", "mode": "text", "x": _list(middle), "y": [0.5] * len(middle), "hoverinfo": "text"}
        return [text | {"text": [inert(label) for label in mark.text], "textfont": {"size": TICK * POINT}}]
    if isinstance(mark, Arcs):
        return [
            {
                "type": "scatter",
                "mode": "lines",
                "x": _list(x),
                "y": _list(y),
                "line": {"color": color, "width": 0.5 + 4 * share},
                "opacity": 0.3 + 0.6 * share,
                "hoverinfo": "skip",
                "first": i == 0,
            }
            for i, (x, y, share) in enumerate(mark.paths())
        ]
    assert isinstance(mark, Rule)
    line = {"type": "line", "line": {"color": FAINT, "width": 1, "dash": "dot"}}
    if mark.axis == "y":
        line |= {"xref": f"x{here} domain", "yref": "y" + here, "x0": 0, "x1": 1, "y0": mark.at, "y1": mark.at}
        annotation = _annotation(
            mark.text, 1, mark.at, f"x{here} domain", "y" + here, yanchor="bottom", xanchor="right", size=TICK
        )
    else:
        line |= {"xref": "x" + here, "yref": f"y{here} domain", "x0": mark.at, "x1": mark.at, "y0": 0, "y1": 1}
        annotation = _annotation(
            mark.text, mark.at, 1, "x" + here, f"y{here} domain", yanchor="top", xanchor="left", size=TICK
        )
    layout["shapes"].append(line)
    layout["annotations"] += [annotation] if mark.text else []
    return []


def _annotation(text: str, x: float, y: float, xref: str, yref: str, *, size: float, **more: Any) -> dict[str, Any]:
    place = {"x": x, "y": y, "xref": xref, "yref": yref, "showarrow": False, "align": "left"}
    return place | {"text": inert(text), "font": {"size": size * POINT}, **more}


def _interval(mark: Bars | Points) -> dict[str, Any]:
    if mark.low is None:
        return {}
    up, down = _list(mark.high - mark.y), _list(mark.y - mark.low)
    return {"error_y": {"type": "data", "array": up, "arrayminus": down, "color": INK, "thickness": 1, "width": 3}}


def _list(values: np.ndarray) -> list[float | None]:
    return [None if np.isnan(value) else float(value) for value in values]
