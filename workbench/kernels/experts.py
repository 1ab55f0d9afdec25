"""The expert MLPs of one layer: an expert runs for the positions where its weight is not zero, and only there."""

from itertools import groupby
from typing import NamedTuple

import torch
from torch import Tensor

from . import jit, native
from .linear import FEW, ROWS, product
from .packed import Matrices, Packed, dense


def swiglu(x: Tensor, alpha: float, limit: float) -> Tensor:
    """gpt-oss's clamped SwiGLU: (up + 1) · gate · sigmoid(alpha gate), the columns being gate 0, up 0, gate 1, …

    In fp32 or better, rounded once.
    """
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    gate, up = wide[..., ::2].clamp(max=limit), wide[..., 1::2].clamp(-limit, limit)
    return up.add_(1).mul_(gate.mul_(torch.sigmoid(alpha * gate))).to(x.dtype)  # both are ours: clamp made them


def choices(indices: Tensor, weight: Tensor) -> Tensor:
    """Which experts really run, by choice: the router's own choice as long as all weight lies on it.

    If an edit gave weight to others, the experts by falling size of their weight, as many columns as the busiest
    position needs. indices: pos choice; weight: pos expert.
    """
    on_chosen = (weight.gather(-1, indices) != 0).sum(-1)
    running = (weight != 0).sum(-1)
    if torch.equal(on_chosen, running):
        return indices
    width = max(indices.shape[-1], int(running.max()))
    return weight.abs().argsort(dim=-1, descending=True, stable=True)[..., :width]


class Plan(NamedTuple):
    """Who computes what: the rows of all experts one after the other, each expert's rows filled up to a multiple of 4.

    A position's bits then do not depend on how many other positions share its expert (see `linear`).
    """

    groups: list[tuple[int, int, int]]  # expert, first row, last row
    rows: Tensor  # row -> position that it reads
    slots: Tensor  # (position, choice), counted through -> the row that computes it; any where it does not run
    everyone: bool  # whether all of them run


def plan(ran: Tensor, share: Tensor, multiple: int = ROWS) -> Plan:
    """ran: pos choice, the experts; share: pos choice, their weights. An expert's rows are filled to a multiple."""
    # in plain Python: a decoded token has four pairs, and each step of an array library costs more than all of them
    chosen, runs = ran.flatten().tolist(), (share != 0).flatten().tolist()
    pairs = sorted((pair for pair, does in enumerate(runs) if does), key=chosen.__getitem__)
    groups, rows, slots = [], [], [0] * len(chosen)
    for expert, its in groupby(pairs, key=chosen.__getitem__):
        first = len(rows)
        for pair in its:
            slots[pair] = len(rows)
            rows.append(pair // ran.shape[-1])
        rows += [0] * (-(len(rows) - first) % multiple)
        groups.append((expert, first, len(rows)))
    on = {"dtype": torch.long, "device": ran.device}
    return Plan(groups, torch.tensor(rows, **on), torch.tensor(slots, **on), len(pairs) == len(chosen))


def run(
    x: Tensor, ran: Tensor, share: Tensor, up: Matrices, up_bias: Tensor, down: Matrices, down_bias: Tensor,
    alpha: float, limit: float,
) -> Tensor:  # fmt: skip
    """What each expert says, before its weight: pos choice d_model, zero where a choice has no weight.

    x: pos d_model; ran, share: pos choice; up: expert 2*d_mlp d_model; down: expert d_model d_mlp.
    """
    ours = takes(x, up) and takes(x, down)
    p = plan(ran, share, 1 if ours else ROWS)  # a row of the native kernels never knows its neighbours
    if not p.groups:
        return x.new_zeros(*ran.shape, x.shape[-1])
    if ours:
        y = _packed(x, p, up, up_bias, down, down_bias, alpha, limit)
    else:
        y = _one_by_one(x, p, up, up_bias, down, down_bias, alpha, limit)
    said = y.index_select(0, p.slots).view(*ran.shape, x.shape[-1])
    return said if p.everyone else said * (share != 0)[..., None]


def takes(x: Tensor, matrices: Matrices) -> bool:
    """Whether the native kernels, or numba's, compute with these: packed on the CPU, and no gradient is wanted."""
    if not isinstance(matrices, Packed) or not matrices.usual:
        return False
    if native.isa() is None:
        return jit.takes_decode(x)
    grad = torch.is_grad_enabled() and x.requires_grad
    return x.device.type == "cpu" and x.dtype in (torch.float32, torch.bfloat16) and not grad


def _packed(x: Tensor, p: Plan, up, up_bias: Tensor, down, down_bias: Tensor, alpha: float, limit: float) -> Tensor:
    """All experts at once, straight from MXFP4. Which form is used depends on the pass alone: see `FEW`."""
    if native.isa() is None:
        h = swiglu(jit.linear_mxfp4(x.index_select(0, p.rows), p.groups, up.blocks, up.scales, up_bias), alpha, limit)
        return jit.linear_mxfp4(h, p.groups, down.blocks, down.scales, down_bias)
    few = x.shape[0] <= FEW
    h = native.linear_mxfp4(x.index_select(0, p.rows), p.groups, up.blocks, up.scales, up_bias, few)
    return native.linear_mxfp4(native.swiglu(h, alpha, limit), p.groups, down.blocks, down.scales, down_bias, few)


def _one_by_one(x: Tensor, p: Plan, up, up_bias: Tensor, down, down_bias: Tensor, alpha: float, limit: float) -> Tensor:
    """One expert after the other: what it reads and computes stays in the cache, and one at a time is dequantised."""
    y = []
    for e, a, b in p.groups:
        h = swiglu(product(x[p.rows[a:b]], dense(up, e, x.dtype), up_bias[e]), alpha, limit)
        y.append(product(h, dense(down, e, x.dtype), down_bias[e]))
    return torch.cat(y)
