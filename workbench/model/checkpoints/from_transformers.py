"""Loads a GptOssForCausalLM that is already in memory and shares its weights. Does not import transformers."""

from pathlib import Path
from typing import Any

import torch

from workbench.errors import CheckpointError, ModelNotFound
from workbench.model.checkpoints.digest import weights_digest
from workbench.model.checkpoints.hf import hf_weights, is_packed
from workbench.model.checkpoints.hf_config import parse_hf_config
from workbench.model.checkpoints.hub import NAME, snapshot_folder
from workbench.model.checkpoints.layouts import check_layout
from workbench.model.checkpoints.stop_tokens import stop_ids
from workbench.model.checkpoints.tensors import Checkpoint
from workbench.model.checkpoints.validate import LoadPlan
from workbench.untrusted import is_folder


def read_transformers(model: Any, *, dtype: torch.dtype | None, device: torch.device | None) -> Checkpoint:
    """The weights of a transformers model as views of its memory: an in-place change of one changes the other.

    With a `dtype` or `device` other than the model's own, the weights are copied. Raises CheckpointError for
    quantized, offloaded and adapted models, for float16, and for other architectures.

    >>> checkpoint = read_transformers(model, dtype=None, device=None)  # doctest: +SKIP
    >>> checkpoint.weights.embed.data_ptr() == model.get_input_embeddings().weight.data_ptr()  # doctest: +SKIP
    True
    """
    where = f"this {type(model).__name__}"
    raw = model.config.to_dict()
    quantizer = getattr(model, "hf_quantizer", None)
    if quantizer is not None or getattr(model, "is_quantized", False) or raw.get("quantization_config"):
        quantization = raw.get("quantization_config") or {}
        method = quantization.get("quant_method") if isinstance(quantization, dict) else type(quantizer).__name__
        raise CheckpointError(
            f"{where} is quantized ({method or type(quantizer).__name__}), so the numbers of its experts cannot be "
            f"shared. Load it with quantization_config=Mxfp4Config(dequantize=True), or give workbench the "
            f"folder or name instead of the object."
        )
    config = parse_hf_config(raw, f"the config of {where}")
    tensors = {name: tensor.detach() for name, tensor in model.state_dict().items()}
    check_layout(tensors, where)
    if is_packed(tensors):
        raise CheckpointError(f"{where} has packed experts. Load it with Mxfp4Config(dequantize=True).")
    if any(tensor.is_meta for tensor in tensors.values()):
        raise CheckpointError(
            f"{where} has weights offloaded to disk or never loaded. Load it without offloading, or give workbench the "
            f"folder or name instead of the object."
        )
    embed = model.get_input_embeddings().weight
    if (device or embed.device).type == "mps":
        raise CheckpointError(f"{where} is on mps, which workbench does not support. Move it with .to('cpu') first.")
    dtype = dtype or embed.dtype
    if dtype not in (torch.float32, torch.bfloat16, torch.float64):
        raise CheckpointError(
            f"{where} is in {str(dtype).removeprefix('torch.')}: gpt-oss's activations reach 45,344 at layer 34, and "
            f"float16 ends at 65,504. Load it in bfloat16 or float32, or pass dtype=torch.float32."
        )
    name = str(raw.get("_name_or_path") or getattr(model.config, "_name_or_path", "") or "") or type(model).__name__
    folder = _folder(name)
    generation = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    return Checkpoint(
        config=config,
        weights=hf_weights(tensors, config, where=where, plan=LoadPlan(device or embed.device, dtype, "fast")),
        name=Path(name).name if folder is not None and not NAME.fullmatch(name) else name,
        folder=folder,
        format="transformers object",
        digest=weights_digest(tensors),
        stop_ids=stop_ids(folder, [raw.get("eos_token_id"), generation], d_vocab=config.d_vocab),
    )


def _folder(name: str) -> Path | None:
    """The folder that the model was loaded from, for its tokenizer; None if it cannot be found."""
    if is_folder(name):
        return Path(name)
    try:
        return snapshot_folder(name) if NAME.fullmatch(name) else None
    except ModelNotFound:
        return None
