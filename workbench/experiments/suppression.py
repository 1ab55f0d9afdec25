"""Which thoughts matter: each step is hidden from what follows, and what changes is measured step by step."""

from collections.abc import Sequence

import numpy as np
import torch
import xarray as xr
from torch import Tensor
from tqdm.auto import tqdm

from workbench import hooks
from workbench.errors import ArgumentError, NotRecorded
from workbench.experiments.cached_run import CachedRun, divergence
from workbench.model.model import Model
from workbench.taps import Chain, Tap
from workbench.traces import Trace
from workbench.traces.steps import Step, segment_slices

VARIANTS = ("later", "all")


class MaskKeys(Tap):
    """No query from position `after` on sees the keys in `keys`, in any layer and head; the sink takes what is left."""

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
    """Experts are those that ran in another reading, from position `start` on; with `weights`, as heavy as there."""

    def __init__(self, reading: CachedRun, start: int, *, weights: bool):
        self.reading, self.start, self.weights = reading, start, weights

    def __call__(self, name: str, x: Tensor, offset: int = 0) -> Tensor:
        if name.endswith("mlp.hook_expert_indices") or (self.weights and name.endswith("mlp.hook_expert_weights")):
            return self.reading.seen[name][:, self.start : self.start + x.shape[1]].expand_as(x)
        return x


def suppression(
    model: Model,
    trace: Trace,
    segments: Sequence[Step | slice] | None = None,
    *,
    queries: str = "later",
    split_routing: bool = False,
) -> xr.Dataset:
    """How much hiding one step changes what is predicted in another (step key_step); segments are its steps, or yours.

    The step `key_step` is hidden from every query after it (`queries="later"`), in all layers and heads. `effect` is
    the mean of KL(as it was || hidden) over the predictions of the tokens of `step`, each made at the token before, in
    nats; `routing` the share of the experts at those tokens that are others then, a mean over layers. SweepCheckpoint
    on and above the diagonal are exactly 0. `by_token` (pos key_step) is that KL for the prediction of each single
    token. With `queries="all"` the step is hidden from its own tokens too, as in arXiv 2506.19143, and the diagonal is
    not 0.

    With `split_routing=True`, each effect is also split, by two more runs whose experts are held: `content`, with the
    experts and weights of the plain run; `reweighting`, what free weights add; `rerouting`, what free experts add. The
    three sum to `effect`. One pass over the rest of the text for each step, three with `split_routing`.

    >>> trace = wb.trace("What is 12+30?")
    >>> found = wb.reasoning.suppression(model, trace, [slice(0, 12), slice(12, 24), slice(24, 30)])
    >>> found["effect"].dims, float(found["effect"][0, 1]), bool(found["effect"][2, 0] > 0)
    (('step', 'key_step'), 0.0, True)

    Raises NotRecorded if there are fewer than two segments, PromptError for a part that is no stretch of positions,
    ArgumentError for another `queries`.
    """
    if queries not in VARIANTS:
        raise ArgumentError(f"queries must be 'later' or 'all', got {queries!r}.")
    cut = segment_slices(trace, segments)
    if len(cut) < 2:
        raise NotRecorded(
            f"one step acts on another: two are needed, and there are {len(cut)}; give `segments` as slices"
        )
    n = len(cut)
    figures = {"effect": np.zeros((n, n)), "routing": np.zeros((n, n))}
    by_token = np.zeros((len(trace), n))
    if split_routing:
        figures |= {name: np.zeros((n, n)) for name in ("content", "reweighting", "rerouting")}
    weights = [hooks.at_layer("blocks.*.mlp.hook_expert_weights", layer) for layer in range(model.config.n_layers)]
    with model.interruptible() as flag, torch.inference_mode():
        plain = CachedRun(model, trace.tokens, weights if split_routing else ())
        for j, part in enumerate(tqdm(cut, desc="hiding steps", unit="step", leave=False, disable=None)):
            flag.check()
            start = part.start if queries == "all" else part.stop
            if start >= len(plain):
                continue
            hide = MaskKeys(part, start)
            effect, moved = _change(plain, start, hide)
            by_step = {"effect": effect, "routing": moved}
            by_token[start + 1 :, j] = effect[:-1]  # a token is predicted at the one before
            if split_routing:
                held, _ = _change(plain, start, Chain(hide, FrozenRouting(plain, start, weights=True)))
                free, _ = _change(plain, start, Chain(hide, FrozenRouting(plain, start, weights=False)))
                by_step |= {"content": held, "reweighting": free - held, "rerouting": effect - free}
            for name, values in by_step.items():
                shift = start + (name != "routing")
                for i, other in enumerate(cut):
                    at = values[max(other.start - shift, 0) : max(other.stop - shift, 0)]
                    figures[name][i, j] = at.sum() / max(other.stop - other.start, 1)
    dims = ("step", "key_step")
    data = {name: (dims, values) for name, values in figures.items()} | {"by_token": (("pos", "key_step"), by_token)}
    found = xr.Dataset(data, attrs={"queries": queries, "n": n})
    for name in found.data_vars:
        found[name].attrs["units"] = "share of experts" if name == "routing" else "nats"
    return found


def _change(plain: CachedRun, start: int, tap: Tap) -> tuple[np.ndarray, np.ndarray]:
    """From `start` on, position by position: KL from the plain reading, and the share of experts that are others."""
    model, n_layers = plain.model, plain.model.config.n_layers
    seen = plain.rerun_from(start, tap)
    last = hooks.at_layer("blocks.*.hook_resid_post", n_layers - 1)
    kl = divergence(model, plain.resid(n_layers)[:, start:], seen[last])[0]
    moved = torch.zeros_like(kl)
    for layer in range(n_layers):
        now = seen[hooks.at_layer("blocks.*.mlp.hook_expert_indices", layer)][0]
        before = plain.routes(layer)[0, start:]
        same = (now[:, :, None] == before[:, None]).any(-1).float().mean(-1)
        moved += (1 - same) / n_layers
    return kl.double().cpu().numpy(), moved.double().cpu().numpy()
