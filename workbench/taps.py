"""Taps: what the forward pass calls at each hook point. A tap may look at a value, replace it, or both."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from workbench import hooks

if TYPE_CHECKING:
    from torch import Tensor


class Tap:
    """Wants nothing, changes nothing. Values have a batch axis before the axes that `workbench.hooks` lists."""

    def wants(self, name: str) -> bool:
        """Whether to compute what exists only on request: patterns, scores, results by head, expert outputs."""
        return False

    def begin(self, start: int, n: int) -> None:
        """A pass over the absolute positions start : start + n is about to run."""

    def __call__(self, name: str, x: "Tensor", offset: int = 0) -> "Tensor":
        """The value to go on with. `offset`: where x begins within the pass, for points that come in pieces."""
        return x

    def pattern_rows(self, here: str) -> "Callable[[Tensor, int, int], None] | None":
        """What to call with every block of the pattern: (batch head query key, its first query, its first key)."""
        return None


class Chain(Tap):
    """Several taps as one: each sees what the one before gave."""

    def __init__(self, *taps: Tap):
        self.taps = taps

    def wants(self, name: str) -> bool:
        return any(tap.wants(name) for tap in self.taps)

    def begin(self, start: int, n: int) -> None:
        for tap in self.taps:
            tap.begin(start, n)

    def __call__(self, name: str, x: "Tensor", offset: int = 0) -> "Tensor":
        for tap in self.taps:
            x = tap(name, x, offset)
        return x

    def pattern_rows(self, here: str) -> "Callable[[Tensor, int, int], None] | None":
        seers = [see for tap in self.taps if (see := tap.pattern_rows(here))]

        def all_see(pattern: "Tensor", first_query: int, first_key: int) -> None:
            for see in seers:
                see(pattern, first_query, first_key)

        return all_see if seers else None


def position_axis(name: str) -> int:
    """The axis of a tapped value (batch first) that counts positions."""
    known = hooks.axes(name)
    return 1 + known.index("query" if "query" in known else "pos")
