"""What a forward pass tells about the weights it uses: `Residency`, and `Resident`, for which there is nothing to do.

`pages.py` has the other two, for weights that are read straight from a file.
"""

from collections.abc import Collection
from typing import Protocol


class Residency(Protocol):
    """Called by the forward pass, layer by layer."""

    gives_back: bool  # whether `need` and `ahead` are worth their arguments

    def ahead(self, layer: int, experts: Collection[int]) -> None:
        """These experts of a layer will probably run soon."""

    def need(self, layer: int, experts: Collection[int]) -> None:
        """These experts of a layer run now."""

    def left(self, layer: int) -> None:
        """The pass has left a layer."""

    def embedded(self) -> None:
        """The embedding has been looked up."""

    def unembedded(self) -> None:
        """The logits have been computed."""


class Resident:
    """Weights that lie in memory: nothing to prepare, nothing to give back."""

    gives_back = False

    def ahead(self, layer: int, experts: Collection[int]) -> None:
        """Nothing to read."""

    def need(self, layer: int, experts: Collection[int]) -> None:
        """Nothing to read."""

    def left(self, layer: int) -> None:
        """Nothing to give back."""

    def embedded(self) -> None:
        """Nothing to give back."""

    def unembedded(self) -> None:
        """Nothing to give back."""


RESIDENT = Resident()
