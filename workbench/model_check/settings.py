"""Compares the weights of a model in two settings of dtype and memory, which load them on different paths."""

from workbench.model.checkpoints.tensors import Weights
from workbench.model.kernels.lora import plain
from workbench.model.kernels.packed import dense
from workbench.model_check.ends import ROWS
from workbench.model_check.layers import TENSORS, difference


def first_difference(weights: Weights, others: Weights) -> str | None:
    """The first tensor of `others` that is not the one in `weights`, rounded to the dtype of `others`; None if all are.

    >>> import workbench as wb
    >>> weights = wb.Model("pocket").weights
    >>> first_difference(weights, wb.Model("pocket", dtype="bfloat16", memory="small").weights) is None
    True
    """
    dtype = others.embed.dtype
    for name in ("embed", "unembed", "ln_final"):
        first, other = getattr(weights, name), getattr(others, name)
        for start in range(0, max(len(first), len(other)), ROWS):
            if difference(other[start : start + ROWS], first[start : start + ROWS].to(dtype)):
                return name
    for layer, (first, other) in enumerate(zip(weights.blocks, others.blocks, strict=True)):
        for field in TENSORS:
            if difference(other.whole(field), first.whole(field).to(dtype)):
                return f"{field} of layer {layer}"
        for field in ("up_bias", "down_bias"):
            if difference(getattr(other.experts, field), getattr(first.experts, field).to(dtype)):
                return f"{field} of layer {layer}"
        for field in ("up", "down"):
            first_matrices, other_matrices = plain(getattr(first.experts, field)), plain(getattr(other.experts, field))
            for expert in range(len(first.experts.up_bias)):
                if difference(dense(other_matrices, expert, dtype), dense(first_matrices, expert, dtype).to(dtype)):
                    return f"{field} of expert {expert} in layer {layer}"
    return None
