"""Loads gpt-oss from OpenAI's own layout: the folder original/ of their repositories."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from workbench.model.checkpoints.digest import weights_digest
from workbench.model.checkpoints.folder_files import Incomplete, files_of, has_safetensors, mapped, read_json
from workbench.model.checkpoints.hf_config import DEFAULT, integer, layer_count, number
from workbench.model.checkpoints.pages import with_residency
from workbench.model.checkpoints.stop_tokens import stop_ids
from workbench.model.checkpoints.tensors import Block, Checkpoint, Experts, Weights
from workbench.model.checkpoints.validate import (
    LoadPlan,
    Shape,
    block_shapes,
    check_config,
    check_finite,
    check_scales,
    check_tensors,
    packed,
    packed_shapes,
    plan_loading,
    top_shapes,
)
from workbench.model.config import Config
from workbench.model.kernels.packed import Matrices
from workbench.model.kernels.reference import dequantize_mxfp4
from workbench.untrusted import is_there

TOP = {"embed": "embedding.weight", "ln_final": "norm.scale", "unembed": "unembedding.weight"}
BLOCK = {
    "ln1": "attn.norm.scale",
    "sinks": "attn.sinks",
    "w_o": "attn.out.weight",
    "b_o": "attn.out.bias",
    "ln2": "mlp.norm.scale",
    "w_router": "mlp.gate.weight",
    "b_router": "mlp.gate.bias",
}
EXPERTS = {"up": "mlp.mlp1_weight", "up_bias": "mlp.mlp1_bias", "down": "mlp.mlp2_weight", "down_bias": "mlp.mlp2_bias"}
SIZES = ("d_model", "n_heads", "n_kv_heads", "d_head", "n_experts", "n_active", "d_mlp", "d_vocab", "window")
KEYS = {  # field of Config -> its key in config.json
    "d_model": "hidden_size",
    "n_heads": "num_attention_heads",
    "n_kv_heads": "num_key_value_heads",
    "d_head": "head_dim",
    "n_experts": "num_experts",
    "n_active": "experts_per_token",
    "d_mlp": "intermediate_size",
    "d_vocab": "vocab_size",
    "window": "sliding_window",
    "rope_factor": "rope_scaling_factor",
    "rope_beta_slow": "rope_ntk_alpha",
    "rope_beta_fast": "rope_ntk_beta",
    "rope_original": "initial_context_length",
    "n_ctx": "initial_context_length * rope_scaling_factor",
}


def find_original(folder: Path, names: list[str]) -> Path | None:
    """The folder, if it contains a model in OpenAI's own layout.

    Only config.json distinguishes that layout from Hugging Face's.
    """
    if not has_safetensors(names):
        return None
    raw = read_json(folder / "config.json")
    return folder if "model_type" not in raw and "num_experts" in raw else None


def find_original_inside(folder: Path, names: list[str]) -> Path | None:
    """The subfolder original/, where the published checkpoints keep OpenAI's layout; None without weights in it."""
    original = folder / "original"
    return original if is_there(original / "config.json") and files_of(original, "", ".safetensors") else None


def read_original(
    folder: Path, *, name: str, dtype: torch.dtype | None, device: torch.device, memory: str = "fast"
) -> Checkpoint:
    """The checkpoint in an original/ folder, in MXFP4 or bf16. Raises CheckpointError if it is damaged or incomplete.

    The tokenizer is taken from the folder, or from its parent, where Hugging Face's repositories keep it.

    >>> read_original(Path("20b/original"), name="20b", dtype=None, device=torch.device("cpu"))  # doctest: +SKIP
    """
    config = parse_original_config(read_json(folder / "config.json"), str(folder / "config.json"))
    files = files_of(folder, "", ".safetensors")
    if not files:
        raise Incomplete(f"{folder} has a config.json but no *.safetensors. Fetch the weights too.")
    tensors = mapped(files)
    where, mxfp4 = str(folder), is_packed(tensors)
    plan = plan_loading(config, where, dtype=dtype, device=device, memory=memory, packed=mxfp4, mapped=True)
    home = folder.parent if not is_there(folder / "tokenizer.json") and folder.name == "original" else folder
    return Checkpoint(
        config=config,
        weights=with_residency(_weights(tensors, config, where=where, plan=plan), tensors.values(), plan.memory),
        name=name,
        folder=home,
        format="original",
        digest=weights_digest(tensors),
        stop_ids=stop_ids(home, [], d_vocab=config.d_vocab),
    )


def parse_original_config(raw: Mapping[str, Any], where: str) -> Config:
    """The Config in original/config.json. eps, alpha, layer types and `truncate` are constants of OpenAI's code."""
    n_layers = layer_count(raw, where, "num_hidden_layers")
    original = integer(raw, where, "initial_context_length")
    factor = number(raw, where, "rope_scaling_factor")
    sizes: dict[str, Any] = {field: integer(raw, where, KEYS[field]) for field in SIZES}
    config = Config(
        n_layers=n_layers,
        **sizes,
        n_ctx=int(original * factor),
        layer_types=tuple(DEFAULT.layer_types[i % 2] for i in range(n_layers)),
        swiglu_limit=number(raw, where, "swiglu_limit", default=DEFAULT.swiglu_limit),
        rope_theta=number(raw, where, "rope_theta"),
        rope_factor=factor,
        rope_beta_slow=number(raw, where, "rope_ntk_alpha"),
        rope_beta_fast=number(raw, where, "rope_ntk_beta"),
        rope_original=original,
    )
    return check_config(config, where, KEYS)


def is_packed(tensors: Mapping[str, Tensor]) -> bool:
    """Whether the experts are in MXFP4, judged by OpenAI's tensor names."""
    return any(name.endswith(".scales") for name in tensors)


def _weights(tensors: Mapping[str, Tensor], config: Config, *, where: str, plan: LoadPlan) -> Weights:
    mxfp4 = is_packed(tensors)
    check_tensors(_expected(config, packed=mxfp4, where=where), tensors, where)
    check_finite(tensors, where)
    device, dtype = plan.device, plan.dtype
    kv = config.n_kv_heads * config.d_head
    rows = [config.n_heads * config.d_head, kv, kv]

    def dense(name: str) -> Tensor:
        return tensors[name].to(device, dtype)

    def matrix(name: str) -> Matrices:
        if not mxfp4:  # already [expert, out, in], unlike in transformers
            return dense(name)
        blocks, scales = tensors[name + ".blocks"], tensors[name + ".scales"]
        if plan.keeps_packed(config):
            return packed(name + ".scales", blocks, scales, where, device)
        check_scales(name + ".scales", scales, where)
        return dequantize_mxfp4(blocks.to(device), scales.to(device), dtype=dtype)

    def block(n: int) -> Block:
        at = f"block.{n}."
        w = dense(at + "attn.qkv.weight").split(rows)
        b = dense(at + "attn.qkv.bias").split(rows)
        return Block(
            **{field: dense(at + key) for field, key in BLOCK.items()},
            **dict(zip(("w_q", "w_k", "w_v"), w, strict=True)),
            **dict(zip(("b_q", "b_k", "b_v"), b, strict=True)),
            experts=Experts(
                up=matrix(at + EXPERTS["up"]),
                up_bias=dense(at + EXPERTS["up_bias"]),
                down=matrix(at + EXPERTS["down"]),
                down_bias=dense(at + EXPERTS["down_bias"]),
            ),
        )

    top = {field: dense(key) for field, key in TOP.items()}
    blocks = tuple(block(n) for n in range(config.n_layers))
    return Weights(top["embed"], blocks, top["ln_final"], top["unembed"])


def _expected(config: Config, *, packed: bool, where: str) -> dict[str, Shape]:
    shapes = block_shapes(config)
    rows = shapes["w_q"][0] + shapes["w_k"][0] + shapes["w_v"][0]
    expected = {TOP[field]: shape for field, shape in top_shapes(config).items()}
    for n in range(config.n_layers):
        at = f"block.{n}."
        expected[at + "attn.qkv.weight"], expected[at + "attn.qkv.bias"] = (rows, config.d_model), (rows,)
        expected |= {at + key: shapes[field] for field, key in (BLOCK | EXPERTS).items()}
        if packed:
            for field in ("up", "down"):
                key = at + EXPERTS[field]
                expected[key + ".blocks"], expected[key + ".scales"] = packed_shapes(expected.pop(key), where)
    return expected
