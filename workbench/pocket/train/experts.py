"""The experts of one layer for training: tokens sorted by expert, one product per expert, a manual backward pass.

Dense experts would need n_experts / n_active times the products; autograd over a loop would store every intermediate
tensor. Weights are [expert, in, out], and the first half of `up` is the gate; `export` interleaves the two as gpt-oss
does.
"""

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from workbench.pocket.train.elementwise import OPS

SLOTS = 32  # per expert: the rows of a product are a multiple of this


class Experts(torch.autograd.Function):
    """The weighted sum of the chosen experts' outputs (token d_model); equal to running every expert on every token."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,  # token d_model
        share: Tensor,  # token choice
        chosen: Tensor,  # token choice
        up: Tensor,
        up_bias: Tensor,
        down: Tensor,
        down_bias: Tensor,
        alpha: float,
        limit: float,
    ) -> Tensor:
        n, n_active = chosen.shape
        back, edges = _slots(chosen.reshape(-1), len(up))
        source = torch.zeros(edges[-1], dtype=torch.long)  # the choice in each slot; in an empty one, any
        source[back] = torch.arange(len(back))
        token = source // n_active
        rows = x.index_select(0, token)
        hidden = x.new_empty(len(rows), up.shape[2])
        output = x.new_empty(len(rows), x.shape[1])
        for e, (a, b) in enumerate(pairwise(edges)):
            if a < b:
                torch.addmm(up_bias[e], rows[a:b], up[e], out=hidden[a:b])
        active = OPS["swiglu"](hidden, alpha, limit)
        for e, (a, b) in enumerate(pairwise(edges)):
            if a < b:
                torch.addmm(down_bias[e], active[a:b], down[e], out=output[a:b])
        by_token = output.index_select(0, back).view(n, n_active, -1)
        out = torch.bmm(share.to(x.dtype).view(n, 1, n_active), by_token).view(n, -1)
        ctx.save_for_backward(rows, hidden, active, output, share, up, down, token, back)
        ctx.edges, ctx.alpha, ctx.limit = edges, alpha, limit
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        rows, hidden, active, output, share, up, down, token, back = ctx.saved_tensors
        n, n_active = share.shape
        d_out = grads[0].contiguous().index_select(0, token)
        slot_share = share.new_zeros(len(token))  # 0 in empty slots, so they add nothing to any gradient
        slot_share[back] = share.reshape(-1)
        d_output, d_share = OPS["combined"](output, d_out, slot_share)
        d_active, d_down, d_down_bias = _product(active, d_output, down, ctx.edges)
        d_hidden = OPS["swiglu_backward"](hidden, d_active, ctx.alpha, ctx.limit)
        d_rows, d_up, d_up_bias = _product(rows, d_hidden, up, ctx.edges)
        d_x = d_rows.index_select(0, back).view(n, n_active, -1).sum(1)
        d_share = d_share.index_select(0, back).view(n, n_active)
        return d_x, d_share, None, d_up, d_up_bias, d_down, d_down_bias, None, None


def _slots(flat: Tensor, n_experts: int) -> tuple[Tensor, list[int]]:
    """The slot of each choice, with the slots of one expert adjacent, and the edges between experts.

    Each expert gets a multiple of SLOTS, so that products have few different shapes: for a new shape, torch first
    makes a kernel, which in bf16 takes longer than the product.

    >>> slots, edges = _slots(torch.tensor([1, 0, 1]), 2)
    >>> slots.tolist(), edges
    ([32, 0, 33], [0, 32, 64])
    """
    order = torch.argsort(flat, stable=True)
    counts = torch.bincount(flat, minlength=n_experts)
    room = (counts + SLOTS - 1) // SLOTS * SLOTS
    before = (room - counts).cumsum(0) - (room - counts)  # empty slots of the experts before
    slots = torch.empty_like(order)
    slots[order] = torch.arange(len(order)) + before[flat[order]]
    return slots, [0, *room.cumsum(0).tolist()]


def _product(x: Tensor, d_y: Tensor, weight: Tensor, edges: list[int]) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of y = x W[e] + b[e] with respect to x, W and b, expert by expert."""
    d_x = x.new_empty(len(x), x.shape[1])
    d_weight = torch.empty_like(weight)
    d_bias = weight.new_zeros(len(weight), weight.shape[2])
    for e, (a, b) in enumerate(pairwise(edges)):
        if a < b:
            torch.mm(d_y[a:b], weight[e].t(), out=d_x[a:b])
            torch.mm(x[a:b].t(), d_y[a:b], out=d_weight[e])
            torch.sum(d_y[a:b], 0, out=d_bias[e])
        else:
            d_weight[e].zero_()
    return d_x, d_weight, d_bias
