"""Expert knockout: how much predictions change if an expert is removed, in four ways that are not equivalent."""

from collections.abc import Sequence

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from workbench import hooks
from workbench.checks import check_choice, check_indices, check_layer, check_type
from workbench.experiments.cached_run import CachedRun, SingleHookTap, divergence
from workbench.model.cache import KVCache
from workbench.model.model import Model
from workbench.progress import progress_bar
from workbench.recording.taps import Recorder
from workbench.taps import Chain
from workbench.traces import Trace
from workbench.units import with_units

MODES = ("mask", "zero", "renorm", "mean")
MAX_ELEMENTS_PER_PASS = 1 << 22  # elements of one residual stream in a pass, at most


def expert_knockout(
    model: Model, trace: Trace, layer: int, experts: Sequence[int] | None = None, *, mode: str = "mask"
) -> xr.Dataset:
    """How much predictions change when one expert of a layer is removed, for each expert, over a text.

    A large effect may only mean that the expert runs often. Compare an expert with others of similar `chosen`.

    Args:
        model: the model.
        trace: the text.
        layer: the layer.
        experts: the experts to remove, one at a time; None for all.
        mode: "mask" removes it from the router's choice, so that the next best expert runs and weights are recomputed;
            "zero" drops its output and leaves the other weights; "renorm" drops it and rescales the other weights to
            the same sum; "mean" replaces its output by its mean output over the positions of this text where it runs.

    Returns:
        Dataset over (expert):
        `kl`, the mean over positions of KL(unedited || without it), in nats; exactly 0 if the expert never runs;
        `chosen`, the number of positions where it runs.

    >>> trace = wb.trace("What is 12+30?")
    >>> effects = wb.patching.expert_knockout(model, trace, layer=1, mode="zero")
    >>> bool((effects["kl"].values[effects["chosen"].values == 0] == 0).all())
    True

    Raises:
        ArgumentError: another mode, or no expert.
        SelectionError: an expert or layer that the model does not have.
    """
    check_type("expert_knockout", model, Model)
    check_type("expert_knockout", trace, Trace)
    c = model.config
    expert_ids = list(range(c.n_experts)) if experts is None else check_indices("expert", experts, c.n_experts)
    layer, mode = check_layer(layer, c.n_layers), check_choice("mode", mode, MODES)
    output_point = f"blocks.{layer}.mlp.hook_expert_out"
    with model.interruptible() as flag, torch.inference_mode():
        base = CachedRun(model, trace.tokens, [output_point] if mode == "mean" else ())
        chosen = base.routes(layer)[0]
        counts = [int((chosen == expert).any(-1).sum()) for expert in expert_ids]
        kl = np.zeros(len(expert_ids))
        used = [i for i, count in enumerate(counts) if count]
        rows = max(1, MAX_ELEMENTS_PER_PASS // (len(base) * c.d_model))
        last = hooks.at_layer("blocks.*.hook_resid_post", c.n_layers - 1)
        for start in progress_bar(range(0, len(used), rows), desc="knocking out"):
            flag.check()
            batch = used[start : start + rows]
            tap = _WithoutExpert(layer, [expert_ids[i] for i in batch], mode, base)
            recorder = Recorder([last], device=model.device)
            resid = base.resid(layer).expand(len(batch), -1, -1)
            model.forward_from(resid, layer, Chain(tap, recorder), KVCache(c), slice(0, 0))
            change = divergence(model, base.resid(c.n_layers).expand_as(recorder[last]), recorder[last])
            kl[batch] = change.double().mean(1).cpu()
    coords = {"expert": expert_ids}
    data = {"kl": ("expert", kl), "chosen": ("expert", np.array(counts))}
    dataset = xr.Dataset(data, coords, {"layer": layer, "mode": mode, "n": len(trace)})
    return with_units(dataset, kl="nats", chosen="positions")


class _WithoutExpert(SingleHookTap):
    """In row i of the pass, expert i is removed."""

    def __init__(self, layer: int, experts: Sequence[int], mode: str, base: CachedRun):
        self.experts, self.mode = torch.tensor(experts, device=base.model.device), mode
        ending = {"mask": "router.hook_out", "mean": "hook_expert_out"}.get(mode, "hook_expert_weights")
        self.name = f"blocks.{layer}.mlp.{ending}"
        self.chosen = base.routes(layer)[0]
        self.means: list[Tensor] = []
        if mode == "mean":
            outputs = base.seen[self.name][0]
            self.means = [outputs[self.chosen == expert].mean(0) for expert in self.experts]

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
