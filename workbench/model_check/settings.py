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
        ours, theirs = getattr(weights, name), getattr(others, name)
        for first in range(0, max(len(ours), len(theirs)), ROWS):
            if difference(theirs[first : first + ROWS], ours[first : first + ROWS].to(dtype)):
                return name
    for layer, (ours, theirs) in enumerate(zip(weights.blocks, others.blocks, strict=True)):
        for field in TENSORS:
            if difference(theirs.whole(field), ours.whole(field).to(dtype)):
                return f"{field} of layer {layer}"
        for field in ("up_bias", "down_bias"):
            if difference(getattr(theirs.experts, field), getattr(ours.experts, field).to(dtype)):
                return f"{field} of layer {layer}"
        for field in ("up", "down"):
            ours_here, theirs_here = plain(getattr(ours.experts, field)), plain(getattr(theirs.experts, field))
            for expert in range(len(ours.experts.up_bias)):
                if difference(dense(theirs_here, expert, dtype), dense(ours_here, expert, dtype).to(dtype)):
                    return f"{field} of expert {expert} in layer {layer}"
    return None
