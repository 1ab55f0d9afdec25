"""What is missed when an expert is taken away, in four ways that are not the same."""

from collections.abc import Sequence

import numpy as np
import torch
import xarray as xr
from torch import Tensor
from tqdm.auto import tqdm

from workbench import hooks
from workbench.checks import check_expert, check_layer
from workbench.errors import EditError
from workbench.experiments.cached_run import CachedRun, SingleHookTap, divergence
from workbench.model.cache import KVCache
from workbench.model.model import Model
from workbench.recording.taps import Recorder
from workbench.taps import Chain
from workbench.traces import Trace

MODES = ("mask", "zero", "renorm", "mean")
WORK = 1 << 22  # numbers of one residual stream in a pass, at most


def expert_knockout(
    model: Model, trace: Trace, layer: int, experts: Sequence[int] | None = None, *, mode: str = "mask"
) -> xr.Dataset:
    """How much worse each expert of a layer could be spared (expert), read over a text.

    `kl` is the mean of KL(as it was || without it) over all positions, in nats; `chosen` at how many positions the
    expert runs: where none, `kl` is exactly 0. Compare an expert with others of like load, which is what an expert of
    this layer is worth by being used as often. Modes:

    * `mask`: it is never chosen; the next best runs in its place, with weights made anew.
    * `zero`: what it writes is dropped, the others keep their weights.
    * `renorm`: it is dropped, and the others share its weight.
    * `mean`: it writes what it writes on average, over the positions of this text where it runs.

    >>> trace = wb.trace("What is 12+30?")
    >>> found = wb.patching.expert_knockout(model, trace, layer=1, mode="zero")
    >>> bool((found["kl"].values[found["chosen"].values == 0] == 0).all())
    True

    Raises EditError for another mode and without experts, SelectionError for an expert or a layer that the model does
    not have.
    """
    c = model.config
    wanted = list(range(c.n_experts)) if experts is None else [check_expert(e, c.n_experts) for e in experts]
    if mode not in MODES:
        raise EditError(f"mode is one of {', '.join(MODES)}, not {mode!r}")
    layer = check_layer(layer, c.n_layers)
    if not wanted:
        raise EditError("experts is empty: give at least one expert, or None for all of them.")
    here = f"blocks.{layer}.mlp.hook_expert_out"
    with model.interruptible() as flag, torch.inference_mode():
        plain = CachedRun(model, trace.tokens, [here] if mode == "mean" else ())
        chosen = plain.routes(layer)[0]
        counts = [int((chosen == expert).any(-1).sum()) for expert in wanted]
        kl = np.zeros(len(wanted))
        used = [i for i, count in enumerate(counts) if count]
        rows = max(1, WORK // (len(plain) * c.d_model))
        last = hooks.at_layer("blocks.*.hook_resid_post", c.n_layers - 1)
        for start in tqdm(range(0, len(used), rows), desc="knocking out", leave=False, disable=None):
            flag.check()
            part = used[start : start + rows]
            tap = _Without(layer, [wanted[i] for i in part], mode, plain)
            seen = Recorder([last], device=model.device)
            resid = plain.resid(layer).expand(len(part), -1, -1)
            model.forward_from(resid, layer, Chain(tap, seen), KVCache(c), slice(0, 0))
            change = divergence(model, plain.resid(c.n_layers).expand_as(seen[last]), seen[last])
            kl[part] = change.double().mean(1).cpu()
    coords = {"expert": wanted}
    data = {"kl": ("expert", kl), "chosen": ("expert", np.array(counts))}
    found = xr.Dataset(data, coords, {"layer": layer, "mode": mode, "n": len(trace)})
    found["kl"].attrs["units"], found["chosen"].attrs["units"] = "nats", "positions"
    return found


class _Without(SingleHookTap):
    """Row i of the pass is without the i-th expert."""

    def __init__(self, layer: int, experts: Sequence[int], mode: str, plain: CachedRun):
        self.experts, self.mode = torch.tensor(experts, device=plain.model.device), mode
        ending = {"mask": "router.hook_out", "mean": "hook_expert_out"}.get(mode, "hook_expert_weights")
        self.name = f"blocks.{layer}.mlp.{ending}"
        self.chosen = plain.routes(layer)[0]
        self.means: list[Tensor] = []
        if mode == "mean":
            wrote = plain.seen[self.name][0]
            self.means = [wrote[self.chosen == expert].mean(0) for expert in self.experts]

    def changed(self, x: Tensor) -> Tensor:
        row = torch.arange(len(self.experts), device=x.device)
        if self.mode == "mean":
            for i, (expert, mean) in enumerate(zip(self.experts, self.means)):
                x[i][self.chosen == expert] = mean
        elif self.mode == "mask":
            x[row, :, self.experts] = -torch.inf
        else:
            before = x.sum(-1, keepdim=True)
            x[row, :, self.experts] = 0
            if self.mode == "renorm":
                x *= before / x.sum(-1, keepdim=True)
        return x
