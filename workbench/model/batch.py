"""Several texts in one pass: their new positions are beside each other, and each text has its own tap and KV cache.

The products of a layer run once for the positions of all texts. Attention runs for each text over its own keys. The
texts may have any lengths, and nothing is padded.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from workbench.model.cache import KVCache
from workbench.taps import Tap, position_axis


@dataclass(frozen=True, slots=True)
class BatchRow:
    """One text of a pass. Its positions are `start:stop` of the pass."""

    start: int
    stop: int
    tap: Tap
    cache: KVCache | None  # with the positions before
    logits_at: slice  # of the text's own positions in this pass

    @property
    def span(self) -> slice:
        return slice(self.start, self.stop)

    def n_before(self, layer: int) -> int:
        """The number of positions of the text before this pass."""
        return self.cache.length(layer) if self.cache else 0


class RowsTap(Tap):
    """The taps of all rows as one: each gets the values of its own row, as in a pass of that row alone."""

    def __init__(self, rows: Sequence[BatchRow]):
        self.rows = rows

    def wants(self, name: str) -> bool:
        return any(row.tap.wants(name) for row in self.rows)

    def reads(self, name: str) -> bool:
        return any(row.tap.reads(name) for row in self.rows)

    def __call__(self, name: str, x: Tensor, offset: int = 0) -> Tensor:
        changed = []
        for row in self.rows:
            if row.tap.reads(name):
                # a copy, because a recorder keeps it: a view would keep the values of all rows
                own = x.narrow(position_axis(name), row.start, row.stop - row.start).clone()
                edited = row.tap(name, own)
                if edited is not own:
                    changed.append((row, edited))
        if not changed:
            return x
        axis, pieces, at = position_axis(name), [], 0
        for row, edited in changed:
            pieces += [x.narrow(axis, at, row.start - at), edited]
            at = row.stop
        return torch.cat([*pieces, x.narrow(axis, at, x.shape[axis] - at)], axis)
