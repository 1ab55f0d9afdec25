"""Direct logit attribution: what each part of the model wrote straight into a logit, and from where it took it."""

import numpy as np
import torch
import xarray as xr

from workbench import hooks
from workbench.checks import resolve_position
from workbench.experiments.activation_patching import token_id
from workbench.experiments.cached_run import CachedRun
from workbench.model.model import Model
from workbench.taps import Tap
from workbench.traces import Trace


def logit_attribution(
    model: Model, trace: Trace, token: str | int, other: str | int | None = None, *, pos: int = -1
) -> xr.Dataset:
    """What every part adds to the logit of `token` at `pos` (less that of `other`): parts that sum to the logit.

    `embed`, one number; `heads` (layer head), without the bias of the output, which is `biases` (layer); `experts`
    (layer expert), its weight times what it wrote, 0 where it did not run; `sources` (layer head key), each head's part
    by the position it took it from: what went to its sink is nowhere, and so is missing from the head too. The final
    norm is held at what it was. `attrs["logit"]` is the logit itself, `attrs["missing"]` how much the sum differs.

    >>> trace = wb.trace("What is 12+30?")
    >>> found = wb.residual.logit_attribution(model, trace, "2", "3", pos=len(trace) - 3)
    >>> float(abs(found["sources"].sum("key") - found["heads"]).max()) < 1e-4, found.attrs["missing"] < 1e-3
    (True, True)

    Raises SelectionError if there is no such position, PromptError for a text that is not one token.
    """
    at, c, w = resolve_position(pos, len(trace)), model.config, model.weights
    points = ["attn.hook_result", "attn.hook_pattern", "mlp.hook_expert_out", "mlp.hook_expert_weights"]
    layers = range(c.n_layers)
    with model.interruptible(), torch.inference_mode():
        values = [f"blocks.{layer}.attn.hook_v" for layer in layers]
        text = CachedRun(model, trace.tokens[: at + 1], values)
        wanted = [f"blocks.{layer}.{point}" for layer in layers for point in points]
        seen = text.rerun_from(at, Tap(), record=["hook_embed", *wanted])
        resid = text.resid(c.n_layers)[0, at].double()
        direction = w.unembed[token_id(model, token)].double()
        if other is not None:
            direction = direction - w.unembed[token_id(model, other)].double()
        scale = torch.rsqrt(resid.square().mean() + c.eps)
        direction = direction * w.ln_final.double() * scale
        head, bias = np.zeros((c.n_layers, c.n_heads)), np.zeros(c.n_layers)
        expert = np.zeros((c.n_layers, c.n_experts))
        source = np.zeros((c.n_layers, c.n_heads, at + 1))
        for layer in layers:
            here, block = f"blocks.{layer}.", w.blocks[layer]
            head[layer] = (seen[here + "attn.hook_result"][0, 0].double() @ direction).cpu()
            bias[layer] = float(block.b_o.double() @ direction)
            chosen = seen[hooks.at_layer("blocks.*.mlp.hook_expert_indices", layer)][0, 0]
            wrote = seen[here + "mlp.hook_expert_out"][0, 0].double() @ direction
            share = seen[here + "mlp.hook_expert_weights"][0, 0].double()[chosen]
            expert[layer, chosen.cpu().numpy()] = (share * wrote).cpu()
            by_head = (direction @ block.whole("w_o").double()).view(c.n_heads, c.d_head)
            v = text.seen[here + "attn.hook_v"][0].double().repeat_interleave(c.n_heads // c.n_kv_heads, 1)
            pattern = seen[here + "attn.hook_pattern"][0, :, 0].double()
            source[layer] = (pattern * torch.einsum("khd,hd->hk", v, by_head)).cpu()
        embed = float(seen["hook_embed"][0, 0].double() @ direction)
        logit = float(resid @ direction)
    total = float(embed + head.sum() + bias.sum() + expert.sum())
    data = {
        "embed": ((), embed),
        "heads": (("layer", "head"), head),
        "biases": (("layer",), bias),
        "experts": (("layer", "expert"), expert),
        "sources": (("layer", "head", "key"), source),
    }
    sizes = {"layer": c.n_layers, "head": c.n_heads, "expert": c.n_experts, "key": at + 1}
    coords = {name: np.arange(n) for name, n in sizes.items()}
    attrs = {"units": "logits", "pos": at, "logit": logit, "missing": abs(total - logit)}
    return xr.Dataset(data, coords, attrs)
