"""The expert MLPs of one layer: an expert runs for the positions where its weight is not zero, and only there."""

from itertools import groupby
from typing import NamedTuple

import torch
from torch import Tensor

from workbench.model.kernels import jit, native
from workbench.model.kernels.linear import ROWS, changed, product
from workbench.model.kernels.lora import Adapted, plain
from workbench.model.kernels.packed import Matrices, dense


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
    """Who computes what: the rows of all experts one after the other; each expert's may be filled up to a multiple."""

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
    x: Tensor, ran: Tensor, share: Tensor, up: Matrices | Adapted, up_bias: Tensor, down: Matrices | Adapted,
    down_bias: Tensor, alpha: float, limit: float,
) -> Tensor:  # fmt: skip
    """What each expert says, before its weight: pos choice d_model, zero where a choice has no weight.

    x: pos d_model; ran, share: pos choice; up: expert 2*d_mlp d_model; down: expert d_model d_mlp.
    """
    together = takes(x, plain(up)) and takes(x, plain(down))
    p = plan(ran, share, 1 if native.takes(x) or together else ROWS)
    if not p.groups:
        return x.new_zeros(*ran.shape, x.shape[-1])
    product_of = _together if together else _one_by_one
    gated = native.swiglu if native.takes(x) else swiglu

    def all_of(rows: Tensor, matrices: Matrices | Adapted, bias: Tensor) -> Tensor:
        return _changed(product_of(rows, p, plain(matrices), bias), rows, p, matrices)

    y = all_of(gated(all_of(x.index_select(0, p.rows), up, up_bias), alpha, limit), down, down_bias)
    said = y.index_select(0, p.slots).view(*ran.shape, x.shape[-1])
    return said if p.everyone else said * (share != 0)[..., None]


def takes(x: Tensor, matrices: Matrices) -> bool:
    """Whether the native kernels, or numba's, compute all experts at once: on the CPU, and no gradient is wanted."""
    if isinstance(matrices, Tensor):
        return native.takes(x) and native.takes(matrices)
    if not matrices.usual:
        return False
    return native.takes(x) if native.isa() is not None else jit.takes_decode(x)


def _together(rows: Tensor, p: Plan, m: Matrices, bias: Tensor) -> Tensor:
    """All experts at once; MXFP4 is read as it is."""
    if isinstance(m, Tensor):
        return native.linear_experts(rows, p.groups, m, bias)
    if native.isa() is None:
        return jit.linear_mxfp4(rows, p.groups, m.blocks, m.scales, bias)
    return native.linear_experts(rows, p.groups, (m.blocks, m.scales), bias)


def _one_by_one(rows: Tensor, p: Plan, m: Matrices, bias: Tensor) -> Tensor:
    """One expert's matrix after the other, so that only one at a time is dequantised."""
    multiply = native.linear if native.takes(rows) and native.takes(bias) else product
    return torch.cat([multiply(rows[a:b], dense(m, e, rows.dtype), bias[e]) for e, a, b in p.groups])


def _changed(y: Tensor, rows: Tensor, p: Plan, matrices: Matrices | Adapted) -> Tensor:
    """The products of all experts, with what the low-rank changes of their matrices add, if they have any."""
    if not isinstance(matrices, Adapted):
        return y
    return torch.cat([changed(y[a:b], rows[a:b], matrices, e) for e, a, b in p.groups])
