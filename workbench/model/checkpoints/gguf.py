"""Loads gpt-oss from llama.cpp's format: a .gguf file, whole or split. Needs the optional package gguf."""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from workbench.errors import CheckpointError
from workbench.model.checkpoints.digest import weights_digest
from workbench.model.checkpoints.gguf_keys import ARCH, CONVERT, check_keys, layer_types, swiglu_limit
from workbench.model.checkpoints.gguf_pieces import Stored, model_name, open_gguf
from workbench.model.checkpoints.hf_config import DEFAULT, integer, layer_count, number
from workbench.model.checkpoints.stop_tokens import stop_ids
from workbench.model.checkpoints.tensors import Block, Checkpoint, Experts, Weights
from workbench.model.checkpoints.validate import (
    LoadPlan,
    Shape,
    block_shapes,
    check_config,
    check_finite,
    check_scales,
    check_shapes,
    packed,
    plan_loading,
    top_shapes,
)
from workbench.model.config import Config
from workbench.model.kernels.packed import Matrices
from workbench.model.kernels.reference import dequantize_mxfp4_ggml, repack_mxfp4_ggml
from workbench.text import brief

TOP = {"embed": "token_embd.weight", "ln_final": "output_norm.weight", "unembed": "output.weight"}
BLOCK = {
    "ln1": "attn_norm.weight",
    "w_q": "attn_q.weight",
    "b_q": "attn_q.bias",
    "w_k": "attn_k.weight",
    "b_k": "attn_k.bias",
    "w_v": "attn_v.weight",
    "b_v": "attn_v.bias",
    "sinks": "attn_sinks.weight",
    "w_o": "attn_output.weight",
    "b_o": "attn_output.bias",
    "ln2": "post_attention_norm.weight",
    "w_router": "ffn_gate_inp.weight",
    "b_router": "ffn_gate_inp.bias",
}
DOWN = {"down": "ffn_down_exps.weight", "down_bias": "ffn_down_exps.bias"}
# gate and up are separate tensors; they become the even and the odd rows of `Experts.up`
UP = {"up": ("ffn_gate_exps.weight", "ffn_up_exps.weight"), "up_bias": ("ffn_gate_exps.bias", "ffn_up_exps.bias")}
SIZES = (
    "d_model", "n_heads", "n_kv_heads", "d_head", "n_experts", "n_active", "d_mlp", "n_ctx", "window", "rope_original",
)  # fmt: skip
KEYS = {  # field of Config -> its key, without "gpt-oss."
    "d_model": "embedding_length",
    "n_heads": "attention.head_count",
    "n_kv_heads": "attention.head_count_kv",
    "d_head": "attention.key_length",
    "n_experts": "expert_count",
    "n_active": "expert_used_count",
    "d_mlp": "expert_feed_forward_length",
    "n_ctx": "context_length",
    "window": "attention.sliding_window",
    "eps": "attention.layer_norm_rms_epsilon",
    "rope_theta": "rope.freq_base",
    "rope_factor": "rope.scaling.factor",
    "rope_beta_fast": "rope.scaling.yarn_beta_fast",
    "rope_beta_slow": "rope.scaling.yarn_beta_slow",
    "rope_original": "rope.scaling.original_context_length",
    "swiglu_limit": "swiglu_clamp_exp",
}
EOS = "tokenizer.ggml.eos_token_id"


def find_gguf(folder: Path, names: list[str]) -> Path | None:
    """The .gguf file in a folder, or its first piece; None without one. Raises CheckpointError for several models."""
    ggufs = [name for name in names if name.endswith(".gguf")]
    models = {model_name(Path(name)): name for name in reversed(ggufs)}  # pieces of one model count once
    if len(models) > 1:
        firsts = sorted(models.values())
        raise CheckpointError(
            f"{folder} contains {len(firsts)} .gguf files: {', '.join(map(brief, firsts[:6]))}. Give one of them."
        )
    return folder / ggufs[0] if models else None


def read_gguf(
    file: Path, *, name: str, dtype: torch.dtype | None, device: torch.device, memory: str = "fast"
) -> Checkpoint:
    """The checkpoint in a .gguf file, with experts in MXFP4 or any type that the package gguf can dequantize.

    For a split model, `file` is any of its pieces. The tokenizer is tokenizer.json in the same folder. Raises
    MissingDependency without the package gguf; CheckpointError for another architecture, damaged or missing files,
    settings that would change what the model computes, and tensors that do not fit the metadata.

    >>> read_gguf(Path("gpt-oss-20b-mxfp4.gguf"), name="20b", dtype=None, device=torch.device("cpu"))  # doctest: +SKIP
    """
    opened = open_gguf(file)
    meta, tensors, where = opened.meta, opened.tensors, str(file)
    config = _config(meta, {name: t.shape for name, t in tensors.items()}, where)
    check_keys(meta, config, where)
    mxfp4 = any(t.tensor_type.name == "MXFP4" for t in tensors.values())
    plan = plan_loading(config, where, dtype=dtype, device=device, memory=memory, packed=mxfp4, mapped=False)
    stored = {f"{name} {t.tensor_type.name}": torch.from_numpy(t.data) for name, t in tensors.items()}
    return Checkpoint(
        config=config,
        weights=_weights(tensors, config, where=where, plan=plan),
        name=name,
        folder=file.parent,
        format="gguf",
        digest=weights_digest(stored),
        stop_ids=stop_ids(file.parent, [meta.get(EOS)], d_vocab=config.d_vocab),
    )


def _config(meta: dict[str, Any], shapes: dict[str, Shape], where: str) -> Config:
    """The Config in the metadata; layer types, clamp and alpha of SwiGLU default to llama.cpp's constants."""
    arch = meta.get("general.architecture")
    if arch == "gptoss":
        raise CheckpointError(
            f"{where}: architecture 'gptoss' is Ollama's own layout. Use a .gguf made with llama.cpp ('gpt-oss'), "
            f"such as ggml-org/gpt-oss-20b-GGUF, or the safetensors of openai/gpt-oss-20b."
        )
    if arch != "gpt-oss":
        raise CheckpointError(f"{where}: the architecture is {brief(repr(arch))}; workbench reads 'gpt-oss'.")
    has = {key.removeprefix(ARCH): value for key, value in meta.items() if key.startswith(ARCH)}
    scaling = has.get("rope.scaling.type")
    if scaling != "yarn":
        raise CheckpointError(f"{where}: rope.scaling.type must be 'yarn', got {brief(repr(scaling))}. {CONVERT}")
    if TOP["embed"] not in shapes or len(shapes[TOP["embed"]]) != 2:
        raise CheckpointError(f"{where} has no matrix {TOP['embed']}. {CONVERT}")
    whole, real = partial(integer, has, where, advice=CONVERT), partial(number, has, where, advice=CONVERT)
    n_layers = layer_count(has, where, "block_count", advice=CONVERT)
    sizes: dict[str, Any] = {field: whole(KEYS[field]) for field in SIZES}
    config = Config(
        n_layers=n_layers,
        **sizes,
        d_vocab=shapes[TOP["embed"]][0],
        layer_types=layer_types(meta, n_layers, where),
        swiglu_limit=_decimal(swiglu_limit(meta, DEFAULT.swiglu_limit, where)),
        eps=_decimal(real(KEYS["eps"])),
        rope_theta=_decimal(real(KEYS["rope_theta"])),
        rope_factor=_decimal(real(KEYS["rope_factor"])),
        rope_beta_fast=_decimal(real(KEYS["rope_beta_fast"], default=DEFAULT.rope_beta_fast)),
        rope_beta_slow=_decimal(real(KEYS["rope_beta_slow"], default=DEFAULT.rope_beta_slow)),
    )
    return check_config(config, where, KEYS)


def _weights(tensors: dict[str, Stored], config: Config, *, where: str, plan: LoadPlan) -> Weights:
    check_shapes(_expected(config), {name: t.shape for name, t in tensors.items()}, where)
    vectors = {name: torch.from_numpy(t.data) for name, t in tensors.items() if t.tensor_type.name in ("F32", "F16")}
    check_finite(vectors, where)

    def tensor(name: str) -> Tensor:
        return _numbers(tensors[name], where=where, dtype=plan.dtype, device=plan.device)

    def matrix(names: list[str]) -> Matrices:
        """One tensor, or two with alternating rows."""
        if any(tensors[name].tensor_type.name != "MXFP4" for name in names):
            return torch.stack([tensor(name) for name in names], 2).flatten(1, 2)
        rows = [torch.from_numpy(tensors[name].data) for name in names]  # packed: a quarter of the bytes to move
        for name, row in zip(names, rows, strict=True):
            check_scales(name, row[..., 0::17], where)
        stacked = torch.stack(rows, 2).flatten(1, 2)
        if plan.keeps_packed(config):  # safetensors has another byte order, so this is a copy
            return packed(names[0], *repack_mxfp4_ggml(stacked), where, plan.device)
        return dequantize_mxfp4_ggml(stacked.to(plan.device), dtype=plan.dtype)

    def block(n: int) -> Block:
        at = f"blk.{n}."
        return Block(
            **{field: tensor(at + key) for field, key in BLOCK.items()},
            experts=Experts(
                up=matrix([at + key for key in UP["up"]]),
                up_bias=torch.stack([tensor(at + key) for key in UP["up_bias"]], 2).flatten(1, 2),
                down=matrix([at + DOWN["down"]]),
                down_bias=tensor(at + DOWN["down_bias"]),
            ),
        )

    top = {field: tensor(key) for field, key in TOP.items()}
    blocks = tuple(block(n) for n in range(config.n_layers))
    return Weights(top["embed"], blocks, top["ln_final"], top["unembed"])


def _numbers(stored: Stored, *, where: str, dtype: torch.dtype, device: torch.device) -> Tensor:
    """One tensor of the reader, dequantized, in its logical shape."""
    from gguf import quants

    kind, data = stored.tensor_type, torch.from_numpy(stored.data)
    if kind.name == "MXFP4":
        check_scales(stored.name, data[..., 0::17], where)
        return dequantize_mxfp4_ggml(data.to(device), dtype=dtype)
    if kind.name == "BF16":  # the reader returns bytes
        return data.view(torch.bfloat16).to(device, dtype)
    if kind.name not in ("F32", "F16", "F64"):
        try:
            data = torch.from_numpy(quants.dequantize(stored.data, kind))
        except NotImplementedError:
            raise CheckpointError(
                f"{where}: {stored.name} has type {kind.name}, which the package gguf cannot dequantize. "
                f"Use a file whose dense tensors are F32, F16, BF16 or Q8_0."
            ) from None
    return data.to(device, dtype)


def _expected(config: Config) -> dict[str, Shape]:
    shapes = block_shapes(config)
    expected = {TOP[field]: shape for field, shape in top_shapes(config).items()}
    for n in range(config.n_layers):
        at = f"blk.{n}."
        expected |= {at + key: shapes[field] for field, key in (BLOCK | DOWN).items()}
        for field, keys in UP.items():
            experts, rows, *rest = shapes[field]
            expected |= {at + key: (experts, rows // 2, *rest) for key in keys}
    return expected


def _decimal(value: float) -> float:
    """The shortest decimal number that is the same float32; GGUF stores float32.

    >>> _decimal(9.999999747378752e-06)
    1e-05
    """
    with np.errstate(over="ignore"):  # a number beyond float32 becomes infinity, which is out of every range
        return float(str(np.float32(value)))
