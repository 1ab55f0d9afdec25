"""The expert MLPs of one layer: an expert runs for the positions where its weight is not zero, and only there."""

from itertools import groupby
from typing import NamedTuple

import torch
from torch import Tensor

from . import jit, native
from .adapted import Adapted, plain
from .linear import FEW, ROWS, changed, product
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
    x: Tensor, ran: Tensor, share: Tensor, up: Matrices | Adapted, up_bias: Tensor, down: Matrices | Adapted,
    down_bias: Tensor, alpha: float, limit: float,
) -> Tensor:  # fmt: skip
    """What each expert says, before its weight: pos choice d_model, zero where a choice has no weight.

    x: pos d_model; ran, share: pos choice; up: expert 2*d_mlp d_model; down: expert d_model d_mlp.
    """
    ours = takes(x, plain(up)) and takes(x, plain(down))
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
    return native.takes(x)


def _packed(x: Tensor, p: Plan, up, up_bias: Tensor, down, down_bias: Tensor, alpha: float, limit: float) -> Tensor:
    """All experts at once, straight from MXFP4. Which form is used depends on the pass alone: see `FEW`."""
    if native.isa() is None:
        linear_mxfp4, gated, how = jit.linear_mxfp4, swiglu, ()
    else:
        linear_mxfp4, gated, how = native.linear_mxfp4, native.swiglu, (x.shape[0] <= FEW,)

    def all_of(rows: Tensor, matrices: Matrices | Adapted, bias: Tensor) -> Tensor:
        m = plain(matrices)
        assert isinstance(m, Packed)
        return _changed(linear_mxfp4(rows, p.groups, m.blocks, m.scales, bias, *how), rows, p, matrices)

    return all_of(gated(all_of(x.index_select(0, p.rows), up, up_bias), alpha, limit), down, down_bias)


def _one_by_one(x: Tensor, p: Plan, up, up_bias: Tensor, down, down_bias: Tensor, alpha: float, limit: float) -> Tensor:
    """One expert's matrix after the other, so that only one at a time is dequantised."""

    def each(rows: Tensor, matrices: Matrices | Adapted, bias: Tensor) -> Tensor:
        m = plain(matrices)
        y = torch.cat([product(rows[a:b], dense(m, e, x.dtype), bias[e]) for e, a, b in p.groups])
        return _changed(y, rows, p, matrices)

    h = each(x.index_select(0, p.rows), up, up_bias)
    gated = native.swiglu if native.takes(h) else swiglu
    return each(gated(h, alpha, limit), down, down_bias)


def _changed(y: Tensor, rows: Tensor, p: Plan, matrices: Matrices | Adapted) -> Tensor:
    """The products of all experts, with what the low-rank changes of their matrices add, if they have any."""
    if not isinstance(matrices, Adapted):
        return y
    return torch.cat([changed(y[a:b], rows[a:b], matrices, e) for e, a, b in p.groups])
