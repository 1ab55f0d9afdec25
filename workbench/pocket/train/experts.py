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
        flat = chosen.reshape(-1)
        order = torch.argsort(flat, stable=True)  # rows of one expert become adjacent
        token = order // n_active
        edges = [0, *torch.bincount(flat, minlength=len(up)).cumsum(0).tolist()]
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
        back = torch.empty_like(order)
        back[order] = torch.arange(len(order))
        by_token = output.index_select(0, back).view(n, n_active, -1)
        out = torch.bmm(share.to(x.dtype).view(n, 1, n_active), by_token).view(n, -1)
        ctx.save_for_backward(rows, hidden, active, output, share, up, down, order, token, back)
        ctx.edges, ctx.alpha, ctx.limit = edges, alpha, limit
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        rows, hidden, active, output, share, up, down, order, token, back = ctx.saved_tensors
        n, n_active = share.shape
        d_out = grads[0].contiguous().index_select(0, token)
        d_output, d_share = OPS["combined"](output, d_out, share.reshape(-1).index_select(0, order))
        d_active, d_down, d_down_bias = _product(active, d_output, down, ctx.edges)
        d_hidden = OPS["swiglu_backward"](hidden, d_active, ctx.alpha, ctx.limit)
        d_rows, d_up, d_up_bias = _product(rows, d_hidden, up, ctx.edges)
        d_x = d_rows.index_select(0, back).view(n, n_active, -1).sum(1)
        d_share = d_share.index_select(0, back).view(n, n_active)
        return d_x, d_share, None, d_up, d_up_bias, d_down, d_down_bias, None, None


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
