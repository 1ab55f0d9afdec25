"""The tap that records: values at the wanted hook points, as the forward pass meets them."""

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

from workbench.model.arrays import array
from workbench.taps import Tap, position_axis


class Recorder(Tap):
    """Keeps the values at the wanted hook points, one piece per pass, on `device`.

    The forward pass never writes into a value that a tap has seen, so on the same device nothing is copied.
    With `keep_grad`, values stay in the graph and their `.grad` is there after a backward pass.
    """

    def __init__(self, wanted: Iterable[str], device: str | torch.device = "cpu", keep_grad: bool = False):
        self.wanted = frozenset(wanted)
        self.device = torch.device(device)
        self.keep_grad = keep_grad
        self.seen: dict[str, list[Tensor]] = {}

    def wants(self, name: str) -> bool:
        return name in self.wanted

    def __call__(self, name: str, x: Tensor, offset: int = 0) -> Tensor:
        if name in self.wanted:
            if self.keep_grad:
                x = x.view_as(x)  # a tensor of its own: the pass goes on from it, also where it had not used x
                if x.requires_grad:
                    x.retain_grad()
            self.seen.setdefault(name, []).append(x if self.keep_grad else x.detach().to(self.device))
        return x

    def __getitem__(self, name: str) -> Tensor:
        """All pieces of one hook point, joined along positions: batch and the axes of the hook point."""
        pieces = self.seen[name]
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces, position_axis(name))


def arrays(recorder: Recorder) -> dict[str, np.ndarray]:
    """What a recorder kept of a batch of one, as numpy: no batch axis, bfloat16 kept as bfloat16, indices as int32."""
    return {name: array(recorder[name][0]) for name in recorder.seen}
