"""The tap that records the values at selected hook points."""

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

from workbench.model.arrays import array
from workbench.taps import Tap, position_axis


class Recorder(Tap):
    """Stores the values at the hook points `points`, one piece per pass, on `device`.

    The forward pass never changes a value after a tap was called with it, so nothing is copied on the same device.
    With `keep_grad`, values stay in the graph, and have a `.grad` after a backward pass.
    """

    def __init__(self, points: Iterable[str], device: str | torch.device = "cpu", keep_grad: bool = False):
        self.points = frozenset(points)
        self.device = torch.device(device)
        self.keep_grad = keep_grad
        self.seen: dict[str, list[Tensor]] = {}

    def wants(self, name: str) -> bool:
        return name in self.points

    def reads(self, name: str) -> bool:
        return name in self.points

    def __call__(self, name: str, x: Tensor, offset: int = 0) -> Tensor:
        if name in self.points:
            if self.keep_grad:
                x = x.view_as(x)  # a new tensor that the pass continues with, even if it did not use x itself
                if x.requires_grad:
                    x.retain_grad()
            self.seen.setdefault(name, []).append(x if self.keep_grad else x.detach().to(self.device))
        return x

    def __getitem__(self, name: str) -> Tensor:
        """The pieces of one hook point, joined along positions: (batch, then the axes of the hook point)."""
        pieces = self.seen[name]
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces, position_axis(name))


def arrays(recorder: Recorder) -> dict[str, np.ndarray]:
    """The recorded values of a batch of one, as numpy: no batch axis, bfloat16 stays bfloat16, indices are int32."""
    return {name: array(recorder[name][0]) for name in recorder.seen}
