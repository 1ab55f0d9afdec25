"""Export in the format in which gpt-oss is published: a folder that workbench, transformers and others can load."""

import json
from itertools import pairwise
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor

from workbench.files import atomic_files, make_folder
from workbench.model.checkpoints.hf_config import hf_config_json
from workbench.model.kernels.reference import FP4, GROUP
from workbench.pocket.rendering import TEMPLATE
from workbench.pocket.train.model import Pocket
from workbench.pocket.vocabulary import PAD, symbols, tokenizer_json

LEVELS = FP4[:8]  # the non-negative numbers
EDGES = tuple((a + b) / 2 for a, b in pairwise(LEVELS))


def export(model: Pocket, folder: Path, *, packed: bool = True) -> Path:
    """Writes config, weights, tokenizer and chat template; experts in MXFP4, or all in bf16 with `packed=False`."""
    tensors: dict[str, Tensor] = {}
    for name, tensor in published(model).items():
        if packed and name.endswith("_proj"):
            blocks, scales = mxfp4(tensor.mT)
            tensors |= {f"{name}_blocks": blocks, f"{name}_scales": scales}
        else:
            tensors[name] = tensor.to(torch.bfloat16).contiguous()
    stops = [symbols()["<|return|>"], symbols()["<|call|>"]]
    ids = {"pad_token_id": symbols()[PAD], "eos_token_id": stops, "bos_token_id": symbols()["<|startoftext|>"]}
    settings = {
        "config.json": hf_config_json(model.c, packed=packed)
        | {"router_aux_loss_coef": 0.01, "dtype": "bfloat16", **ids},
        "generation_config.json": {"do_sample": False, **ids},
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "eos_token": "<|return|>",
            "pad_token": PAD,
            "bos_token": "<|startoftext|>",
            "model_max_length": 4096,
            "clean_up_tokenization_spaces": False,
            "padding_side": "left",
            "model_input_names": ["input_ids", "attention_mask"],
        },
    }
    files: dict[str, bytes | str] = {"model.safetensors": save(tensors, metadata={"format": "pt"})}
    files |= {name: json.dumps(content, indent=1) + "\n" for name, content in settings.items()}
    files |= {"tokenizer.json": tokenizer_json(), "chat_template.jinja": TEMPLATE}
    make_folder(folder)
    atomic_files({folder / name: data for name, data in files.items()})
    return folder


def published(model: Pocket) -> dict[str, Tensor]:
    """The tensors with transformers' names and layouts, experts as [expert, in, out]."""
    c = model.c
    heads, kv = c.n_heads * c.d_head, c.n_kv_heads * c.d_head
    out = {
        "model.embed_tokens.weight": model.embed,
        "lm_head.weight": model.unembed,
        "model.norm.weight": model.ln_final,
    }
    for layer, b in enumerate(model.layers):
        prefix = f"model.layers.{layer}."
        matrices, biases = b.w_qkv.split([heads, kv, kv], 1), b.b_qkv.split([heads, kv, kv])
        for name, matrix, bias in zip("qkv", matrices, biases):
            out |= {f"{prefix}self_attn.{name}_proj.weight": matrix.t(), f"{prefix}self_attn.{name}_proj.bias": bias}
        out |= {
            f"{prefix}self_attn.o_proj.weight": b.w_o.t(),
            f"{prefix}self_attn.o_proj.bias": b.b_o,
            f"{prefix}self_attn.sinks": b.sinks,
            f"{prefix}input_layernorm.weight": b.ln1,
            f"{prefix}post_attention_layernorm.weight": b.ln2,
            f"{prefix}mlp.router.weight": b.w_router.t(),
            f"{prefix}mlp.router.bias": b.b_router,
            f"{prefix}mlp.experts.gate_up_proj": interleaved(b.w_up),
            f"{prefix}mlp.experts.gate_up_proj_bias": interleaved(b.b_up),
            f"{prefix}mlp.experts.down_proj": b.w_down,
            f"{prefix}mlp.experts.down_proj_bias": b.b_down,
        }
    return {name: tensor.detach().float().contiguous().clone() for name, tensor in out.items()}


def interleaved(halves: Tensor) -> Tensor:
    """Interleaves two halves: all gates and then all ups become gate 0, up 0, gate 1, up 1, ….

    >>> interleaved(torch.tensor([1, 2, 10, 20])).tolist()
    [1, 10, 2, 20]
    """
    return torch.stack(halves.chunk(2, -1), -1).flatten(-2)


def mxfp4(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """MXFP4 blocks and scales of matrices [expert, out, in]: groups of 32 along `in`, the low nibble first.

    Each group uses whichever of the two candidate exponents has the smaller squared error.

    >>> blocks, scales = mxfp4(torch.ones(1, 1, 32))
    >>> blocks.shape, scales.shape
    (torch.Size([1, 1, 1, 16]), torch.Size([1, 1, 1]))
    """
    groups = matrix.float().contiguous().view(*matrix.shape[:-1], -1, GROUP)
    low = torch.floor(torch.log2(groups.abs().amax(-1, keepdim=True).clamp_min(2.0**-100))) - 2
    levels, edges = torch.tensor(LEVELS), torch.tensor(EDGES)
    codes, errors = [], []
    for exponent in (low, low + 1):
        code = torch.bucketize((groups / torch.exp2(exponent)).abs().clamp(max=6), edges)
        errors.append((levels[code] * torch.exp2(exponent) - groups.abs()).square().sum(-1, keepdim=True))
        codes.append(code)
    higher = errors[1] < errors[0]
    code = (torch.where(higher, codes[1], codes[0]) + 8 * (groups < 0)).to(torch.uint8)
    scales = (low + higher + 127).squeeze(-1).to(torch.uint8)
    return (code[..., ::2] | (code[..., 1::2] << 4)).contiguous(), scales.contiguous()
