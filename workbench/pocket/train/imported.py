"""A model for training from an exported one, so that a course can start from published weights; it may get more layers.

Experts are as rounded to MXFP4 by the export. There is no optimizer state: the course starts with a fresh one.
"""

from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from workbench.errors import CheckpointError
from workbench.model.checkpoints.folder_files import hf_files, mapped, read_json
from workbench.model.checkpoints.hf_config import parse_hf_config
from workbench.model.kernels.reference import dequantize_mxfp4
from workbench.pocket.train.model import Pocket


def imported(folder: Path, dtype: str = "float32") -> Pocket:
    """The model in a folder that `export` wrote, in MXFP4 or in bf16.

    >>> from workbench.model.checkpoints.bundled import embedded_folder
    >>> imported(embedded_folder()).c.n_layers
    6

    Raises CheckpointError if the folder has no complete model, or one that `Pocket` cannot train.
    """
    model = Pocket(parse_hf_config(read_json(folder / "config.json"), str(folder / "config.json")), dtype)
    tensors = mapped(hf_files(folder))
    try:
        model.load_state_dict({name: tensor.float() for name, tensor in _trained(tensors, model.c.n_layers).items()})
    except (KeyError, RuntimeError) as error:
        raise CheckpointError(
            f"{folder} does not contain an exported pocket ({error}). Use a folder that "
            f"`python -m workbench.pocket.train` wrote, such as RUN/model, or data/pocket."
        ) from error
    return model


def with_layers(model: Pocket, n_layers: int) -> Pocket:
    """The same function with more layers at the end: each writes 0 into the residual stream until it is trained.

    >>> from workbench.pocket.train.model import SHAPE
    >>> with_layers(Pocket(SHAPE), 8).c.layer_types[6:]
    ('sliding_attention', 'full_attention')

    Raises CheckpointError if `n_layers` is smaller than the number of layers of `model`.
    """
    c = model.c
    if n_layers < c.n_layers:
        raise CheckpointError(f"layers must be {c.n_layers} or more, as in the weights to start from, got {n_layers}")
    kinds = tuple(c.layer_types[layer % 2] for layer in range(n_layers))
    larger = Pocket(replace(c, n_layers=n_layers, layer_types=kinds), model.dtype_name)
    larger.load_state_dict(larger.state_dict() | model.state_dict())
    with torch.no_grad():
        for block in larger.layers[c.n_layers :]:
            for written in (block.w_o, block.b_o, block.w_down, block.b_down):
                written.zero_()
    return larger


def _trained(published: dict[str, Tensor], n_layers: int) -> dict[str, Tensor]:
    """The tensors by the names and in the layout of `Pocket`: the inverse of `export.published`."""
    out = {
        "embed": published["model.embed_tokens.weight"],
        "unembed": published["lm_head.weight"],
        "ln_final": published["model.norm.weight"],
    }
    for layer in range(n_layers):
        source, name = f"model.layers.{layer}.", f"blocks.{layer}."
        attention, experts = f"{source}self_attn.", f"{source}mlp.experts."
        out |= {
            f"{name}w_qkv": torch.cat([published[f"{attention}{part}_proj.weight"].t() for part in "qkv"], 1),
            f"{name}b_qkv": torch.cat([published[f"{attention}{part}_proj.bias"] for part in "qkv"]),
            f"{name}w_o": published[f"{attention}o_proj.weight"].t(),
            f"{name}b_o": published[f"{attention}o_proj.bias"],
            f"{name}sinks": published[f"{attention}sinks"],
            f"{name}ln1": published[f"{source}input_layernorm.weight"],
            f"{name}ln2": published[f"{source}post_attention_layernorm.weight"],
            f"{name}w_router": published[f"{source}mlp.router.weight"].t(),
            f"{name}b_router": published[f"{source}mlp.router.bias"],
            f"{name}w_up": halves(_matrix(published, f"{experts}gate_up_proj")),
            f"{name}b_up": halves(published[f"{experts}gate_up_proj_bias"]),
            f"{name}w_down": _matrix(published, f"{experts}down_proj"),
            f"{name}b_down": published[f"{experts}down_proj_bias"],
        }
    return out


def halves(interleaved: Tensor) -> Tensor:
    """The inverse of `interleaved`: gate 0, up 0, gate 1, up 1, … become all gates and then all ups.

    >>> halves(torch.tensor([1, 10, 2, 20])).tolist()
    [1, 2, 10, 20]
    """
    return torch.cat([interleaved[..., ::2], interleaved[..., 1::2]], -1)


def _matrix(published: dict[str, Tensor], name: str) -> Tensor:
    """A matrix of the experts [expert, in, out], unpacked if it is in MXFP4."""
    if name in published:
        return published[name]
    return dequantize_mxfp4(published[f"{name}_blocks"], published[f"{name}_scales"]).mT
