"""What the weights say of heads and experts, beside what a run did: sinks, router rows, words of experts."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr

from workbench.analysis.routing import expert_load
from workbench.checks import check_layer
from workbench.errors import ArgumentError
from workbench.text import visible
from workbench.traces import Trace
from workbench.views import snapshot_html
from workbench.views.payload import Payload
from workbench.views.view import View

WORDS = 10  # of an expert or a neuron, at most
NEURONS = 64  # of an expert that are shown: those that write most


class Weights(View):
    """What `weights` gives."""

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
            picture = snapshot_html.heat(self.sinks["share"], "max", 0.0, 1.0, "brown", 96)
            label = f"learned sinks, share of {self.sinks['keys']} keys that score 0"
            rows.append(snapshot_html.Row(label, unit, picture, scale="0 to 1", height=96))
        for router in self.routers:
            words = "; ".join(f"{e}: {' '.join(words[:3])}" for e, words in enumerate(router["words"]))
            rows.append(
                snapshot_html.Row(
                    f"router of layer {router['layer']}", "preferred for", text=snapshot_html.cut(words, 3000)
                )
            )
        for one in self.experts:
            words = "; ".join(
                f"{k}: {' '.join(said[:3])}" for k, said in zip(one["neurons"], one["raised"], strict=True)
            )
            label = f"layer {one['layer']}, expert {one['expert']}"
            rows.append(snapshot_html.Row(label, "its neurons raise", text=snapshot_html.cut(words, 3000)))
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
    """What the weights say of heads and experts, beside what they did in a run of the same model.

    `sinks=wb.circuits.sink_logits(model)`: the learned sinks (layer head), over what the heads gave to them in this
    run. A click goes to that layer and head, also in views that are linked with this one.
    `routers=wb.circuits.router_tokens(model, layer)`, one or several: for which tokens each expert is preferred, how
    often by embeddings alone and how often in this run; the experts that ran at a token are marked when it is pointed
    at. `experts=wb.circuits.expert_logit_effects(model, layer, expert)`, one or several: which tokens each neuron
    raises and lowers.

    >>> wb.views.weights(trace, wb.circuits.sink_logits(model), wb.circuits.router_tokens(model, 0, k=5))
    <weights of pocket: 64 tokens>

    Raises ArgumentError if nothing is given, or what is given is of a model of another size.
    """
    several = [[each] if isinstance(each, xr.Dataset) else list(each) for each in (routers, experts)]
    if sinks is None and not any(several):
        raise ArgumentError(
            "nothing to show: give sinks=wb.circuits.sink_logits(model), routers=wb.circuits.router_tokens(model, 0), …"
        )
    config, found = trace.config, None
    given = {"sinks": sinks is not None, "routers": several[0], "experts": several[1]}
    args = "".join(f", {name}={name}" for name, there in given.items() if there)
    if sinks is not None:
        _fits(sinks, "sinks", ("logit", "share"), {"layer": config["n_layers"], "head": config["n_heads"]})
        values = {name: sinks[name].transpose("layer", "head").values.astype("f4") for name in ("logit", "share")}
        found = {"keys": int(sinks.attrs["keys"]), **values}
    rows = [_router(each, config) for each in several[0]]
    return Weights(
        trace, found, rows, [_expert(each, config) for each in several[1]], args, window=window, selected=selected
    )


def _fits(found: xr.Dataset, name: str, needs: Sequence[str], sizes: dict[str, int]) -> None:
    there = {axis: found.sizes.get(axis) for axis in sizes} if isinstance(found, xr.Dataset) else {}
    if there != sizes or not set(needs) <= set(found.data_vars):
        raise ArgumentError(
            f"{name} must hold {', '.join(needs)} with {sizes}, as this run's model has; it has {there}"
        )


def _router(found: xr.Dataset, config: dict[str, Any]) -> dict[str, Any]:
    _fits(found, "routers", ("text", "share"), {"expert": config["n_experts"]})
    texts = found["text"].transpose("expert", "rank").values[:, :WORDS]
    return {"layer": _layer(found, config), "words": _words(texts), "share": found["share"].values.tolist()}


def _expert(found: xr.Dataset, config: dict[str, Any]) -> dict[str, Any]:
    _fits(found, "experts", ("raised_text", "lowered_text", "bias_text", "norm"), {})
    order = np.argsort(-found["norm"].values, kind="stable")[:NEURONS]
    raised, lowered = (
        found[name].transpose("neuron", "rank").values[order, :WORDS] for name in ("raised_text", "lowered_text")
    )
    return {
        "layer": _layer(found, config),
        "expert": int(found.attrs["expert"]),
        "neurons": found["neuron"].values[order].tolist(),
        "norm": found["norm"].values[order].tolist(),
        "raised": _words(raised),
        "lowered": _words(lowered),
        "bias": _words(found["bias_text"].values[None, :WORDS])[0],
        "total": found.sizes["neuron"],
    }


def _layer(found: xr.Dataset, config: dict[str, Any]) -> int:
    return check_layer(int(found.attrs.get("layer", -1)), config["n_layers"])


def _words(texts: np.ndarray) -> list[list[str]]:
    return [[visible(str(text)) for text in row] for row in texts]
