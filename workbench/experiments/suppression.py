"""Suppression: attention to one reasoning step is masked, and the change of later predictions is measured."""

from collections.abc import Sequence

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from workbench import hooks
from workbench.checks import check_choice, check_flag, check_type
from workbench.errors import NotRecorded
from workbench.experiments.cached_run import CachedRun, divergence
from workbench.model.model import Model
from workbench.progress import progress_bar
from workbench.taps import Chain, Tap
from workbench.traces import Trace
from workbench.traces.steps import Step, segment_slices
from workbench.units import with_units

VARIANTS = ("later", "all")


class MaskKeys(Tap):
    """Masks the keys in `keys` for all queries from position `after` on, in every layer and head; the sink remains."""

    def __init__(self, keys: slice, after: int):
        self.keys, self.after, self.start = keys, after, 0

    def wants(self, name: str) -> bool:
        return name.endswith("attn.hook_attn_scores")

    def begin(self, start: int, n: int) -> None:
        self.start = start

    def __call__(self, name: str, x: Tensor, offset: int = 0) -> Tensor:
        if not self.wants(name):
            return x
        x = x.clone()
        x[..., max(self.after - self.start, 0) :, self.keys] = -torch.inf
        return x


class FrozenRouting(Tap):
    """Uses the experts of another run from position `start` on; with `weights`, also their routing weights."""

    def __init__(self, run: CachedRun, start: int, *, weights: bool):
        self.run, self.start, self.weights = run, start, weights

    def __call__(self, name: str, x: Tensor, offset: int = 0) -> Tensor:
        if name.endswith("mlp.hook_expert_indices") or (self.weights and name.endswith("mlp.hook_expert_weights")):
            return self.run.seen[name][:, self.start : self.start + x.shape[1]].expand_as(x)
        return x


def suppression(
    model: Model,
    trace: Trace,
    segments: Sequence[Step | slice] | None = None,
    *,
    queries: str = "later",
    split_routing: bool = False,
) -> xr.Dataset:
    """How much predictions in one step change if attention to another step is masked (step key_step); Thought Anchors.

    Attention to the step `key_step` is masked in all layers and heads, and the text is rerun from there (arXiv
    2506.19143). One pass over the rest of the text per step; three with `split_routing`. The effect is on the tokens
    that the run generated. It does not show whether another continuation would have reached the same answer: see
    `wb.reasoning.resampling`.

    Args:
        model: the model.
        trace: the text.
        segments: other segments than the steps of the chain of thought.
        queries: "later" masks the step for all queries after it; "all" also for its own tokens, as in the paper.
        split_routing: split each effect by two more runs with frozen experts.

    Returns:
        Dataset over (step key_step):
        `effect`, the mean over the tokens of `step` of KL(unedited || masked), in nats, of the prediction of each
        token, which is made one position earlier. Exactly 0 on and above the diagonal (with "all": above the diagonal);
        `routing`, the share of experts at these tokens that differ from the unedited run, averaged over layers;
        `by_token` (pos key_step), the KL for the prediction of each token.
        With `split_routing`: `content`, the effect with experts and weights of the unedited run; `reweighting`, what is
        added by recomputed weights; `rerouting`, what is added by recomputed experts. They sum to `effect`.

    >>> trace = wb.trace("What is 12+30?")
    >>> effects = wb.reasoning.suppression(model, trace, [slice(0, 12), slice(12, 24), slice(24, 30)])
    >>> effects["effect"].dims, float(effects["effect"][0, 1]), bool(effects["effect"][2, 0] > 0)
    (('step', 'key_step'), 0.0, True)

    Raises:
        NotRecorded: there are fewer than two segments.
        PromptError: a segment is not a contiguous range of positions.
        ArgumentError: another `queries`.
    """
    check_type("suppression", model, Model)
    check_type("suppression", trace, Trace)
    queries, split_routing = check_choice("queries", queries, VARIANTS), check_flag("split_routing", split_routing)
    parts = segment_slices(trace, segments)
    if len(parts) < 2:
        raise NotRecorded(f"suppression needs at least two steps, got {len(parts)}; give `segments` as slices")
    n = len(parts)
    effects = {"effect": np.zeros((n, n)), "routing": np.zeros((n, n))}
    by_token = np.zeros((len(trace), n))
    if split_routing:
        effects |= {name: np.zeros((n, n)) for name in ("content", "reweighting", "rerouting")}
    weights = [hooks.at_layer("blocks.*.mlp.hook_expert_weights", layer) for layer in range(model.config.n_layers)]
    with model.interruptible() as flag, torch.inference_mode():
        base = CachedRun(model, trace.tokens, weights if split_routing else ())
        for j, part in enumerate(progress_bar(parts, desc="masking steps", unit="step")):
            flag.check()
            start = part.start if queries == "all" else part.stop
            if start >= len(base):
                continue
            mask = MaskKeys(part, start)
            effect, rerouted = _change(base, start, mask)
            by_step = {"effect": effect, "routing": rerouted}
            by_token[start + 1 :, j] = effect[:-1]  # a token is predicted one position earlier
            if split_routing:
                frozen_effect, _ = _change(base, start, Chain(mask, FrozenRouting(base, start, weights=True)))
                free_weights_effect, _ = _change(base, start, Chain(mask, FrozenRouting(base, start, weights=False)))
                by_step |= {
                    "content": frozen_effect,
                    "reweighting": free_weights_effect - frozen_effect,
                    "rerouting": effect - free_weights_effect,
                }
            for name, values in by_step.items():
                shift = start + (name != "routing")
                for i, step_slice in enumerate(parts):
                    in_step = values[max(step_slice.start - shift, 0) : max(step_slice.stop - shift, 0)]
                    effects[name][i, j] = in_step.sum() / max(step_slice.stop - step_slice.start, 1)
    dims = ("step", "key_step")
    data = {name: (dims, values) for name, values in effects.items()} | {"by_token": (("pos", "key_step"), by_token)}
    dataset = xr.Dataset(data, attrs={"queries": queries, "n": n})
    return with_units(dataset, "nats", routing="share of experts")


def _change(base: CachedRun, start: int, tap: Tap) -> tuple[np.ndarray, np.ndarray]:
    """From `start` on, by position: KL from the unedited run, and the share of experts that differ."""
    model, n_layers = base.model, base.model.config.n_layers
    recorder = base.rerun_from(start, tap)
    last = hooks.at_layer("blocks.*.hook_resid_post", n_layers - 1)
    kl = divergence(model, base.resid(n_layers)[:, start:], recorder[last])[0]
    rerouted = torch.zeros_like(kl)
    for layer in range(n_layers):
        after = recorder[hooks.at_layer("blocks.*.mlp.hook_expert_indices", layer)][0]
        before = base.routes(layer)[0, start:]
        shared = (after[:, :, None] == before[:, None]).any(-1).float().mean(-1)
        rerouted += (1 - shared) / n_layers
    return kl.double().cpu().numpy(), rerouted.double().cpu().numpy()
