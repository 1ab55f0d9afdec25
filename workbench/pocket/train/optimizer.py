"""Muon for the matrices, AdamW for all other tensors.

Muon (kellerjordan.github.io/posts/muon) with Polar Express coefficients (arXiv 2505.16932). At a learning rate of 0.02
this model stays on the plateau where it does not attend; at 0.006 it leaves the plateau within a few hundred steps.
"""

import torch
from torch import Tensor

POLAR = ((8.2873, -23.5959, 17.3004), (4.1071, -2.9478, 0.5448), (3.9487, -2.9089, 0.5518), (3.3184, -2.4885, 0.5100))
MOMENTUM = 0.95
# Experts are updated every second step: an expert sees an eighth of the tokens, and orthogonalizing its matrices is the
# largest cost.
EXPERTS_EVERY = 2


def is_matrix(name: str) -> bool:
    """Whether Muon trains the tensor: matrices inside the layers, except the router's.

    >>> is_matrix("blocks.0.w_up"), is_matrix("blocks.0.b_up"), is_matrix("blocks.0.w_router"), is_matrix("embed")
    (True, False, False, False)
    """
    kind = name.rpartition(".")[2]
    return kind.startswith("w_") and kind != "w_router"


def orthogonal(g: Tensor) -> Tensor:
    """For a stack of matrices, the nearest ones with singular values of about 1."""
    x = g.mT if g.shape[-2] > g.shape[-1] else g
    x = x / (x.norm(dim=(-2, -1), keepdim=True) * 1.01 + 1e-7)
    for a, b, c in POLAR:
        square = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(square, square, square, beta=b, alpha=c), x, beta=a)
    return x.mT if g.shape[-2] > g.shape[-1] else x


def parts(name: str, g: Tensor, sizes: dict[str, list[int]]) -> list[Tensor]:
    """The matrices that are concatenated in one tensor, each as a stack: q, k and v; gates and ups."""
    stack = g if g.ndim == 3 else g[None]
    return list(stack.split(sizes.get(name.rpartition(".")[2], [stack.shape[-1]]), -1))


def pace(name: str) -> int:
    """The number of steps between two updates of a matrix; the update is multiplied by the same number."""
    return EXPERTS_EVERY if name.endswith(("w_up", "w_down")) else 1


@torch.no_grad()
def muon(
    weights: dict[str, Tensor],
    grads: dict[str, Tensor],
    momenta: dict[str, Tensor],
    lr: float,
    step: int,
    sizes: dict[str, list[int]],
) -> None:
    """One Muon step, in place; matrices of one shape are orthogonalized together.

    Args:
        weights: All weights, by name.
        grads: The gradients of the matrices to update.
        momenta: The running means of the gradients; updated.
        lr: The learning rate.
        step: The step's number, from 1.
        sizes: As for `parts`.
    """
    groups: dict[tuple[int, ...], list[tuple[str, int, Tensor]]] = {}
    for name, grad in grads.items():
        momenta[name].lerp_(grad, 1 - MOMENTUM)
        if step % pace(name):
            continue
        for i, part in enumerate(parts(name, grad.lerp(momenta[name], MOMENTUM), sizes)):
            groups.setdefault(tuple(part.shape[-2:]), []).append((name, i, part))
    updates: dict[str, dict[int, Tensor]] = {}
    for (n_in, n_out), members in groups.items():
        stacked = orthogonal(torch.cat([part for _, _, part in members])) * max(1.0, n_out / n_in) ** 0.5
        for (name, i, _), part in zip(members, stacked.split([len(part) for _, _, part in members])):
            updates.setdefault(name, {})[i] = part
    for name, update in updates.items():
        weights[name].add_(
            torch.cat([update[i] for i in sorted(update)], -1).view_as(weights[name]), alpha=-lr * pace(name)
        )


@torch.no_grad()
def adamw(
    weights: dict[str, Tensor],
    grads: dict[str, Tensor],
    means: dict[str, Tensor],
    squares: dict[str, Tensor],
    lr: float,
    step: int,
) -> None:
    """One Adam step without weight decay, in place; each tensor's gradient is clipped to a norm of 1.

    Args:
        weights: All weights, by name.
        grads: The gradients of the tensors to update.
        means: The running means of the gradients; updated.
        squares: The running means of their squares; updated.
        lr: The learning rate.
        step: The step's number, from 1.
    """
    b1, b2 = 0.9, 0.98
    for name, grad in grads.items():
        grad = grad * (1 / grad.norm().clamp(min=1.0))
        means[name].lerp_(grad, 1 - b1)
        squares[name].lerp_(grad.square(), 1 - b2)
        root = (squares[name] / (1 - b2**step)).sqrt_().add_(1e-8)
        weights[name].addcdiv_(means[name], root, value=-lr / (1 - b1**step))
