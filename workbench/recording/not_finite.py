"""Finds the first NaN or infinity of a run: its hook point, its position and the weight that it comes from."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from workbench import hooks
from workbench.errors import NotFinite
from workbench.model.cache import KVCache
from workbench.model.checkpoints.hf import BLOCK, EXPERTS, TOP
from workbench.model.checkpoints.tensors import Weights
from workbench.model.gpt_oss import forward
from workbench.model.kernels.lora import Adapted
from workbench.model.kernels.packed import Packed
from workbench.model.kernels.planes import Planes
from workbench.model.prefill import chunks
from workbench.taps import Chain, Tap, position_axis

if TYPE_CHECKING:
    from workbench.model.model import Model

FINAL = {"hook_embed": ("embed",), "ln_final.hook_normalized": ("ln_final",), "hook_logits": ("ln_final", "unembed")}
EXCLUDING = ("router.hook_out", "hook_attn_scores", "hook_logits")  # minus infinity excludes a choice there


def usable(logits: Tensor) -> bool:
    """Whether a token can be sampled from these logits: none is NaN or infinity, and not all are minus infinity.

    >>> usable(torch.tensor([0.0, -torch.inf])), usable(torch.tensor([0.0, torch.nan]))
    (True, False)
    """
    return bool(logits.amax(-1).isfinite().all())  # the maximum of values with a NaN is NaN


def not_finite(model: "Model", tokens: Sequence[int], *taps: Tap) -> NotFinite:
    """The error with the place of the first NaN or infinity in a pass over `tokens`, under the edits in force.

    `taps` are called first in the pass that searches for it, so an `Interrupt` can end it.
    """
    finder, edits = _Finder(), model.active_edits()
    cache = KVCache(model.config, whole=bool(edits))
    ids = torch.tensor([list(tokens)], device=model.device)
    try:
        with torch.no_grad():
            for start, stop in [(0, len(tokens))] if edits else chunks(len(tokens)):
                batch, tap = ids[:, start:stop], Chain(*taps, *edits, finder)
                forward(model.config, model.weights, batch, tap, cache, slice(-1, None))
    except _NotFiniteValue as value:
        layer = hooks.layer_of(value.name)
        where = f"{value.name}{'' if layer is None else f' (layer {layer})'}, position {value.position}"
        return NotFinite(f"no token can be sampled: the first {value.kind} is at {where}. {_reason(model, value.name)}")
    return NotFinite(
        "the logits of this run contain NaN or infinity, but a second pass over the same text does not find it. "
        "`workbench doctor` prints the kernels of this machine."
    )


def _reason(model: "Model", name: str) -> str:
    """The likely cause, and what to do."""
    if bad := sorted(_weights_with_nan(model.weights, name)):
        return f"The weight {bad[0]} contains NaN or infinity. Fetch or export the checkpoint again."
    if edits := model.active_edits():
        return f"The weights there are finite; check the edits in force: {', '.join(edit.glob for edit in edits)}."
    wider = ", or load the model with dtype=torch.float32" if model.dtype == torch.bfloat16 else ""
    return (
        f"The weights there are finite, so the values have become too large for {model.dtype_name}: check the "
        f"scale of an adapter and the norms of the weights{wider}."
    )


def _weights_with_nan(weights: Weights, name: str) -> Iterator[str]:
    """The weights behind a hook point's value, in its layer, that are not finite, by transformers' names."""
    layer = hooks.layer_of(name)
    if layer is None:
        yield from (TOP[field] for field in FINAL.get(name, TOP) if not _finite(getattr(weights, field)))
        return
    block = weights.blocks[layer]
    for part, keys in ((block, BLOCK), (block.experts, EXPERTS)):
        yield from (f"model.layers.{layer}.{key}" for field, key in keys.items() if not _finite(getattr(part, field)))


def _finite(weight: Tensor | Packed | Planes | Adapted) -> bool:
    if isinstance(weight, Adapted):
        return all(_finite(part) for part in (weight.matrix, weight.a, weight.b))
    if isinstance(weight, Planes):
        return _finite(weight.matrix)
    return isinstance(weight, Packed) or bool(weight.isfinite().all())  # a packed scale of NaN is refused on loading


class _NotFiniteValue(Exception):
    """Ends the pass at the first value that is not finite."""

    def __init__(self, name: str, position: int, kind: str):
        super().__init__(name)
        self.name, self.position, self.kind = name, position, kind


class _Finder(Tap):
    def begin(self, start: int, n: int) -> None:
        self.start = start

    def __call__(self, name: str, x: Tensor, offset: int = 0) -> Tensor:
        if x.is_floating_point() and not bool(x.isfinite().all()):
            by_position = x.movedim(position_axis(name), 0).flatten(1)
            bad = ~by_position.isfinite()
            if name.endswith(EXCLUDING):
                bad &= by_position != -torch.inf
            if bad.any():
                at = int(bad.any(1).nonzero()[0])
                kind = "NaN" if bool(by_position[at].isnan().any()) else "infinity"
                raise _NotFiniteValue(name, self.start + offset + at, kind)
        return x
