"""Routing: the experts chosen at each token, and their load by layer, channel and step."""

from typing import Any

import numpy as np

from workbench.analysis.routing import expert_load
from workbench.checks import check_type, resolve_layer
from workbench.traces import Trace
from workbench.views import snapshot_html
from workbench.views.outline import layer_axis, position_axis
from workbench.views.payload import Payload
from workbench.views.snapshot_svg import HEIGHT, MAX_CELLS, Axis, Scale, heat_map
from workbench.views.view import View


class Routing(View):
    """The view that `routing` makes."""

    module = "routing_view"
    call = "wb.views.routing(trace"

    def __init__(self, trace: Trace, layer: int, **place: Any):
        super().__init__(trace, **place)
        self.layer = layer

    def payload(self) -> Payload:
        header, arrays = self.common()
        routed = self.trace.layers("expert_indices")
        chosen = np.stack([self.trace["expert_indices", layer] for layer in routed])  # layer pos choice
        weights = np.stack([self.trace["expert_weights", layer] for layer in routed]).astype(np.float32)
        weights = np.take_along_axis(weights, chosen, -1)
        order = np.argsort(-weights, -1, kind="stable")
        chosen, weights = np.take_along_axis(chosen, order, -1), np.take_along_axis(weights, order, -1)
        experts = self.trace.config["n_experts"]
        header |= {"layer": self.layer, "experts": experts, "routed": list(routed)}
        arrays |= {
            "chosen": chosen.astype("u1" if experts <= 256 else "u2"),
            "weights": (np.clip(np.nan_to_num(weights), 0, 1) * 65535).round().astype("u2"),
        }
        return header, arrays

    def snapshot(self) -> list[snapshot_html.Row]:
        load = expert_load(self.trace)
        highest = float(load.max())
        experts = Axis("expert", [str(expert) for expert in range(load.sizes["expert"])])
        scale = Scale(0, highest, "brown", "share of the positions")
        layers = layer_axis(load.layer.values[::-1].tolist())
        picture = heat_map(load.values[::-1], layers, experts, scale, height=HEIGHT)
        rows = [snapshot_html.Row("expert load", "row: layer; column: expert", drawing=picture)]
        weights = np.asarray(self.trace["expert_weights", self.layer], np.float32).T  # expert pos
        downsampled = "; downsampled (max)" if len(self.trace) > MAX_CELLS else ""
        scale = Scale(0, 1, "blue", "weight of the expert")
        picture = heat_map(weights, experts, position_axis(self.trace), scale, height=HEIGHT)
        unit = f"row: expert; column: token{downsampled}"
        return [*rows, snapshot_html.Row(f"weights, layer {self.layer}", unit, drawing=picture)]


def routing(
    trace: Trace, layer: int | None = None, *, window: tuple[int, int] | None = None, selected: int | None = None
) -> Routing:
    """A view of the routing: chosen experts (layer pos choice), weights, and loads by layer, channel and step.

    The plots, from the top: the chosen experts of every layer, colored by expert; the weight of each expert of one
    layer at each token; the load of each expert (share of positions at which it runs) by layer; and its load by channel
    and step. Loads count only the tokens that pass the filter. A click on a load pins an expert: then only the tokens
    at which it runs are colored. An expert's number means nothing outside its layer.

    Args:
        trace: a run with recorded routing.
        layer: the layer shown first; the first with experts unless given.
        window: the range of positions shown first.
        selected: the pinned position.

    >>> wb.views.routing(wb.trace("What is 12+30?"), layer=3)
    <routing of pocket: 51 tokens>

    Raises NotRecorded if the trace has no routing, SelectionError if the model has no such layer.
    """
    check_type("views.routing", trace, Trace)
    n_layers = trace.config["n_layers"]
    if layer is None:
        layer = trace.layers("expert_indices")[0]
    layer = resolve_layer(layer, n_layers)
    for name in ("expert_indices", "expert_weights"):
        trace.raw((name, layer))
    return Routing(trace, layer, window=window, selected=selected)
