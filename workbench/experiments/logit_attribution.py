"""Direct logit attribution: what each component of the model writes directly into a logit."""

import numpy as np
import torch
import xarray as xr

from workbench import hooks
from workbench.checks import check_type, resolve_position
from workbench.experiments.activation_patching import token_id
from workbench.experiments.cached_run import CachedRun
from workbench.model.model import Model
from workbench.taps import Tap
from workbench.traces import Trace
from workbench.units import with_units


def logit_attribution(
    model: Model, trace: Trace, token: str | int, other: str | int | None = None, *, pos: int = -1
) -> xr.Dataset:
    """Direct logit attribution: the contributions of all components to one logit, which sum to it.

    Contributions are in logits, through the final norm with its scale held fixed, and the unembedding. They are direct
    effects only: a component that acts through later layers gets no credit for that. Use
    `wb.patching.activation_patching` for total effects.

    Args:
        model: the model.
        trace: the text.
        token: the token whose logit is attributed, as text or id.
        other: a second token; then the logit difference token - other is attributed.
        pos: the position that predicts; negative ones count from the end.

    Returns:
        Dataset:
        `embed`, the embedding's contribution;
        `heads` (layer head), each head's, without the output bias;
        `biases` (layer), that of the attention output bias;
        `experts` (layer expert), an expert's weight times its output; 0 where it did not run;
        `sources` (layer head key), each head's contribution by the position that it attends to. Attention to the sink
        contributes nothing.
        `attrs["logit"]` is the logit itself, `attrs["missing"]` by how much the sum differs from it.

    >>> trace = wb.trace("What is 12+30?")
    >>> parts = wb.residual.logit_attribution(model, trace, "2", "3", pos=len(trace) - 3)
    >>> float(abs(parts["sources"].sum("key") - parts["heads"]).max()) < 1e-4, parts.attrs["missing"] < 1e-3
    (True, True)

    Raises:
        SelectionError: there is no such position.
        PromptError: a text is not exactly one token.
    """
    check_type("logit_attribution", model, Model)
    check_type("logit_attribution", trace, Trace)
    position, c, w = resolve_position(pos, len(trace)), model.config, model.weights
    token = token_id(model, token)
    other = None if other is None else token_id(model, other)
    points = ["attn.hook_result", "attn.hook_pattern", "mlp.hook_expert_out", "mlp.hook_expert_weights"]
    layers = range(c.n_layers)
    with model.interruptible(), torch.inference_mode():
        values = [f"blocks.{layer}.attn.hook_v" for layer in layers]
        run = CachedRun(model, trace.tokens[: position + 1], values)
        recorded_points = [f"blocks.{layer}.{point}" for layer in layers for point in points]
        recorder = run.rerun_from(position, Tap(), record=["hook_embed", *recorded_points])
        resid = run.resid(c.n_layers)[0, position].double()
        direction = w.unembed[token].double()
        if other is not None:
            direction = direction - w.unembed[other].double()
        scale = torch.rsqrt(resid.square().mean() + c.eps)
        direction = direction * w.ln_final.double() * scale
        head, bias = np.zeros((c.n_layers, c.n_heads)), np.zeros(c.n_layers)
        expert = np.zeros((c.n_layers, c.n_experts))
        source = np.zeros((c.n_layers, c.n_heads, position + 1))
        for layer in layers:
            prefix, block = f"blocks.{layer}.", w.blocks[layer]
            head[layer] = (recorder[prefix + "attn.hook_result"][0, 0].double() @ direction).cpu()
            bias[layer] = float(block.b_o.double() @ direction)
            chosen = recorder[hooks.at_layer("blocks.*.mlp.hook_expert_indices", layer)][0, 0]
            expert_effect = recorder[prefix + "mlp.hook_expert_out"][0, 0].double() @ direction
            weight = recorder[prefix + "mlp.hook_expert_weights"][0, 0].double()[chosen]
            expert[layer, chosen.cpu().numpy()] = (weight * expert_effect).cpu()
            by_head = (direction @ block.whole("w_o").double()).view(c.n_heads, c.d_head)
            v = run.seen[prefix + "attn.hook_v"][0].double().repeat_interleave(c.n_heads // c.n_kv_heads, 1)
            pattern = recorder[prefix + "attn.hook_pattern"][0, :, 0].double()
            source[layer] = (pattern * torch.einsum("khd,hd->hk", v, by_head)).cpu()
        embed = float(recorder["hook_embed"][0, 0].double() @ direction)
        logit = float(resid @ direction)
    total = float(embed + head.sum() + bias.sum() + expert.sum())
    data = {
        "embed": ((), embed),
        "heads": (("layer", "head"), head),
        "biases": (("layer",), bias),
        "experts": (("layer", "expert"), expert),
        "sources": (("layer", "head", "key"), source),
    }
    sizes = {"layer": c.n_layers, "head": c.n_heads, "expert": c.n_experts, "key": position + 1}
    coords = {name: np.arange(n) for name, n in sizes.items()}
    attrs = {"pos": position, "logit": logit, "missing": abs(total - logit)}
    return with_units(xr.Dataset(data, coords, attrs), "logits")
