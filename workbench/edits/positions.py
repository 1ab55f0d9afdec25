"""Which positions of a text an edit applies to: absolute, counted from the start of the prompt."""

from collections.abc import Iterable, Mapping, Sized
from dataclasses import dataclass
from typing import Any

from workbench.checks import check_slice, check_whole
from workbench.errors import EditError
from workbench.text import shown

MAX_POSITIONS = 10_000_000  # more than any text has


@dataclass(frozen=True)
class Positions:
    """A set of absolute positions: `listed`, or all of `span` if `listed` is None; `text` is its form in a manifest."""

    listed: frozenset[int] | None
    span: slice | None
    text: str

    def __call__(self, p: int) -> bool:
        if self.listed is not None:
            return p in self.listed
        assert self.span is not None
        return (self.span.start or 0) <= p and (self.span.stop is None or p < self.span.stop)


def positions_of(positions) -> Positions | None:
    """Absolute positions from an int, a slice with step 1, or several ints; None means all."""
    if positions is None:
        return None
    if isinstance(positions, slice):
        positions = check_slice("positions", positions)
        if positions == slice(None):
            return None
        if positions.step not in (None, 1) or min(positions.start or 0, positions.stop or 0) < 0:
            raise EditError(f"a slice of positions must have no negative start or stop, and no step; got {positions}")
        return Positions(None, positions, f"{positions.start or 0}:{'' if positions.stop is None else positions.stop}")
    try:
        listed = whole_numbers(positions)
    except TypeError:
        listed = []
    if not listed or min(listed) < 0:
        raise EditError(f"positions must be one or more whole numbers of at least 0, got {shown(positions)}")
    return Positions(frozenset(listed), None, ",".join(map(str, sorted(set(listed)))))


def whole_numbers(value: Any) -> list[int]:
    """A list of one or several whole numbers of Python or numpy. Raises TypeError for anything else."""
    several = (
        isinstance(value, Iterable) and getattr(value, "ndim", 1) > 0 and not isinstance(value, str | bytes | Mapping)
    )
    if several and _size(value) > MAX_POSITIONS:
        raise TypeError(f"more than {MAX_POSITIONS:,} positions")
    return [check_whole("each entry", entry) for entry in (value if several else [value])]


def _size(value: Any) -> int:
    return len(value) if isinstance(value, Sized) else 0  # of an iterator, nobody knows
