"""The internal form of the weights: plain tensors, all matrices as [out, in]."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from workbench.model.checkpoints.residency import RESIDENT, Residency
from workbench.model.config import Config
from workbench.model.kernels.lora import Adapted, whole
from workbench.model.kernels.packed import Matrices
from workbench.model.kernels.planes import Planes
from workbench.model.kernels.screen import Screen

Dense = Tensor | Planes | Adapted


@dataclass(frozen=True, slots=True)
class Experts:
    """All experts of one layer, packed or dequantized. Rows of `up` are interleaved: gate 0, up 0, gate 1, up 1, …"""

    up: Matrices | Adapted  # expert 2*d_mlp d_model
    up_bias: Tensor  # expert 2*d_mlp
    down: Matrices | Adapted  # expert d_model d_mlp
    down_bias: Tensor  # expert d_model


@dataclass(frozen=True, slots=True)
class Block:
    """One layer. A `Dense` matrix may have a 12-bit copy and carry an adapter's low-rank change, which `whole` adds."""

    ln1: Tensor  # d_model
    w_q: Dense  # head*d_head d_model
    b_q: Tensor
    w_k: Dense  # kv_head*d_head d_model
    b_k: Tensor
    w_v: Dense
    b_v: Tensor
    sinks: Tensor  # head
    w_o: Dense  # d_model head*d_head
    b_o: Tensor
    ln2: Tensor  # d_model
    w_router: Dense  # expert d_model
    b_router: Tensor  # expert
    experts: Experts

    def whole(self, name: str) -> Tensor:
        """The matrix `name` ("w_q", "w_o", "w_router" …) as the model uses it, an adapter's change included."""
        return whole(getattr(self, name))


@dataclass(frozen=True, slots=True)
class Weights:
    """All tensors of a model."""

    embed: Tensor  # d_vocab d_model
    blocks: Sequence[Block]
    ln_final: Tensor  # d_model
    unembed: Tensor  # d_vocab d_model
    screen: Screen | None = None  # of `unembed`: finds the next token without all logits
    residency: Residency = RESIDENT  # gets reports of the weights that a pass is about to use, or has used


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A loaded model: its weights, its config, and its origin."""

    config: Config
    weights: Weights
    name: str  # "pocket", "openai/gpt-oss-20b", or the folder's name
    folder: Path | None  # searched for tokenizer.json and chat_template.jinja
    format: str  # "hf-mxfp4" | "hf-bf16" | "original" | "gguf" | "transformers object"
    digest: str  # of the weights; `digest.py` says how
    stop_ids: tuple[int, ...]  # eos ids that config.json and generation_config.json name
