"""workbench's forward pass, one layer at a time in float32, with every hook point's value kept.

The weights are those of the loaded model: what a layer stores in bf16 is widened while that layer runs, and packed
experts stay packed. So a model of 20 billion parameters is checked in float32 without ever being held in it.
"""

from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any

import torch
from torch import Tensor

from workbench.model import gpt_oss
from workbench.model.batch import BatchRow
from workbench.model.checkpoints.residency import Residency, Resident
from workbench.model.checkpoints.tensors import Block, Experts, Weights
from workbench.model.config import Config
from workbench.model.kernels.lora import whole
from workbench.model.kernels.planes import Planes
from workbench.taps import Tap

# Computed from others or compared with none, and large.
SKIPPED = ("attn.hook_attn_scores", "attn.hook_result")


class WideBlocks(Sequence[Block]):
    """The layers of a model in `dtype`; only the last one that was used is kept."""

    def __init__(self, blocks: Sequence[Block], dtype: torch.dtype):
        self.blocks, self.dtype = blocks, dtype
        self.kept: tuple[int, Block] | None = None

    def __len__(self) -> int:
        return len(self.blocks)

    def __getitem__(self, layer: Any) -> Any:
        if self.kept is None or self.kept[0] != layer:
            self.kept = None  # two layers of a model in bf16 need 6 GB in float32
            self.kept = layer, _widened(self.blocks[layer], self.dtype)
        return self.kept[1]


class ReleaseOnly(Resident):
    """Releases the pages of a layer after its use, and reads nothing ahead: that would widen the next layer."""

    def __init__(self, residency: Residency):
        self.release = residency.release


def _widened(value: Any, dtype: torch.dtype) -> Any:
    """A Block or Experts whose floating-point tensors are in `dtype`; packed matrices stay as they are."""
    changed = {}
    for field in fields(value):
        part = getattr(value, field.name)
        if isinstance(part, Experts):
            changed[field.name] = _widened(part, dtype)
        elif isinstance(part, Tensor | Planes):
            changed[field.name] = whole(part).to(dtype)
    return replace(value, **changed)


def widened(weights: Weights, dtype: torch.dtype) -> Weights:
    """The weights with layers in `dtype`; the embedding and the unembedding are left as they are."""
    return replace(weights, blocks=WideBlocks(weights.blocks, dtype), residency=ReleaseOnly(weights.residency))


class _LayerDone(Exception):  # it ends a pass, and is no error
    pass


class _Keep(Tap):
    """Keeps the values of one layer, and ends the pass after it."""

    def __init__(self, layer: int, everything: bool):
        self.prefix, self.everything = f"blocks.{layer}.", everything
        self.values: dict[str, Tensor] = {}

    def wants(self, name: str) -> bool:
        return self.everything and not name.endswith(SKIPPED) and name != "hook_logits"

    def __call__(self, name: str, x: Tensor, offset: int = 0) -> Tensor:
        short = name.removeprefix(self.prefix)
        self.values[short] = x if offset == 0 else torch.cat((self.values[short], x), -1)
        if short == "hook_resid_post":
            raise _LayerDone
        return x


def run_layer(c: Config, weights: Weights, resid: Tensor, layer: int, *, everything: bool = True) -> dict[str, Tensor]:
    """The values at the hook points of one layer (batch first), by their names without "blocks.N."."""
    keep = _Keep(layer, everything)
    try:
        gpt_oss.forward_from(c, weights, resid, layer, keep)
    except _LayerDone:
        return keep.values
    raise AssertionError("a pass that did not reach the end of its layer")


def attention_out(c: Config, weights: Weights, normalized: Tensor, layer: int) -> Tensor:
    """The attention output (pos d_model) of one layer for normalized inputs (pos d_model)."""
    x, n_pos = normalized[None], len(normalized)
    rope = gpt_oss.rope_table(c, torch.arange(n_pos), x)
    row = BatchRow(0, n_pos, Tap(), None, slice(None))
    return gpt_oss.attention(c, weights.blocks[layer], layer, x, rope, row.tap, [row])[0]
