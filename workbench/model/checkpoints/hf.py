"""Loads gpt-oss from Hugging Face's layout: experts in MXFP4, or dequantized and saved by transformers."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from workbench.errors import CheckpointError
from workbench.model.checkpoints.digest import weights_digest
from workbench.model.checkpoints.folder_files import Incomplete, has_safetensors, hf_files, mapped, read_json
from workbench.model.checkpoints.hf_config import parse_hf_config
from workbench.model.checkpoints.layouts import check_layout
from workbench.model.checkpoints.pages import with_residency
from workbench.model.checkpoints.stop_tokens import stop_ids
from workbench.model.checkpoints.tensors import Block, Checkpoint, Experts, Weights
from workbench.model.checkpoints.validate import (
    LoadPlan,
    Shape,
    block_shapes,
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
from workbench.text import brief

TOP = {"embed": "model.embed_tokens.weight", "ln_final": "model.norm.weight", "unembed": "lm_head.weight"}
BLOCK = {
    "ln1": "input_layernorm.weight",
    "w_q": "self_attn.q_proj.weight",
    "b_q": "self_attn.q_proj.bias",
    "w_k": "self_attn.k_proj.weight",
    "b_k": "self_attn.k_proj.bias",
    "w_v": "self_attn.v_proj.weight",
    "b_v": "self_attn.v_proj.bias",
    "sinks": "self_attn.sinks",
    "w_o": "self_attn.o_proj.weight",
    "b_o": "self_attn.o_proj.bias",
    "ln2": "post_attention_layernorm.weight",
    "w_router": "mlp.router.weight",
    "b_router": "mlp.router.bias",
}
EXPERTS = {
    "up": "mlp.experts.gate_up_proj",
    "up_bias": "mlp.experts.gate_up_proj_bias",
    "down": "mlp.experts.down_proj",
    "down_bias": "mlp.experts.down_proj_bias",
}


def find_hf(folder: Path, names: list[str]) -> Path | None:
    """The folder, if it may contain a model in Hugging Face's layout; `names` are its file names."""
    return folder if has_safetensors(names) else None


def read_hf(
    folder: Path, *, name: str, dtype: torch.dtype | None, device: torch.device, memory: str = "fast"
) -> Checkpoint:
    """The checkpoint in a Hugging Face folder, in MXFP4 or bf16. Raises CheckpointError if it is damaged or incomplete.

    >>> from workbench.model.checkpoints.bundled import embedded_folder
    >>> read_hf(embedded_folder(), name="pocket", dtype=None, device=torch.device("cpu")).format
    'hf-mxfp4'
    """
    raw = read_json(folder / "config.json")
    config = parse_hf_config(raw, str(folder / "config.json"))
    quantization = raw.get("quantization_config") or {}
    method = quantization.get("quant_method") if isinstance(quantization, dict) else quantization
    if method not in (None, "mxfp4"):
        raise CheckpointError(
            f"{folder}: the weights are quantized by {brief(repr(method))}; workbench reads MXFP4 as published, and "
            f"bf16. Use the model that this one was made from, or export it in bf16."
        )
    files = hf_files(folder)
    if not files:
        raise Incomplete(f"{folder} has a config.json but no model*.safetensors. Fetch the weights too.")
    tensors = mapped(files)
    where = str(folder)
    check_layout(tensors, where)  # before the memory check: a layout that cannot be read need not fit
    plan = plan_loading(
        config, where, dtype=dtype, device=device, memory=memory, packed=is_packed(tensors), mapped=True
    )  # fmt: skip
    return Checkpoint(
        config=config,
        weights=with_residency(hf_weights(tensors, config, where=where, plan=plan), tensors.values(), plan.memory),
        name=name,
        folder=folder,
        format="hf-mxfp4" if is_packed(tensors) else "hf-bf16",
        digest=weights_digest(tensors),
        stop_ids=stop_ids(folder, [raw.get("eos_token_id")], d_vocab=config.d_vocab),
    )


def is_packed(tensors: Mapping[str, Tensor]) -> bool:
    """Whether the experts are in MXFP4, judged by the tensor names of transformers."""
    return any(name.endswith("_scales") for name in tensors)


def hf_weights(tensors: Mapping[str, Tensor], config: Config, *, where: str, plan: LoadPlan) -> Weights:
    """The internal form of tensors with transformers' names. Tensors that need no conversion share their memory."""
    mxfp4 = is_packed(tensors)
    check_tensors(_expected(config, packed=mxfp4, where=where), tensors, where)
    check_finite(tensors, where)
    device, dtype = plan.device, plan.dtype

    def matrix(name: str) -> Matrices:
        if not mxfp4:  # transformers stores [expert, in, out]
            return tensors[name].to(device, dtype).transpose(1, 2)
        blocks, scales = tensors[name + "_blocks"], tensors[name + "_scales"]
        if plan.keeps_packed(config):
            return packed(name + "_scales", blocks, scales, where, device)
        check_scales(name + "_scales", scales, where)
        return dequantize_mxfp4(blocks.to(device), scales.to(device), dtype=dtype)

    def block(n: int) -> Block:
        at = f"model.layers.{n}."
        return Block(
            **{field: tensors[at + key].to(device, dtype) for field, key in BLOCK.items()},
            experts=Experts(
                up=matrix(at + EXPERTS["up"]),
                up_bias=tensors[at + EXPERTS["up_bias"]].to(device, dtype),
                down=matrix(at + EXPERTS["down"]),
                down_bias=tensors[at + EXPERTS["down_bias"]].to(device, dtype),
            ),
        )

    top = {field: tensors[key].to(device, dtype) for field, key in TOP.items()}
    blocks = tuple(block(n) for n in range(config.n_layers))
    return Weights(top["embed"], blocks, top["ln_final"], top["unembed"])


def _expected(config: Config, *, packed: bool, where: str) -> dict[str, Shape]:
    expected = {TOP[field]: shape for field, shape in top_shapes(config).items()}
    for n in range(config.n_layers):
        for field, shape in block_shapes(config).items():
            key = f"model.layers.{n}." + (BLOCK | EXPERTS)[field]
            if field not in ("up", "down"):
                expected[key] = shape
            elif packed:
                expected[key + "_blocks"], expected[key + "_scales"] = packed_shapes(shape, where)
            else:
                expected[key] = (shape[0], shape[2], shape[1])
    return expected
