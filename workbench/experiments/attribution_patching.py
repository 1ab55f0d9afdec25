"""Attribution patching: what patching every place would do, to first order, from one pass and its gradient."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
import xarray as xr
from torch import Tensor
from tqdm.auto import tqdm

from workbench import hooks
from workbench.errors import ArgumentError, CheckpointError, HookNameError
from workbench.experiments.activation_patching import Outcome, two_prompts
from workbench.experiments.cached_run import CachedRun
from workbench.model.gpt_oss import forward_from, unembed
from workbench.model.model import Model, Prompt
from workbench.recording.taps import Recorder
from workbench.taps import Chain

EXPERTS = "blocks.*.mlp.hook_expert_out"
WIDTHS = ("d_model", "d_head")  # axes that are summed over: what is left is a place


def attribution_patching(
    model: Model,
    clean: Prompt,
    corrupted: Prompt,
    metric: Outcome,
    *,
    site: str = "resid_pre",
    positions: Sequence[int] | None = None,
) -> xr.Dataset:
    """A first-order estimate of `activation_patching`: (clean - corrupted) times the corrupted run's gradient.

    `effect` (layer pos, and head for `z`, expert for `expert_out`) is in shares of the gap, as there: 0 is the metric
    of the corrupted run, 1 that of the clean one, and `attrs` hold both. Several places together are their sum. `site`
    is any hook point of numbers with an axis of positions, in every layer: `resid_pre`, `attn_out`, `mlp_out`, `z`;
    `expert_out` is what an expert adds, its weight included. `positions` are those from the first that differs on
    unless given. Two passes and one backward pass, layer by layer, for all places together.

    The experts that run are no smooth function of anything: `flips` (layer pos) is true where the two runs choose
    others, and from such a token on the line that is followed here may lead elsewhere.
    `wb.patching.activation_patching` is exact.

    >>> gap = wb.patching.logit_diff(model, "8", "7")
    >>> clean, corrupted = (model.to_tokens(f"What is 12+{n}?") for n in (36, 35))
    >>> found = wb.patching.attribution_patching(model, clean, corrupted, gap, site="mlp_out")
    >>> experts = wb.patching.attribution_patching(model, clean, corrupted, gap, site="expert_out")
    >>> bool(np.allclose(experts["effect"].sum("expert"), found["effect"], atol=1e-4)), found["flips"].dims
    (True, ('layer', 'pos'))

    Raises PromptError as `activation_patching` does, HookNameError for another site, CheckpointError for a model in
    bfloat16, ArgumentError for an metric that has no gradient. (Nanda 2023; arXiv 2310.10348; where it fails: arXiv
    2403.00745)
    """
    if model.dtype not in (torch.float32, torch.float64):
        raise CheckpointError(
            f"gradients are taken in float32 or float64, by the reference path (the kernels for packed experts have "
            f"none), and this model runs in {model.dtype_name}: load it with wb.Model(…, dtype='float32'); experts "
            f"in MXFP4 stay packed"
        )
    point, unit = _place(site)
    ours, theirs, first = two_prompts(model, clean, corrupted)
    at = np.arange(first, len(ours)) if positions is None else np.asarray(positions, int)
    c = model.config
    wanted = [point] if point != EXPERTS else [point, "blocks.*.mlp.hook_expert_weights"]
    record = [hooks.at_layer(p, layer) for p in wanted for layer in range(c.n_layers)]
    effect, flips = [], np.zeros((c.n_layers, len(at)), bool)
    with model.interruptible() as flag:
        base, other = CachedRun(model, ours, record), CachedRun(model, theirs, record)
        with torch.enable_grad():
            before, gradient = _of_outcome(base, metric)
            for layer in tqdm(reversed(range(c.n_layers)), "gradients", c.n_layers, leave=False, disable=None):
                flag.check()
                here = hooks.at_layer(point if point != EXPERTS else "blocks.*.hook_mlp_out", layer)
                gradient, its = _of_layer(base, layer, here, gradient)
                effect.insert(0, _first_order(base, other, layer, point, its)[at].double().cpu().numpy())
                same = base.routes(layer)[0].sort(-1).values == other.routes(layer)[0].sort(-1).values
                flips[layer] = ~same.all(-1).cpu().numpy()[at]
        with torch.inference_mode():
            after = metric(other.logits(slice(-1, None))[:, 0])[0].item()
    shares = np.stack(effect) / (after - before)
    dims = ("layer", "pos", *unit)
    coords = {"layer": np.arange(c.n_layers), "pos": at} | {name: np.arange(shares.shape[2]) for name in unit}
    data = {"effect": (dims, shares), "flips": (("layer", "pos"), flips)}
    found = xr.Dataset(data, coords, {"site": site, "corrupted": before, "clean": after, "n": len(ours)})
    found["effect"].attrs = {"long_name": f"{site} from the clean run, to first order", "units": "share of the gap"}
    found["flips"].attrs = {"long_name": "the two runs choose other experts", "units": "true or false"}
    return found


def _place(site: str) -> tuple[str, tuple[str, ...]]:
    """The hook point of a site, and what its places have besides a layer and a position."""
    point = hooks.full_name(site)
    axes = hooks.axes(point)
    if "*" not in point or axes[0] != "pos" or point.endswith("indices"):
        raise HookNameError(
            f"{site!r} has the axes {' '.join(axes)}; attribution needs numbers at positions, in every layer: "
            f"resid_pre, attn_out, mlp_out, resid_post, z, expert_out"
        )
    return point, ("expert",) if point == EXPERTS else tuple(axis for axis in axes[1:] if axis not in WIDTHS)


def _of_outcome(base: CachedRun, metric: Outcome) -> tuple[float, Tensor]:
    """The metric, and its gradient by the last residual stream (batch pos d_model)."""
    model = base.model
    last = base.resid(model.config.n_layers).clone().requires_grad_()
    value = metric(unembed(model.config, model.weights, last[:, -1:])[:, 0])[0]
    if not value.requires_grad:
        raise ArgumentError(
            "this metric has no gradient: compute it from the logits with torch's operations, without plain numbers."
        )
    return value.item(), torch.autograd.grad(value, last)[0]


def _of_layer(base: CachedRun, layer: int, point: str, above: Tensor) -> tuple[Tensor, Tensor]:
    """From the gradient by what a layer leaves: that by what it reads, and that by its value at `point`.

    The layer is computed once more, with a graph, which is gone before the next is: what is held is one layer of it.
    """
    model = base.model
    x = base.resid(layer).clone().requires_grad_()
    out = hooks.at_layer("blocks.*.hook_resid_post", layer)
    seen = Recorder([point, out], device=model.device, keep_grad=True)
    tap = Chain(*model.active_edits(), seen)
    forward_from(replace(model.config, n_layers=layer + 1), model.weights, x, layer, tap, None, slice(0, 0))
    read, its = torch.autograd.grad(seen[out], [x, seen[point]], above, allow_unused=True, materialize_grads=True)
    return read, its


def _first_order(base: CachedRun, other: CachedRun, layer: int, point: str, gradient: Tensor) -> Tensor:
    """(clean - corrupted) times the gradient, at every position (and head, or expert)."""
    here = hooks.at_layer(point, layer)
    if point == EXPERTS:
        return _by_expert(other, layer, gradient) - _by_expert(base, layer, gradient)
    change = (other.seen[here] - base.seen[here])[0] * gradient[0]
    return change.sum(-1) if hooks.axes(point)[-1] in WIDTHS else change


def _by_expert(reading: CachedRun, layer: int, gradient: Tensor) -> Tensor:
    """What each expert adds along the gradient (pos expert), 0 where it does not run."""
    seen = reading.seen
    weights = seen[hooks.at_layer("blocks.*.mlp.hook_expert_weights", layer)][0]
    chosen = reading.routes(layer)[0]
    along = torch.einsum("pcd,pd->pc", seen[hooks.at_layer(EXPERTS, layer)][0], gradient[0])
    return torch.zeros_like(weights).scatter(-1, chosen, weights.gather(-1, chosen) * along)
