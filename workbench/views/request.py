"""The numbers in a request of the browser, checked: a page, or another program in its place, can send anything."""

from collections.abc import Mapping
from typing import Any

from workbench.checks import check_index
from workbench.errors import ArgumentError, ArgumentTypeError
from workbench.text import visible
from workbench.traces import Trace


def index_in(request: Mapping[str, Any], name: str, n: int) -> int:
    """The number `name` of a request, between 0 and n - 1.

    >>> index_in({"layer": 3}, "layer", 24)
    3

    Raises ArgumentError if it is missing, not a whole number, or out of range.
    """
    if not isinstance(request, Mapping):
        raise ArgumentTypeError(f"a request must be an object with named numbers, got {type(request).__name__}.")
    if name not in request:
        raise ArgumentError(f"the request has no {name!r}; it must be a whole number from 0 to {n - 1}.")
    return check_index(name, request[name], n)


def range_in(request: Mapping[str, Any], n: int) -> tuple[int, int]:
    """The range `from`:`to` of a request, with 0 <= from < to <= n.

    >>> range_in({"from": 2, "to": 5}, 10)
    (2, 5)

    Raises ArgumentError if one is missing, not a whole number, or out of range, or if the range is empty.
    """
    start, stop = index_in(request, "from", n), index_in(request, "to", n + 1)
    if start >= stop:
        raise ArgumentError(f"'from' must be less than 'to', and 'to' at most {n}; got {start} and {stop}.")
    return start, stop


def selected_slice(trace: Trace, value: Any) -> slice | None:
    """A range of positions as a slice; [first, stop], as the browser sends it, is one too, and None no range.

    >>> selected_slice(trace, [3, 7]), selected_slice(trace, None)
    (slice(3, 7, None), None)

    Raises ArgumentTypeError for another type, ArgumentError for an empty range, a step, or a bound out of range.
    """
    if value is None:
        return None
    n = len(trace)
    if isinstance(value, slice):
        if value.step not in (None, 1):
            raise ArgumentError(f"selected_range must have no step, got one of {visible(repr(value.step)[:60])}.")
        bounds = [0 if value.start is None else value.start, n if value.stop is None else value.stop]
    elif isinstance(value, list | tuple) and len(value) == 2:
        bounds = list(value)
    else:
        raise ArgumentTypeError(f"selected_range must be a slice of positions or None, got {type(value).__name__}.")
    first, stop = (check_index("a bound of selected_range", bound, n + 1) for bound in bounds)
    if first >= stop:
        raise ArgumentError(f"selected_range must contain a position: 0 <= first < stop <= {n}, got {first}:{stop}.")
    return slice(first, stop)


def selected_place(trace: Trace, value: Any) -> dict[str, int] | None:
    """A place in a trace as a dict over some of pos, layer and head; a number is a position, None no place.

    Raises ArgumentError for another axis or type, SelectionError for a number out of range.
    """
    if value is None:
        return None
    if not isinstance(value, Mapping):
        value = {"pos": value}
    sizes = {"pos": len(trace), "layer": trace.config["n_layers"], "head": trace.config.get("n_heads", 0)}
    unknown = [axis for axis in value if axis not in sizes]
    if unknown:
        raise ArgumentError(
            f"selected must have some of the axes {', '.join(sizes)}, got {visible(repr(unknown[0])[:60])}."
        )
    return {axis: check_index(axis, number, sizes[axis]) for axis, number in value.items()}
