"""Numbers that all workers of a run share: weights, gradients, the optimiser's memory, in one flat tensor each.

Every worker computes gradients of its own batch, waits, updates the tensors that it owns from the mean of all
gradients, and waits again. So a step is the same whichever worker is slow, and stopping the processes does no harm.
"""

from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from workbench.pocket.train.model import Pocket


@dataclass(slots=True)
class Shared:
    """Flat tensors in shared memory, and the layout that cuts them into named pieces."""

    layout: dict[str, tuple[int, tuple[int, ...]]]  # name -> begin, shape
    weights: Tensor
    grads: Tensor  # worker …
    mean: Tensor  # Muon's momentum, Adam's mean
    square: Tensor
    load: Tensor  # layer expert: running mean
    now: Tensor  # worker layer expert
    counts: Tensor  # worker: loss, tokens
    places: Tensor  # worker: pool, index, progress
    scores: Tensor  # family effort

    @classmethod
    def of(cls, model: Pocket, workers: int, families: int) -> "Shared":
        """Shared copies of a model's parameters, and zeros for the rest."""
        layout, at = {}, 0
        c = model.c
        for name, p in model.named_parameters():
            layout[name] = (at, tuple(p.shape))
            at += p.numel()
        weights = torch.cat([p.detach().flatten() for p in model.parameters()])
        zeros = [torch.zeros(n, at) for n in (workers, 1, 1)]
        even = torch.full((c.n_layers, c.n_experts), 1 / c.n_experts)
        rest = [even, torch.zeros(workers, *even.shape), torch.zeros(workers, 2)]
        rest += [torch.zeros(workers, 3, dtype=torch.float64), torch.zeros(families, 2)]
        made = [t.share_memory_() for t in (weights, zeros[0], zeros[1][0], zeros[2][0], *rest)]
        return cls(layout, *made)

    def cut(self, flat: Tensor) -> dict[str, Tensor]:
        """A flat tensor's pieces by name; they share its memory."""
        return {name: flat[at : at + prod(shape)].view(shape) for name, (at, shape) in self.layout.items()}

    def adopt(self, model: Pocket, worker: int) -> None:
        """Makes a model's parameters and gradients the shared ones."""
        weights, grads = self.cut(self.weights), self.cut(self.grads[worker])
        for name, p in model.named_parameters():
            p.data, p.grad = weights[name], grads[name]

    def owned(self, worker: int) -> list[str]:
        """The names that a worker updates: the largest first, each to whoever has least."""
        loads = [0] * len(self.grads)
        mine = []
        for name in sorted(self.layout, key=lambda name: (-prod(self.layout[name][1]), name)):
            to = loads.index(min(loads))
            loads[to] += prod(self.layout[name][1])
            mine += [name] * (to == worker)
        return mine

    def state(self) -> dict[str, Tensor]:
        """What a checkpoint keeps."""
        return {"weights": self.weights, "mean": self.mean, "square": self.square, "load": self.load}

    def restore(self, state: dict[str, Tensor]) -> None:
        for name, held in self.state().items():
            held.copy_(state[name])
