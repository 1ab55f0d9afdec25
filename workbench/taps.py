"""Taps: objects that the forward pass calls at each hook point. A tap can read a value, replace it, or both."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from workbench import hooks

if TYPE_CHECKING:
    from torch import Tensor


class Tap:
    """Base class: requests nothing and changes nothing.

    Values have a batch axis before the axes that `workbench.hooks` lists.
    """

    def wants(self, name: str) -> bool:
        """True if the pass must compute `name` for this tap.

        Patterns, scores, per-head results and expert outputs are computed only on request.
        """
        return False

    def reads(self, name: str) -> bool:
        """False if a call with `name` does nothing but return the value, so that the call may be left out."""
        return True

    def begin(self, start: int, n: int) -> None:
        """Called before a pass over the absolute positions start : start + n."""

    def __call__(self, name: str, x: "Tensor", offset: int = 0) -> "Tensor":
        """Return the value that the forward pass continues with.

        `offset` is the position within the pass at which x begins; it is 0 unless a hook point is called in chunks.
        """
        return x

    def pattern_rows(self, prefix: str) -> "Callable[[Tensor, int, int], None] | None":
        """A callback for each block of one layer's attention pattern, or None.

        `prefix` starts the hook names of the layer's attention ("blocks.3.attn."). The arguments of the callback are
        the block (batch, head, query, key), its first query and its first key.
        """
        return None


class Chain(Tap):
    """Several taps as one: each gets the value that the previous one returned."""

    def __init__(self, *taps: Tap):
        self.taps = taps

    def wants(self, name: str) -> bool:
        return any(tap.wants(name) for tap in self.taps)

    def reads(self, name: str) -> bool:
        return any(tap.reads(name) for tap in self.taps)

    def begin(self, start: int, n: int) -> None:
        for tap in self.taps:
            tap.begin(start, n)

    def __call__(self, name: str, x: "Tensor", offset: int = 0) -> "Tensor":
        for tap in self.taps:
            x = tap(name, x, offset)
        return x

    def pattern_rows(self, prefix: str) -> "Callable[[Tensor, int, int], None] | None":
        callbacks = [callback for tap in self.taps if (callback := tap.pattern_rows(prefix))]

        def call_all(pattern: "Tensor", first_query: int, first_key: int) -> None:
            for callback in callbacks:
                callback(pattern, first_query, first_key)

        return call_all if callbacks else None


def position_axis(name: str) -> int:
    """The axis of a tapped value (batch first) that runs over positions."""
    axes = hooks.axes(name)
    return 1 + axes.index("query" if "query" in axes else "pos")
