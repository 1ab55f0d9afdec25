"""The expert MLPs of one layer: an expert runs for the positions where its weight is not zero, and only there."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .linear import ROWS


def swiglu(x: Tensor, alpha: float, limit: float) -> Tensor:
    """gpt-oss's clamped SwiGLU: (up + 1) · gate · sigmoid(alpha gate), the columns being gate 0, up 0, gate 1, …"""
    gate, up = x[..., ::2].clamp(max=limit), x[..., 1::2].clamp(-limit, limit)
    return up.add_(1).mul_(gate.mul_(torch.sigmoid(alpha * gate)))  # both are ours: clamp made them


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
    pairs: Tensor  # (position, choice) that run, counted through
    slots: Tensor  # the row that computes each of them


def plan(ran: Tensor, share: Tensor, n_experts: int) -> Plan:
    """ran: pos choice, the experts; share: pos choice, their weights."""
    width = ran.shape[-1]
    pairs = share.flatten().nonzero()[:, 0]
    expert = ran.flatten()[pairs]
    order = expert.argsort(stable=True)
    pairs, expert = pairs[order], expert[order]
    counts = torch.bincount(expert, minlength=n_experts)
    filled = (counts + ROWS - 1) // ROWS * ROWS
    first, before = filled.cumsum(0) - filled, counts.cumsum(0) - counts
    slots = first[expert] + torch.arange(len(pairs), device=ran.device) - before[expert]
    rows = torch.zeros(int(filled.sum()), dtype=torch.long, device=ran.device)
    rows[slots] = pairs // width
    ends = zip(first.tolist(), filled.tolist())
    return Plan([(e, a, a + n) for e, (a, n) in enumerate(ends) if n], rows, pairs, slots)


def run(
    x: Tensor, ran: Tensor, share: Tensor, up: Tensor, up_bias: Tensor, down: Tensor, down_bias: Tensor,
    alpha: float, limit: float,
) -> Tensor:  # fmt: skip
    """What each expert says, before its weight: pos choice d_model, zero where a choice has no weight.

    x: pos d_model; ran, share: pos choice; up: expert 2*d_mlp d_model; down: expert d_model d_mlp.
    """
    p = plan(ran, share, len(up))
    if not p.groups:
        return x.new_zeros(*ran.shape, x.shape[-1])
    y = []
    for e, a, b in p.groups:  # one expert at a time: what it reads and computes stays in the cache
        h = swiglu(F.linear(x[p.rows[a:b]], up[e], up_bias[e]), alpha, limit)
        y.append(F.linear(h, down[e], down_bias[e]))
    slots = torch.zeros(ran.numel(), dtype=torch.long, device=x.device)
    slots[p.pairs] = p.slots
    said = torch.cat(y)[slots].view(*ran.shape, x.shape[-1])
    return said if len(p.pairs) == ran.numel() else said * (share != 0)[..., None]
