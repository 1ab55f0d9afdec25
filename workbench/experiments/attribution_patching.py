"""Attribution patching: a first-order estimate of activation patching everywhere, from one backward pass."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from workbench import hooks
from workbench.checks import check_callable, check_indices, check_type
from workbench.errors import ArgumentError, CheckpointError, HookNameError
from workbench.experiments.activation_patching import Metric, check_values, measured, two_prompts
from workbench.experiments.cached_run import CachedRun
from workbench.model.gpt_oss import forward_from, unembed
from workbench.model.model import Model, Prompt
from workbench.progress import progress_bar
from workbench.recording.taps import Recorder
from workbench.taps import Chain
from workbench.units import with_units

EXPERTS = "blocks.*.mlp.hook_expert_out"
WIDTHS = ("d_model", "d_head")  # axes that are summed over


def attribution_patching(
    model: Model,
    clean: Prompt,
    corrupted: Prompt,
    metric: Metric,
    *,
    site: str = "resid_pre",
    positions: Sequence[int] | None = None,
) -> xr.Dataset:
    """A first-order estimate of `activation_patching` for all positions at once: (clean - corrupted) · gradient.

    Two forward passes and one backward pass give the estimate for every layer and position, layer by layer. It follows
    the gradient of the corrupted run, so it fails where the metric is not nearly linear between the two values (arXiv
    2403.00745). Routing is not differentiable: where the two runs choose other experts (`flips`), the estimate may be
    wrong from that token on. `wb.patching.activation_patching` is exact; check the largest effects with it.

    Args:
        model: the model, in float32 or float64.
        clean: the prompt that values would be copied from.
        corrupted: the prompt that is run, with as many tokens.
        metric: a differentiable function from logits (batch d_vocab) at the last position to values (batch), such as
            `wb.patching.logit_diff`.
        site: a hook point of every layer with positions and real values: `resid_pre`, `attn_out`, `mlp_out`, `z`.
            `expert_out` is an expert's contribution, its weight included.
        positions: the positions; those from the first difference on unless given.

    Returns:
        Dataset:
        `effect` (layer pos; also head for `z`, expert for `expert_out`), as a share of the difference between the runs:
        0 is the metric of the corrupted run, 1 that of the clean run. Effects of several sites add up;
        `flips` (layer pos), whether the two runs choose other experts.
        `attrs["clean"]` and `attrs["corrupted"]` are the unnormalized metrics.

    >>> gap = wb.patching.logit_diff(model, "8", "7")
    >>> clean, corrupted = (model.to_tokens(f"What is 12+{n}?") for n in (36, 35))
    >>> effects = wb.patching.attribution_patching(model, clean, corrupted, gap, site="mlp_out")
    >>> experts = wb.patching.attribution_patching(model, clean, corrupted, gap, site="expert_out")
    >>> bool(np.allclose(experts["effect"].sum("expert"), effects["effect"], atol=1e-4)), effects["flips"].dims
    (True, ('layer', 'pos'))

    Raises:
        PromptError: the prompts differ in length or do not differ at all.
        HookNameError: the site has no positions or no real values.
        CheckpointError: the model is in bfloat16.
        ArgumentError: the metric has no gradient.

    See Nanda 2023 (Attribution Patching) and Syed et al. 2023 (arXiv 2310.10348).
    """
    check_type("attribution_patching", model, Model)
    if model.dtype not in (torch.float32, torch.float64):
        raise CheckpointError(
            f"gradients need float32 or float64 (the kernels for packed experts have no gradient), and this model "
            f"runs in {model.dtype_name}; load it with wb.Model(…, dtype='float32'). Experts in MXFP4 stay packed."
        )
    point, unit = _site_axes(site)
    metric = check_callable("metric", metric)
    corrupted_ids, clean_ids, first = two_prompts(model, clean, corrupted)
    if positions is None:
        patched = np.arange(first, len(corrupted_ids))
    else:
        patched = np.array(check_indices("position", positions, len(corrupted_ids)))
    c = model.config
    points = [point] if point != EXPERTS else [point, "blocks.*.mlp.hook_expert_weights"]
    record = [hooks.at_layer(p, layer) for p in points for layer in range(c.n_layers)]
    effect, flips = [], np.zeros((c.n_layers, len(patched)), bool)
    with model.interruptible() as flag:
        corrupted_run, clean_run = CachedRun(model, corrupted_ids, record), CachedRun(model, clean_ids, record)
        with torch.enable_grad():
            corrupted_value, gradient = _output_gradient(corrupted_run, metric)
            for layer in progress_bar(reversed(range(c.n_layers)), "gradients", total=c.n_layers):
                flag.check()
                hook_point = hooks.at_layer(point if point != EXPERTS else "blocks.*.hook_mlp_out", layer)
                gradient, site_gradient = _layer_gradient(corrupted_run, layer, hook_point, gradient)
                effect.insert(
                    0,
                    _first_order(corrupted_run, clean_run, layer, point, site_gradient)[patched].double().cpu().numpy(),
                )
                same_experts = (
                    corrupted_run.routes(layer)[0].sort(-1).values == clean_run.routes(layer)[0].sort(-1).values
                )
                flips[layer] = ~same_experts.all(-1).cpu().numpy()[patched]
        with torch.inference_mode():
            clean_value = measured(metric, clean_run.logits(slice(-1, None))[:, 0])
    shares = np.stack(effect) / (clean_value - corrupted_value)
    dims = ("layer", "pos", *unit)
    coords = {"layer": np.arange(c.n_layers), "pos": patched} | {name: np.arange(shares.shape[2]) for name in unit}
    data = {"effect": (dims, shares), "flips": (("layer", "pos"), flips)}
    dataset = xr.Dataset(
        data, coords, {"site": site, "corrupted": corrupted_value, "clean": clean_value, "n": len(corrupted_ids)}
    )
    dataset["effect"].attrs = {"long_name": f"{site} from the clean run, to first order", "units": "share of the gap"}
    dataset["flips"].attrs = {"long_name": "the two runs choose other experts"}
    return with_units(dataset, effect="share of the gap", flips="true or false")


def _site_axes(site: str) -> tuple[str, tuple[str, ...]]:
    """The hook point of a site, and its axes besides layer and position."""
    point = hooks.full_name(site)
    axes = hooks.axes(point)
    if "*" not in point or axes[0] != "pos" or point.endswith("indices"):
        raise HookNameError(
            f"site {site!r} has the axes {' '.join(axes)}; attribution patching needs floating-point values "
            f"with positions in every layer: resid_pre, attn_out, mlp_out, resid_post, z or expert_out"
        )
    return point, ("expert",) if point == EXPERTS else tuple(axis for axis in axes[1:] if axis not in WIDTHS)


def _output_gradient(base: CachedRun, metric: Metric) -> tuple[float, Tensor]:
    """The metric, and its gradient with respect to the final residual stream (batch pos d_model)."""
    model = base.model
    last = base.resid(model.config.n_layers).clone().requires_grad_()
    value = check_values(metric(unembed(model.config, model.weights, last[:, -1:])[:, 0]), 1)[0]
    if not value.requires_grad:
        raise ArgumentError("this metric has no gradient; compute it from the logits with torch operations only")
    return value.item(), torch.autograd.grad(value, last)[0]


def _layer_gradient(base: CachedRun, layer: int, point: str, output_gradient: Tensor) -> tuple[Tensor, Tensor]:
    """Backward through one layer: from the gradient of its output, those of its input and of its value at `point`.

    The layer is recomputed with a graph that is freed before the next layer, so memory holds one layer's graph.
    """
    model = base.model
    x = base.resid(layer).clone().requires_grad_()
    output = hooks.at_layer("blocks.*.hook_resid_post", layer)
    recorder = Recorder([point, output], device=model.device, keep_grad=True)
    tap = Chain(*model.active_edits(), recorder)
    forward_from(replace(model.config, n_layers=layer + 1), model.weights, x, layer, tap, None, slice(0, 0))
    input_gradient, site_gradient = torch.autograd.grad(
        recorder[output], [x, recorder[point]], output_gradient, allow_unused=True, materialize_grads=True
    )
    return input_gradient, site_gradient


def _first_order(corrupted_run: CachedRun, clean_run: CachedRun, layer: int, point: str, gradient: Tensor) -> Tensor:
    """(clean - corrupted) · gradient, at every position (and head or expert)."""
    hook_point = hooks.at_layer(point, layer)
    if point == EXPERTS:
        return _expert_contributions(clean_run, layer, gradient) - _expert_contributions(corrupted_run, layer, gradient)
    change = (clean_run.seen[hook_point] - corrupted_run.seen[hook_point])[0] * gradient[0]
    return change.sum(-1) if hooks.axes(point)[-1] in WIDTHS else change


def _expert_contributions(run: CachedRun, layer: int, gradient: Tensor) -> Tensor:
    """Each expert's contribution along the gradient (pos expert); 0 where it does not run."""
    seen = run.seen
    weights = seen[hooks.at_layer("blocks.*.mlp.hook_expert_weights", layer)][0]
    chosen = run.routes(layer)[0]
    along = torch.einsum("pcd,pd->pc", seen[hooks.at_layer(EXPERTS, layer)][0], gradient[0])
    return torch.zeros_like(weights).scatter(-1, chosen, weights.gather(-1, chosen) * along)
