"""The state that all workers of a run share: weights, gradients and optimizer state, in one flat tensor each.

Every worker computes gradients on its own batch, waits, updates the tensors that it owns from the mean of all
gradients, and waits again. So a step does not depend on the speed of the workers, and the processes can be stopped
safely.
"""

from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from workbench.pocket.train.model import Pocket


@dataclass(slots=True)
class Shared:
    """Flat tensors in shared memory, and their layout as named tensors."""

    layout: dict[str, tuple[int, tuple[int, ...]]]  # name -> offset, shape
    weights: Tensor
    grads: Tensor  # worker …
    mean: Tensor  # Muon's momentum, Adam's mean
    square: Tensor  # Adam's mean square
    load: Tensor  # layer expert: running mean
    now: Tensor  # worker layer expert: load of the current step
    counts: Tensor  # worker: loss, tokens
    places: Tensor  # worker: pool, index, progress
    scores: Tensor  # row effort

    @classmethod
    def of(cls, model: Pocket, workers: int, n_rows: int) -> "Shared":
        """Shared copies of a model's parameters; an even expert load, and zeros for everything else."""
        layout, at = {}, 0
        c = model.c
        for name, p in model.named_parameters():
            layout[name] = (at, tuple(p.shape))
            at += p.numel()
        weights = torch.cat([p.detach().flatten() for p in model.parameters()])
        zeros = [torch.zeros(n, at) for n in (workers, 1, 1)]
        even = torch.full((c.n_layers, c.n_experts), 1 / c.n_experts)
        rest = [even, torch.zeros(workers, *even.shape), torch.zeros(workers, 2)]
        rest += [torch.zeros(workers, 3, dtype=torch.float64), torch.zeros(n_rows, 2)]
        tensors = [t.share_memory_() for t in (weights, zeros[0], zeros[1][0], zeros[2][0], *rest)]
        return cls(layout, *tensors)

    def cut(self, flat: Tensor) -> dict[str, Tensor]:
        """Views of a flat tensor by name; they share its memory."""
        return {name: flat[at : at + prod(shape)].view(shape) for name, (at, shape) in self.layout.items()}

    def adopt(self, model: Pocket, worker: int) -> None:
        """Replaces a model's parameters and gradients by views of the shared ones."""
        weights, grads = self.cut(self.weights), self.cut(self.grads[worker])
        for name, p in model.named_parameters():
            p.data, p.grad = weights[name], grads[name]

    def owned(self, worker: int) -> list[str]:
        """The names of the tensors that a worker updates: largest first, each assigned to the least loaded worker."""
        loads = [0] * len(self.grads)
        names = []
        for name in sorted(self.layout, key=lambda name: (-prod(self.layout[name][1]), name)):
            owner = loads.index(min(loads))
            loads[owner] += prod(self.layout[name][1])
            names += [name] * (owner == worker)
        return names

    def state(self) -> dict[str, Tensor]:
        """The tensors that a checkpoint contains."""
        return {"weights": self.weights, "mean": self.mean, "square": self.square, "load": self.load}

    def restore(self, state: dict[str, Tensor]) -> None:
        for name, tensor in self.state().items():
            tensor.copy_(state[name])
