"""The tensors of a checkpoint straight from its bytes, under transformers' names.

This is the second reading that workbench's loaders are compared with, so it shares no code with them: safetensors and
gguf give the stored bytes, and MXFP4 is computed from its published definition (OCP Microscaling Formats v1.0, 2023):
a value is a 4-bit float times 2 to the power of its block's scale byte minus 127.
"""

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor

FP4 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32)
_BYTES = np.arange(256)
PAIRS = np.stack((FP4[_BYTES & 15], FP4[_BYTES >> 4]), -1).view(np.uint64)[:, 0]  # the two values of each byte
GATE_UP, DOWN = "gate_up_proj", "down_proj"


class RawTensors(Protocol):
    """The tensors of one checkpoint."""

    def tensor(self, name: str) -> Tensor:
        """A tensor outside the experts' matrices, by transformers' name, in float32."""
        ...

    def rows(self, name: str, start: int, stop: int) -> Tensor:
        """Some rows of the embedding or unembedding, in float32."""
        ...

    def expert(self, layer: int, name: str, expert: int) -> Tensor:
        """The matrix `gate_up_proj` or `down_proj` of one expert, [out, in], in float32."""
        ...


def open_raw(path: Path, layout: str, n_rows: tuple[int, int, int]) -> RawTensors:
    """The tensors of the checkpoint at `path`; `n_rows` are the rows of q, k and v, which OpenAI stores as one."""
    if layout == "gguf":
        return GgufTensors(path)
    if layout == "original":
        return OriginalTensors(Shards(file for file in sorted(path.iterdir()) if file.suffix == ".safetensors"), n_rows)
    return HuggingFaceTensors(_safetensors(path))


def gguf_pieces(file: Path) -> list[Path]:
    """The files of a model that llama.cpp split: NAME-00001-of-00003.gguf and so on; or the one file."""
    name = re.fullmatch(r"(.+)-\d{5}-of-(\d{5})", file.stem)
    n = int(name[2]) if name else 1
    return [file.with_name(f"{name[1]}-{i + 1:05}-of-{n:05}.gguf") for i in range(n)] if name and n > 1 else [file]


def mxfp4(blocks: np.ndarray, scales: np.ndarray) -> Tensor:
    """The float32 values of MXFP4 blocks (row block 16) and scales (row block): 32 values a block, low nibble first.

    >>> mxfp4(np.array([[[0x2B, 0xF1] + [0] * 14]], np.uint8), np.array([[122]], np.uint8))[0, :4].tolist()
    [-0.046875, 0.03125, 0.015625, -0.1875]
    """
    values = PAIRS[blocks].view(np.float32)
    with np.errstate(over="ignore", invalid="ignore"):  # 2 to the power of 128 is infinite in float32
        values *= np.ldexp(np.float32(1), scales.astype(np.int32) - 127)[..., None]
    return torch.from_numpy(values.reshape(*blocks.shape[:-2], -1))


class Shards:
    """All tensors of some safetensors files, by name; nothing is read before it is asked for."""

    def __init__(self, files: Iterable[Path]):
        self.opened = [safe_open(file, framework="pt") for file in files]
        self.shard_of = {name: shard for shard in self.opened for name in shard.keys()}  # noqa: SIM118

    def __contains__(self, name: str) -> bool:
        return name in self.shard_of

    def whole(self, name: str) -> Tensor:
        return self.shard_of[name].get_tensor(name)

    def part(self, name: str, at: Any) -> Tensor:
        return self.shard_of[name].get_slice(name)[at]


def _safetensors(folder: Path) -> Shards:
    index = folder / "model.safetensors.index.json"
    if (folder / "model.safetensors").exists():
        return Shards([folder / "model.safetensors"])
    if not index.exists():
        return Shards(sorted(folder.glob("model*.safetensors")))
    names = set(json.loads(index.read_text("utf-8"))["weight_map"].values())
    return Shards(folder / name for name in sorted(names))


class HuggingFaceTensors:
    """Hugging Face's layout, with experts in MXFP4 or as transformers saves them in bf16: [expert, in, out]."""

    def __init__(self, shards: Shards):
        self.shards = shards

    def tensor(self, name: str) -> Tensor:
        return self.shards.whole(name).float()

    def rows(self, name: str, start: int, stop: int) -> Tensor:
        return self.shards.part(name, slice(start, stop)).float()

    def expert(self, layer: int, name: str, expert: int) -> Tensor:
        full = f"model.layers.{layer}.mlp.experts.{name}"
        if full in self.shards:
            return self.shards.part(full, expert).float().T
        blocks, scales = (self.shards.part(full + end, expert).numpy() for end in ("_blocks", "_scales"))
        return mxfp4(blocks, scales)


class OriginalTensors:
    """OpenAI's own layout: q, k and v in one matrix."""

    TOP: ClassVar = {
        "model.embed_tokens.weight": "embedding.weight",
        "lm_head.weight": "unembedding.weight",
        "model.norm.weight": "norm.scale",
    }
    LAYER: ClassVar = {
        "input_layernorm.weight": "attn.norm.scale",
        "self_attn.sinks": "attn.sinks",
        "self_attn.o_proj.weight": "attn.out.weight",
        "self_attn.o_proj.bias": "attn.out.bias",
        "post_attention_layernorm.weight": "mlp.norm.scale",
        "mlp.router.weight": "mlp.gate.weight",
        "mlp.router.bias": "mlp.gate.bias",
        "mlp.experts.gate_up_proj_bias": "mlp.mlp1_bias",
        "mlp.experts.down_proj_bias": "mlp.mlp2_bias",
    }
    EXPERTS: ClassVar = {GATE_UP: "mlp1_weight", DOWN: "mlp2_weight"}

    def __init__(self, shards: Shards, n_rows: tuple[int, int, int]):
        q, k, v = n_rows
        self.shards = shards
        self.slices = {"q": slice(0, q), "k": slice(q, q + k), "v": slice(q + k, q + k + v)}

    def tensor(self, name: str) -> Tensor:
        if name in self.TOP:
            return self.shards.whole(self.TOP[name]).float()
        layer, part = name.removeprefix("model.layers.").split(".", 1)
        if part in self.LAYER:
            return self.shards.whole(f"block.{layer}.{self.LAYER[part]}").float()
        which, kind = part.removeprefix("self_attn.").split("_proj.")
        return self.shards.part(f"block.{layer}.attn.qkv.{kind}", self.slices[which]).float()

    def rows(self, name: str, start: int, stop: int) -> Tensor:
        return self.shards.part(self.TOP[name], slice(start, stop)).float()

    def expert(self, layer: int, name: str, expert: int) -> Tensor:
        full = f"block.{layer}.mlp.{self.EXPERTS[name]}"
        if full in self.shards:
            return self.shards.part(full, expert).float()
        return mxfp4(*(self.shards.part(full + end, expert).numpy() for end in (".blocks", ".scales")))


class GgufTensors:
    """A .gguf of llama.cpp, with all its pieces: gate and up apart, any type that the package gguf dequantizes."""

    TOP: ClassVar = {
        "model.embed_tokens.weight": "token_embd.weight",
        "lm_head.weight": "output.weight",
        "model.norm.weight": "output_norm.weight",
    }
    LAYER: ClassVar = {
        "input_layernorm.weight": "attn_norm.weight",
        "self_attn.sinks": "attn_sinks.weight",
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output",
        "post_attention_layernorm.weight": "post_attention_norm.weight",
        "mlp.router": "ffn_gate_inp",
    }

    def __init__(self, file: Path):
        from gguf import GGUFReader, quants

        self.dequantize = quants.dequantize
        self.readers = [GGUFReader(str(piece)) for piece in gguf_pieces(file)]
        self.tensors = {tensor.name: tensor for reader in self.readers for tensor in reader.tensors}

    def tensor(self, name: str) -> Tensor:
        if name in self.TOP:
            return self._values(self.TOP[name])
        layer, part = name.removeprefix("model.layers.").split(".", 1)
        if part == "mlp.experts.gate_up_proj_bias":
            gate, up = (self._values(f"blk.{layer}.ffn_{half}_exps.bias") for half in ("gate", "up"))
            return torch.stack((gate, up), -1).flatten(-2)
        if part == "mlp.experts.down_proj_bias":
            return self._values(f"blk.{layer}.ffn_down_exps.bias")
        module, _, kind = part.rpartition(".")
        inside = self.LAYER.get(part) or f"{self.LAYER[module]}.{kind}"
        return self._values(f"blk.{layer}.{inside}")

    def rows(self, name: str, start: int, stop: int) -> Tensor:
        return self._values(self.TOP[name], slice(start, stop))

    def expert(self, layer: int, name: str, expert: int) -> Tensor:
        if name == DOWN:
            return self._values(f"blk.{layer}.ffn_down_exps.weight", expert)
        gate, up = (self._values(f"blk.{layer}.ffn_{half}_exps.weight", expert) for half in ("gate", "up"))
        return torch.stack((gate, up), 1).flatten(0, 1)

    def _values(self, name: str, at: Any = slice(None)) -> Tensor:
        tensor = self.tensors[name]
        return torch.from_numpy(np.array(self.dequantize(tensor.data[at], tensor.tensor_type), np.float32))
