"""Weights beside their activity in a run: learned sinks, router rows, tokens that experts raise and lower."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr

from workbench.analysis.routing import expert_load
from workbench.checks import check_items, check_layer, check_type
from workbench.errors import ArgumentError
from workbench.text import visible
from workbench.traces import Trace
from workbench.views import snapshot_html
from workbench.views.outline import layer_axis
from workbench.views.payload import Payload
from workbench.views.snapshot_svg import HEIGHT, Axis, Scale, heat_map
from workbench.views.view import View

MAX_TOKENS = 10  # shown per expert or neuron
NEURONS = 64  # shown per expert: those with the largest output norm

SOURCES = {
    "sinks": "wb.circuits.sink_logits(model)",
    "routers": "wb.circuits.router_tokens(model, 0)",
    "experts": "wb.circuits.expert_logit_effects(model, 0, 0)",
}


class Weights(View):
    """The view that `weights` makes."""

    module = "weights_view"
    call = "wb.views.weights(trace"

    def __init__(
        self,
        trace: Trace,
        sinks: dict[str, Any] | None,
        routers: list[dict[str, Any]],
        experts: list[dict[str, Any]],
        args: str,
        **place: Any,
    ):
        super().__init__(trace, **place)
        self.sinks, self.routers, self.experts, self.args = sinks, routers, experts, args

    def payload(self) -> Payload:
        trace, config = self.trace, self.trace.config
        header, arrays = self.common()
        header |= {
            "args": self.args,
            "routers": self.routers,
            "experts": self.experts,
            "n_experts": config["n_experts"],
            "heads": config["n_heads"],
            "active": config["n_active"],
            "sliding": [kind == "sliding_attention" for kind in config["layer_types"]],
            "keys": self.sinks["keys"] if self.sinks else 0,
        }
        if self.sinks:
            arrays |= {"logit": self.sinks["logit"], "share": self.sinks["share"]}
        if self.sinks and all(("sink", layer) in trace for layer in range(config["n_layers"])):
            arrays["mass"] = np.stack(
                [np.asarray(trace["sink", layer], np.float32).mean(-1) for layer in range(config["n_layers"])]
            )
        if self.routers and all(("expert_indices", layer) in trace for layer in range(config["n_layers"])):
            arrays |= {
                "chosen": np.asarray(trace["expert_indices"]).astype("u2"),
                "load": expert_load(trace).values.astype("f4"),
            }
        return header, arrays

    def snapshot(self) -> list[snapshot_html.Row]:
        rows = []
        if self.sinks:
            unit = "row: layer, 0 at the bottom; column: head"
            share = np.asarray(self.sinks["share"])
            heads = Axis("head", [str(head) for head in range(share.shape[1])])
            layers = layer_axis(range(len(share))[::-1])
            picture = heat_map(share[::-1], layers, heads, Scale(0, 1, "brown", "attention to the sink"), HEIGHT)
            label = f"learned sinks: attention to the sink if {self.sinks['keys']} keys all score 0"
            rows.append(snapshot_html.Row(label, unit, drawing=picture))
        for router in self.routers:
            text = "; ".join(f"{e}: {' '.join(texts[:3])}" for e, texts in enumerate(router["texts"]))
            rows.append(
                snapshot_html.Row(
                    f"router of layer {router['layer']}",
                    "top tokens of each expert",
                    text=snapshot_html.cut(text, 3000),
                )
            )
        for expert in self.experts:
            text = "; ".join(
                f"{neuron}: {' '.join(texts[:3])}"
                for neuron, texts in zip(expert["neurons"], expert["raised"], strict=True)
            )
            label = f"layer {expert['layer']}, expert {expert['expert']}"
            rows.append(snapshot_html.Row(label, "tokens raised by each neuron", text=snapshot_html.cut(text, 3000)))
        return rows


def weights(
    trace: Trace,
    sinks: xr.Dataset | None = None,
    routers: xr.Dataset | Sequence[xr.Dataset] = (),
    experts: xr.Dataset | Sequence[xr.Dataset] = (),
    *,
    window: tuple[int, int] | None = None,
    selected: int | None = None,
) -> Weights:
    """A view of the weights of heads and experts, beside their activity in a run of the same model.

    The upper matrix shows the learned sinks (layer head), the lower one the attention to them in this run. A click on a
    cell selects its layer and head, also in linked views. For each expert, the router table shows the tokens for which
    it is preferred, how often it is preferred from the embeddings alone, and how often it ran in this run; the experts
    chosen at the hovered or pinned token are marked. The expert table shows the tokens that each neuron raises and
    lowers.

    Args:
        trace: the run.
        sinks: the result of `wb.circuits.sink_logits(model)`.
        routers: results of `wb.circuits.router_tokens(model, layer)`, one or several.
        experts: results of `wb.circuits.expert_logit_effects(model, layer, expert)`, one or several.
        window: the positions (first, stop) shown first.
        selected: the pinned position.

    Raises:
        ArgumentError: no sinks, routers or experts were passed, or their sizes are not those of the run's model.

    >>> wb.views.weights(trace, wb.circuits.sink_logits(model), wb.circuits.router_tokens(model, 0, k=5))
    <weights of pocket: 64 tokens>
    """
    check_type("views.weights", trace, Trace)
    router_list, expert_list = (
        [given] if isinstance(given, xr.Dataset) else check_items(name, given, low=0)
        for name, given in (("routers", routers), ("experts", experts))
    )
    if sinks is None and not router_list and not expert_list:
        first, second, third = (f"{name}={source}" for name, source in SOURCES.items())
        raise ArgumentError(f"nothing to show: pass {first}, {second} or {third}")
    config, sink_arrays = trace.config, None
    passed = {"sinks": sinks is not None, "routers": router_list, "experts": expert_list}
    args = "".join(f", {name}={name}" for name, value in passed.items() if value)
    if sinks is not None:
        _check_sizes(sinks, "sinks", ("logit", "share"), {"layer": config["n_layers"], "head": config["n_heads"]})
        values = {name: sinks[name].transpose("layer", "head").values.astype("f4") for name in ("logit", "share")}
        sink_arrays = {"keys": int(sinks.attrs["keys"]), **values}
    rows = [_router(each, config) for each in router_list]
    return Weights(
        trace,
        sink_arrays,
        rows,
        [_expert(each, config) for each in expert_list],
        args,
        window=window,
        selected=selected,
    )


def _check_sizes(dataset: xr.Dataset, name: str, variables: Sequence[str], sizes: dict[str, int]) -> None:
    check_type(f"views.weights: {name}", dataset, xr.Dataset, SOURCES[name])
    got = {axis: dataset.sizes.get(axis) for axis in sizes}
    if got != sizes or not set(variables) <= set(dataset.data_vars):
        raise ArgumentError(
            f"{name} must have the variables {', '.join(variables)} and the sizes of this run's model, {sizes}; "
            f"got {got}"
        )


def _router(dataset: xr.Dataset, config: dict[str, Any]) -> dict[str, Any]:
    _check_sizes(dataset, "routers", ("text", "share"), {"expert": config["n_experts"]})
    texts = dataset["text"].transpose("expert", "rank").values[:, :MAX_TOKENS]
    return {"layer": _layer(dataset, config), "texts": _visible_rows(texts), "share": dataset["share"].values.tolist()}


def _expert(dataset: xr.Dataset, config: dict[str, Any]) -> dict[str, Any]:
    _check_sizes(dataset, "experts", ("raised_text", "lowered_text", "bias_text", "norm"), {})
    order = np.argsort(-dataset["norm"].values, kind="stable")[:NEURONS]
    raised, lowered = (
        dataset[name].transpose("neuron", "rank").values[order, :MAX_TOKENS] for name in ("raised_text", "lowered_text")
    )
    return {
        "layer": _layer(dataset, config),
        "expert": int(dataset.attrs["expert"]),
        "neurons": dataset["neuron"].values[order].tolist(),
        "norm": dataset["norm"].values[order].tolist(),
        "raised": _visible_rows(raised),
        "lowered": _visible_rows(lowered),
        "bias": _visible_rows(dataset["bias_text"].values[None, :MAX_TOKENS])[0],
        "total": dataset.sizes["neuron"],
    }


def _layer(dataset: xr.Dataset, config: dict[str, Any]) -> int:
    return check_layer(int(dataset.attrs.get("layer", -1)), config["n_layers"])


def _visible_rows(texts: np.ndarray) -> list[list[str]]:
    return [[visible(str(text)) for text in row] for row in texts]
