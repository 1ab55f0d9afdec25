"""Recognizes layouts of gpt-oss that other programs write and that cannot be read here, and says what to do.

A layout is recognized by the names of its tensors. Without this module the error would list half of the tensors as
missing and half as unknown.
"""

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from workbench.errors import CheckpointError

READABLE = "workbench reads MXFP4 as published, and bf16 as transformers saves it."
BASE = "use the model that this one was made from"
# pattern of a tensor's name -> the layout, and what to do
LAYOUTS = {
    r"\.experts\.(gate_up|down)_projs\.": (
        "unsloth's layout, one linear layer per expert",
        f"{BASE}, or merge and save it in 16 bits (unsloth: save_method='merged_16bit')",
    ),
    r"lora_": ("a LoRA adapter", "merge it first: model = model.merge_and_unload()"),
    r"\.(quant_state|absmax|SCB)\b": (
        "bitsandbytes' layout",
        f"{BASE}, or save it in 16 bits: model = model.dequantize(), then model.save_pretrained(…)",
    ),
    r"\.experts\.\d+\.": (
        "a layout with one linear layer per expert",
        "stack the experts: read the weights into transformers' GptOssForCausalLM, whose experts are one tensor per "
        f"layer, and save that; or {BASE}",
    ),
    r"\.experts\.(gate_proj|up_proj|down_proj)\.|\.biases$": ("the layout of MLX (mlx_lm)", BASE),
    r"(weight_packed|weight_shape|weight_global_scale)$": ("the layout of compressed-tensors (llm-compressor)", BASE),
    r"(weight_scale(_2)?|input_scale|[kv]_scale|_amax)$": ("the layout of NVIDIA's ModelOpt", BASE),
    r"(weight_scale_inv)$": ("a layout in 8-bit floats", BASE),
    r"\.(qweight|qzeros|g_idx)$": ("the layout of GPTQ or AWQ", BASE),
    r"^block\.\d+\.": (
        "OpenAI's own layout",
        "put the config.json of their original/ folder beside the weights instead of Hugging Face's",
    ),
    r"^blk\.\d+\.": ("the layout of llama.cpp", "give the .gguf file itself"),
}
LAYER = re.compile(r"(.*?)\blayers\.\d+\.")
PREFIXES = {  # part of a prefix -> its source, and the model to save instead
    "_orig_mod.": ("torch.compile", "the model inside, model._orig_mod"),
    "_fsdp_wrapped_module.": ("FSDP", "a full state dict of the model inside"),
    "_forward_module.": ("a wrapper of Lightning or DeepSpeed", "the model inside"),
    "module.": ("DistributedDataParallel or DeepSpeed", "the model inside, model.module"),
    "base_model.": ("PEFT", "model.merge_and_unload()"),
    "language_model.": ("a multimodal model", "its language model alone, model.language_model"),
}


def check_layout(tensors: Mapping[str, Tensor], where: str) -> None:
    """Raises CheckpointError for a known layout that cannot be read; the message names it and says what to do."""
    for name, tensor in tensors.items():
        if name.endswith("_proj_blocks") and tensor.dtype != torch.uint8:
            raise CheckpointError(
                f"{where}: {name} contains {str(tensor.dtype).removeprefix('torch.')} numbers, not MXFP4 blocks. "
                f"transformers writes such files when it saves a model that it dequantized on loading, and cannot read "
                f"them back either. Save again with model.save_pretrained(…, save_original_format=False)."
            )
    for pattern, (layout, advice) in LAYOUTS.items():
        if name := next((name for name in tensors if re.search(pattern, name)), None):
            raise CheckpointError(f"{where}: {name!r} is a tensor of {layout}. {READABLE} What to do: {advice}.")
    prefixes = {match[1] for name in tensors if (match := LAYER.match(name))} - {"model."}
    if prefixes:
        head = next((name for name in tensors if name.endswith("lm_head.weight")), "")
        _refuse_prefix(min(prefixes), head.removesuffix("lm_head.weight"), where)


def _refuse_prefix(prefix: str, outer: str, where: str) -> None:
    """Raises CheckpointError; `prefix` is the text before "layers", `outer` the text before "lm_head"."""
    if not prefix:
        raise CheckpointError(
            f"{where}: its tensors have no prefix ('layers.0.…' instead of 'model.layers.0.…'), like those of a "
            f"GptOssModel, which has no lm_head. Save (or give workbench) the whole GptOssForCausalLM."
        )
    part = next((part for part in PREFIXES if part in prefix), None)
    wrong, right = (outer, "") if outer else (prefix, "model.")
    source, instead = PREFIXES[part] if part else ("another program", "the GptOssForCausalLM inside")
    raise CheckpointError(
        f"{where}: its tensors begin with {prefix!r} ('{prefix}layers.0.…' instead of 'model.layers.0.…'), the prefix "
        f"of {source}. Save (or give workbench) {instead}; or rename the tensors in each file:  "
        f"from safetensors.torch import load_file, save_file; "
        f"save_file({{k.replace({wrong!r}, {right!r}): v for k, v in load_file(f).items()}}, f, {{'format': 'pt'}})"
    )
