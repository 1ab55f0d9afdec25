"""The attention heads of a layer: all as thumbnails, one large. Patterns are sent to the browser on demand."""

import os
from collections.abc import Mapping
from copy import copy
from typing import Any

import numpy as np

from workbench.checks import check_choice, check_items, check_type, resolve_head, resolve_layer
from workbench.errors import ArgumentError
from workbench.traces import Trace, patterns
from workbench.traces.model_parts import has_sinks
from workbench.views import snapshot_html
from workbench.views.head_cells import OVER_HEADS, Head, pooled, rows
from workbench.views.outline import position_axis, token_axis
from workbench.views.payload import Payload
from workbench.views.request import index_in, range_in
from workbench.views.snapshot_svg import Scale, heat_map
from workbench.views.view import View

PREVIEW_FROM = 4096  # tokens; for longer traces a preview is sent first
CELLS = 1024  # of the large head, per side
THUMBNAIL_BYTES = 300_000  # all thumbnails of a layer
SIDE = 168  # of a thumbnail, at most, in cells and in pixels: a cell is never smaller than a pixel
NUMBERS = {"mean": -2, "max": -3}
SNAPSHOT = 192  # cells of a snapshot, per side


class Heads(View):
    """The view that `heads` makes."""

    module = "heads_view"
    call = "wb.views.heads(trace"

    def __init__(self, trace: Trace, layer: int, head: Head, beside: tuple[int, Head] | None = None, **place: Any):
        super().__init__(trace, **place)
        self.layer, self.head, self.beside = layer, head, beside
        self.quick = len(trace) > PREVIEW_FROM

    def payload(self) -> Payload:
        config, n = self.trace.config, len(self.trace)
        header, arrays = self.common()
        small, thumbs = self._layer(self.layer)
        large, cells = self._head(self.layer, self.head, 0, n, self.quick)
        header |= {
            "layer": self.layer,
            "head": _number(self.head),
            "beside": self.beside and [self.beside[0], _number(self.beside[1])],
            "heads": config["n_heads"],
            "has_sinks": has_sinks(config),
            "window_of": [config["window"] if kind == "sliding_attention" else 0 for kind in config["layer_types"]],
            "thumb": max(thumbs["thumbs"].shape[-1], 56),
            "small": small["factor"],
            "factor": large["factor"],
            "quick": self.quick,
            "hint": f"{n:,} tokens. Click a head, or a row to pin its query; ↑ ↓ layers, [ ] heads, + − zoom.",
        }
        if self.beside:
            header["beside_factor"] = (second := self._head(*self.beside, 0, n, self.quick))[0]["factor"]
            arrays |= {f"beside_{name}": values for name, values in second[1].items()}
        return header, arrays | thumbs | cells

    def query(self, kind: str, request: Mapping[str, Any]) -> Payload:
        """The reply to a query, by its kind.

        "layer": thumbnails; "head": cells of from:to, pooled to `CELLS`; "row": the exact attention of one query.
        """
        if kind not in ("layer", "head", "row"):
            return super().query(kind, request)
        config, n = self.trace.config, len(self.trace)
        layer = index_in(request, "layer", config["n_layers"])
        if kind == "layer":
            return self._layer(layer)
        name = request.get("head")
        head = name if isinstance(name, str) and name in OVER_HEADS else index_in(request, "head", config["n_heads"])
        if kind == "head":
            return self._head(layer, head, *range_in(request, n), quick=bool(request.get("quick")))
        query = index_in(request, "query", n)
        row, sink = rows(self.trace, layer, head, slice(query, query + 1))
        return {"sink": float(sink[0])}, {"row": row[0].astype("f4")}

    def snapshot(self) -> list[snapshot_html.Row]:
        return [self._snapshot_row(*each) for each in ((self.layer, self.head), self.beside) if each]

    def _snapshot_row(self, layer: int, head: Head) -> snapshot_html.Row:
        sink = ""
        if isinstance(head, str):
            cells, _, factor = pooled(self.trace, layer, head, 0, len(self.trace), SNAPSHOT, sampled=self.quick)
        else:
            [cells], factor, [mass] = patterns.view(self.trace, layer, [head], SNAPSHOT, sampled=self.quick)
            sink = f"; mean mass on the sink {mass:.2f}" if has_sinks(self.trace.config) else ""
        kind = self.trace.config["layer_types"][layer].replace("_", " ")
        downsampled = f"; downsampled (max), {factor} × {factor} tokens a cell" if factor > 1 else ""
        downsampled = f"; every {factor}th query, the largest of {factor} keys" if self.quick else downsampled
        label = _name(layer, head)
        unit = f"{kind}; row: query, column: key{downsampled}"
        scale = f"√ scale, 0 to 1{sink}"
        cells = np.sqrt(cells)
        cells[np.triu_indices(len(cells), 1)] = np.nan  # later keys
        axes = token_axis(self.trace, "query", factor), position_axis(self.trace, "key", factor)
        picture = heat_map(cells, *axes, Scale(0, 1, "blue", "attention, √ scale"))
        return snapshot_html.Row(label, unit, scale=scale, drawing=picture)

    def to_html(self, path: os.PathLike[str] | str):
        """Write the view as one page, like `View.to_html`, with exact cells: a page cannot query them later."""
        exact = copy(self)
        exact.quick = False
        return View.to_html(exact, path)

    def _layer(self, layer: int) -> Payload:
        config = self.trace.config
        size = max(16, int((THUMBNAIL_BYTES / config["n_heads"]) ** 0.5))
        view = patterns.view(self.trace, layer, size=min(size, SIDE))
        return {"factor": view.factor}, {"thumbs": _levels(view.cells), "means": view.sink.astype("f4")}

    def _head(self, layer: int, head: Head, start: int, stop: int, quick: bool = False) -> Payload:
        """Cells (query key) of the range start:stop, each the largest of factor x factor values, and sinks (query).

        With `quick` and all tokens, only the last query of each cell is used.
        """
        trace, n = self.trace, len(self.trace)
        factor = -(-(stop - start) // CELLS)
        if (start, stop) == (0, n) and not isinstance(head, str):
            cells = patterns.view(trace, layer, [head], CELLS, sampled=quick).cells[0]
            sinks = np.maximum.reduceat(_sinks(trace, layer, head), np.arange(0, n, factor))
        else:
            cells, sinks, factor = pooled(trace, layer, head, start, stop, CELLS, sampled=quick and stop - start == n)
        return {"factor": factor, "preview": quick}, {"cells": _levels(cells), "sinks": sinks.astype("f4")}


def heads(
    trace: Trace,
    layer: int | None = None,
    head: int | str = 0,
    *,
    beside: tuple[int, int | str] | None = None,
    window: tuple[int, int] | None = None,
    selected: int | None = None,
) -> Heads:
    """A view of the attention heads of a layer: thumbnails, and one head large (rows: queries, columns: keys).

    Beside the large head are the attention to its sink (query; none for a model without sinks), the edge of a sliding
    layer's window, and the keys that the pinned query attends to most. Arrow keys change the layer, `[` and `]` the
    head. The shade is the square root of the attention, so that 0.1 is distinguishable from 0. A cell shared by several
    tokens shows the largest of their values, labeled "downsampled (max)"; zoomed in, it is exact. A saved page contains
    the thumbnails of this layer and this head; the others need Python.

    Args:
        trace: a trace with patterns, or with queries and keys.
        layer: the layer shown first; without it, the first layer whose patterns were recorded.
        head: the head shown large; "mean" or "max" for the mean or the maximum over the heads of the layer.
        beside: a second head (layer, head), shown beside the first.
        window: the positions (first, stop) shown first.
        selected: the pinned position.

    Raises:
        ArgumentError: a head that is neither a number nor "mean" nor "max".
        NotRecorded: the trace has neither the patterns of that layer nor its queries and keys.
        SelectionError: the model has no such layer or head.

    >>> trace = wb.trace("What is 12+30?")
    >>> wb.views.heads(trace, layer=1, head=2, beside=(3, "mean"))
    <heads of pocket: 51 tokens>
    """
    check_type("views.heads", trace, Trace)
    n_layers = trace.config["n_layers"]
    if layer is None:
        recorded = [i for i in range(n_layers) if ("pattern", i) in trace or ("rot_q", i) in trace]
        layer = recorded[0] if recorded else 0
    layer, head, beside = resolve_layer(layer, n_layers), _checked_head(trace, head), _checked_beside(trace, beside)
    for shown in {layer, beside[0] if beside else layer}:
        patterns.rows(trace, shown, [0], slice(0, 1))
    return Heads(trace, layer, head, beside, window=window, selected=selected)


def _checked_head(trace: Trace, head: Any) -> Head:
    """A head of the trace's model, or the name of a function over the heads."""
    if isinstance(head, str):
        return check_choice("head", head, (*OVER_HEADS,))
    return resolve_head(head, trace.config["n_heads"])


def _checked_beside(trace: Trace, beside: Any) -> tuple[int, Head] | None:
    if beside is None:
        return None
    pair = check_items("beside", beside)
    if len(pair) != 2:
        raise ArgumentError(f"beside must be (layer, head), such as (3, 0) or (3, 'mean'), got {len(pair)} values.")
    return resolve_layer(pair[0], trace.config["n_layers"]), _checked_head(trace, pair[1])


def _number(head: Head) -> int:
    """The number that stands for a head in the state of the browser; heads_view.js has the same numbers."""
    return NUMBERS[head] if isinstance(head, str) else head


def _name(layer: int, head: Head) -> str:
    return f"layer {layer}, {f'{head} over heads' if isinstance(head, str) else f'head {head}'}"


def _levels(pattern: np.ndarray) -> np.ndarray:
    """The square root of the attention as levels 0 to 255."""
    return np.sqrt(np.clip(np.nan_to_num(pattern), 0, 1) * 65025.0).round().astype("u1")


def _sinks(trace: Trace, layer: int, head: int) -> np.ndarray:
    if ("sink", layer) in trace:
        return np.asarray(trace["sink", layer], np.float32)[head]
    return patterns.tile(trace, layer, [head], slice(None), slice(0, 1))[1][0]
