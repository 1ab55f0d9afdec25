"""What a forward pass reports about the weights it uses: the protocol `Residency`, and `Resident`, which does nothing.

`pages.py` has the two implementations for weights that are memory-mapped from a file.
"""

from collections.abc import Collection
from typing import Protocol


class Residency(Protocol):
    """Called by the forward pass, layer by layer."""

    streams: bool  # whether experts are read on demand; if not, `require` and `prefetch` need not be called

    def prefetch(self, layer: int, experts: Collection[int]) -> None:
        """These experts of a layer will probably run soon."""

    def require(self, layer: int, experts: Collection[int]) -> None:
        """These experts of a layer run now."""

    def release(self, layer: int) -> None:
        """The pass has finished a layer."""

    def after_embedding(self) -> None:
        """The embedding has been looked up."""

    def after_unembedding(self, n_positions: int) -> None:
        """The logits of so many positions have been computed."""


class Resident:
    """Weights in ordinary memory: there is nothing to read and nothing to release."""

    streams = False

    def prefetch(self, layer: int, experts: Collection[int]) -> None:
        """Does nothing: the weights are in memory."""

    def require(self, layer: int, experts: Collection[int]) -> None:
        """Does nothing: the weights are in memory."""

    def release(self, layer: int) -> None:
        """Does nothing: the weights stay in memory."""

    def after_embedding(self) -> None:
        """Does nothing: the weights stay in memory."""

    def after_unembedding(self, n_positions: int) -> None:
        """Does nothing: the weights stay in memory."""


RESIDENT = Resident()
