"""The expert MLPs of one layer: an expert runs only for the positions at which its weight is not zero."""

from itertools import groupby
from typing import NamedTuple

import torch
from torch import Tensor

from workbench.model.kernels import jit, native
from workbench.model.kernels.linear import ROWS, add_low_rank, product
from workbench.model.kernels.lora import Adapted, plain
from workbench.model.kernels.packed import Matrices, dense


def swiglu(x: Tensor, alpha: float, limit: float) -> Tensor:
    """gpt-oss's clamped SwiGLU: (up + 1) · gate · sigmoid(alpha gate). The columns of x are gate 0, up 0, gate 1, …

    In fp32 or wider, rounded once.
    """
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    gate, up = wide[..., ::2].clamp(max=limit), wide[..., 1::2].clamp(-limit, limit)
    return up.add_(1).mul_(gate.mul_(torch.sigmoid(alpha * gate))).to(x.dtype)  # in place: clamp has made copies


def active_experts(indices: Tensor, weight: Tensor) -> Tensor:
    """The experts to run (pos choice): the router's choice, if no other expert has weight.

    Otherwise an edit has given weight to other experts. The result is then all experts with nonzero weight, by
    descending absolute weight; the position with the most experts sets the number of columns.
    indices: pos choice; weight: pos expert.
    """
    on_chosen = (weight.gather(-1, indices) != 0).sum(-1)
    running = (weight != 0).sum(-1)
    if torch.equal(on_chosen, running):
        return indices
    width = max(indices.shape[-1], int(running.max()))
    return weight.abs().argsort(dim=-1, descending=True, stable=True)[..., :width]


class Plan(NamedTuple):
    """The rows of all experts, sorted by expert; each expert's rows may be padded to a multiple."""

    groups: list[tuple[int, int, int]]  # expert, first row, last row
    rows: Tensor | None  # row -> the position of its input; None for the only position
    slots: Tensor | None  # (position, choice), flattened -> its row, arbitrary if the expert does not run; None: equal
    all_run: bool  # True if every (position, choice) runs


def plan_one(indices: Tensor) -> Plan:
    """The plan for the experts of a single position, which all run: a row for each, in the order of the choices."""
    return Plan([(expert, row, row + 1) for row, expert in enumerate(indices[0].tolist())], None, None, True)


def plan(indices: Tensor, weight: Tensor, multiple: int = ROWS) -> Plan:
    """The plan for the experts `indices` (pos choice) with weights `weight` (pos choice); pads to `multiple` rows."""
    # in plain Python: a decoded token has only four pairs, and one call of an array library costs more than this loop
    chosen, runs = indices.flatten().tolist(), (weight != 0).flatten().tolist()
    pairs = sorted((pair for pair, is_run in enumerate(runs) if is_run), key=chosen.__getitem__)
    groups, rows, slots = [], [], [0] * len(chosen)
    for expert, expert_pairs in groupby(pairs, key=chosen.__getitem__):
        first = len(rows)
        for pair in expert_pairs:
            slots[pair] = len(rows)
            rows.append(pair // indices.shape[-1])
        rows += [0] * (-(len(rows) - first) % multiple)
        groups.append((expert, first, len(rows)))
    like = {"dtype": torch.long, "device": indices.device}
    return Plan(groups, torch.tensor(rows, **like), torch.tensor(slots, **like), len(pairs) == len(chosen))


def run_experts(
    x: Tensor, indices: Tensor, weight: Tensor, up: Matrices | Adapted, up_bias: Tensor, down: Matrices | Adapted,
    down_bias: Tensor, alpha: float, limit: float,
) -> Tensor:  # fmt: skip
    """The output of each expert, not yet weighted: pos choice d_model, zero where a choice has no weight.

    x: pos d_model; indices, weight: pos choice; up: expert 2*d_mlp d_model; down: expert d_model d_mlp.
    """
    together = batched(x, plain(up)) and batched(x, plain(down))
    multiple = 1 if native.supports(x) or together else ROWS
    one_token = len(x) == 1 and multiple == 1 and bool(weight.all())
    p = plan_one(indices) if one_token else plan(indices, weight, multiple)
    if not p.groups:
        return x.new_zeros(*indices.shape, x.shape[-1])
    multiply = _together if together else _one_by_one
    gated = native.swiglu if native.supports(x) else swiglu

    def linear_all(rows: Tensor, matrices: Matrices | Adapted, bias: Tensor) -> Tensor:
        return _add_low_rank(multiply(rows, p, plain(matrices), bias), rows, p, matrices)

    rows = x.expand(len(p.groups), -1) if p.rows is None else x.index_select(0, p.rows)
    y = linear_all(gated(linear_all(rows, up, up_bias), alpha, limit), down, down_bias)
    out = (y if p.slots is None else y.index_select(0, p.slots)).view(*indices.shape, x.shape[-1])
    return out if p.all_run else out * (weight != 0)[..., None]


def batched(x: Tensor, matrices: Matrices) -> bool:
    """True if a kernel (native, or numba's) computes all experts in one call: on the CPU and without gradients."""
    if isinstance(matrices, Tensor):
        return native.supports(x) and native.supports(matrices)
    if not matrices.scales_are_safe:
        return False
    return native.supports(x) if native.isa() is not None else jit.supports_decode(x)


def _together(rows: Tensor, p: Plan, m: Matrices, bias: Tensor) -> Tensor:
    """All experts in one kernel call; MXFP4 matrices are not dequantized first."""
    if isinstance(m, Tensor):
        return native.linear_experts(rows, p.groups, m, bias)
    if native.isa() is None:
        return jit.linear_mxfp4(rows, p.groups, m.blocks, m.scales, bias)
    return native.linear_experts(rows, p.groups, (m.blocks, m.scales), bias)


def _one_by_one(rows: Tensor, p: Plan, m: Matrices, bias: Tensor) -> Tensor:
    """One expert at a time, so that only one matrix is dequantized at any time."""
    product_of = native.linear if native.supports(rows) and native.supports(bias) else product
    return torch.cat([product_of(rows[a:b], dense(m, e, rows.dtype), bias[e]) for e, a, b in p.groups])


def _add_low_rank(y: Tensor, rows: Tensor, p: Plan, matrices: Matrices | Adapted) -> Tensor:
    """The products of all experts plus those of the low-rank changes of their matrices, if there are any."""
    if not isinstance(matrices, Adapted):
        return y
    return torch.cat([add_low_rank(y[a:b], rows[a:b], matrices, e) for e, a, b in p.groups])
