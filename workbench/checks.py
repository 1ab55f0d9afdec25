"""Checks of arguments, one for each kind: an index, a number, a seed, a name, an array, a list, a type, a package.

Every public function checks its arguments with these before it computes anything. A check returns the value as
Python's own type, so a scalar of numpy gives the same result as a number of Python. A bool is not a number. Each check
has one wording, so that the error for a wrong layer is the same everywhere. `tests/test_arguments.py` calls every
public function with wrong values of every kind.
"""

import math
import numbers
import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib import import_module
from typing import Any

import numpy as np

from workbench.errors import ArgumentError, ArgumentTypeError, MissingDependency, SelectionError
from workbench.text import shown

MAX_REPEATS = 1_000_000  # resamples, shuffles, samples: more take forever and change no result
MAX_INTEGER = 2**63 - 1  # of a seed, and of every other whole number without a bound of its own

# Import name -> name on PyPI, where they differ.
_PACKAGES = {"sklearn": "scikit-learn", "transformer_lens": "transformer-lens"}

# Class -> how an error names it, and where one comes from.
_NEEDED = {
    "Trace": "a Trace (as from wb.trace, model.trace or wb.load)",
    "Model": "a wb.Model (such as wb.Model('pocket'))",
    "Figure": "a Figure (as from the functions of wb.figures)",
    "DataArray": "a labeled array (as from trace.array('entropy') or wb.attention.step_attention)",
    "TunedLens": "a TunedLens (as from wb.lens.train_tuned_lens)",
    "SAE": "an SAE (as from wb.sae.load_sae)",
}


def check_index(what: str, index: Any, n: int) -> int:
    """`index` as an int, if it is between 0 and n - 1; `what` names it in the error.

    >>> check_index("neuron", 3, 8)
    3
    >>> check_index("neuron", 8, 8)
    Traceback (most recent call last):
    workbench.errors.SelectionError: neuron must be between 0 and 7, got 8.

    Raises SelectionError for another number, ArgumentTypeError for a value that is not a whole number.
    """
    number = _whole_number(what, index)
    if not 0 <= number < n:
        raise _out_of_range(what, number, n)
    return number


def resolve_index(what: str, index: Any, n: int) -> int:
    """`index` as an int between 0 and n - 1, where a negative one counts from the end as in Python.

    >>> resolve_index("layer", -1, 24)
    23

    Raises SelectionError for a number out of range, ArgumentTypeError for a value that is not a whole number.
    """
    number = _whole_number(what, index)
    if not -n <= number < n:
        raise _out_of_range(what, number, n)
    return number % n


def check_layer(layer: Any, n_layers: int) -> int:
    """`layer` as an int; SelectionError unless it is between 0 and n_layers - 1."""
    return check_index("layer", layer, n_layers)


def check_head(head: Any, n_heads: int) -> int:
    """`head` as an int; SelectionError unless it is between 0 and n_heads - 1."""
    return check_index("head", head, n_heads)


def check_expert(expert: Any, n_experts: int) -> int:
    """`expert` as an int; SelectionError unless it is between 0 and n_experts - 1."""
    return check_index("expert", expert, n_experts)


def check_position(position: Any, n_positions: int) -> int:
    """`position` as an int; SelectionError unless it is between 0 and n_positions - 1."""
    return check_index("position", position, n_positions)


def resolve_layer(layer: Any, n_layers: int) -> int:
    """`layer` between 0 and n_layers - 1, counted from the end if it is negative; SelectionError if there is none."""
    return resolve_index("layer", layer, n_layers)


def resolve_head(head: Any, n_heads: int) -> int:
    """`head` between 0 and n_heads - 1, counted from the end if it is negative; SelectionError if there is none."""
    return resolve_index("head", head, n_heads)


def resolve_position(position: Any, n_positions: int) -> int:
    """`position` between 0 and n_positions - 1, counted from the end if negative; SelectionError if there is none."""
    return resolve_index("position", position, n_positions)


def check_indices(what: str, values: Any, n: int) -> list[int]:
    """Several indices as a list of ints, each between 0 and n - 1. Raises as `check_index`, ArgumentError for none.

    >>> check_indices("head", (2, 3), 8)
    [2, 3]
    """
    return [check_index(what, value, n) for value in check_items(f"{what}s", values)]


def check_whole(what: str, value: Any, low: int | None = None, high: int = MAX_INTEGER) -> int:
    """`value` as an int, if it is a whole number from `low` to `high`.

    >>> check_whole("k", 3, 1)
    3
    >>> check_whole("k", 0, 1)
    Traceback (most recent call last):
    workbench.errors.ArgumentError: k must be at least 1, got 0.

    Raises ArgumentError for another number, ArgumentTypeError for a value that is not a whole number.
    """
    number = _whole_number(what, value)
    if low is not None and number < low:
        raise ArgumentError(f"{what} must be at least {low:,}, got {shown(number)}.")
    if number > high or number < -high - 1:
        raise ArgumentError(f"{what} must be at most {high:,}, got {shown(number)}.")
    return number


def check_count(what: str, value: Any, low: int = 1) -> int:
    """How often something is repeated (resamples, shuffles, samples), as an int from `low` to a million."""
    return check_whole(what, value, low, MAX_REPEATS)


def check_seed(value: Any) -> int:
    """The seed of a generator of random numbers, as an int of at least 0."""
    return check_whole("seed", value, 0)


def check_number(
    what: str,
    value: Any,
    *,
    low: float | None = None,
    high: float | None = None,
    above: float | None = None,
    below: float | None = None,
) -> float:
    """`value` as a float, if it is a finite real number within the bounds.

    Args:
        what: names the value in the error.
        value: the value.
        low: the smallest allowed number.
        high: the largest allowed number.
        above: a bound that is itself not allowed.
        below: the same from the other side.

    >>> check_number("level", 0.95, above=0, below=1)
    0.95
    >>> check_number("level", 95, above=0, below=1)
    Traceback (most recent call last):
    workbench.errors.ArgumentError: level must be above 0 and below 1, got 95.

    Raises:
        ArgumentError: the number is not finite, or out of bounds.
        ArgumentTypeError: the value is not a real number; a bool is none.
    """
    number = check_real(what, value)
    bounds = {"at least": low, "above": above, "at most": high, "below": below}
    outside = (
        (low is not None and number < low)
        or (above is not None and number <= above)
        or (high is not None and number > high)
        or (below is not None and number >= below)
    )
    if outside or not math.isfinite(number):
        allowed = " and ".join(f"{words} {bound:g}" for words, bound in bounds.items() if bound is not None)
        raise ArgumentError(f"{what} must be {allowed if outside else 'a finite number'}, got {shown(value)}.")
    return number


def check_flag(what: str, value: Any) -> bool:
    """`value` as a bool, if it is True or False of Python or numpy; 0, 1 and texts are neither.

    Raises ArgumentTypeError for anything else.
    """
    if not isinstance(value, bool | np.bool_):
        raise ArgumentTypeError(f"{what} must be True or False, got {shown(value)}.")
    return bool(value)


def check_text(what: str, value: Any) -> str:
    """`value`, if it is a str. Raises ArgumentTypeError for anything else, bytes included."""
    if not isinstance(value, str):
        raise ArgumentTypeError(f"{what} must be text (str), got {shown(value)}.")
    return value


def check_texts(what: str, values: Any) -> list[str]:
    """`values` as a list, if they are texts; a single text is not a list of texts.

    Raises ArgumentTypeError for anything else.
    """
    return [check_text(f"{what}[{i}]", value) for i, value in enumerate(check_items(what, values, low=0))]


def check_choice(what: str, value: Any, allowed: Sequence[str]) -> str:
    """`value`, if it is one of the names in `allowed`.

    >>> check_choice("routing", "free", ("frozen", "recomputed"))
    Traceback (most recent call last):
    workbench.errors.ArgumentError: routing must be 'frozen' or 'recomputed', got 'free'.

    Raises ArgumentError for another name, ArgumentTypeError for a value that is not text.
    """
    if isinstance(value, str) and value in allowed:
        return value
    *others, last = map(repr, allowed)
    names = f"{', '.join(others)} or {last}" if others else last
    error = ArgumentError if isinstance(value, str) else ArgumentTypeError
    raise error(f"{what} must be {names}, got {shown(value)}.")


def check_callable(what: str, value: Any) -> Callable:
    """`value`, if it can be called. Raises ArgumentTypeError for anything else."""
    if not callable(value) or isinstance(value, type):
        raise ArgumentTypeError(f"{what} must be a function, got {shown(value)}.")
    return value


def check_items(what: str, values: Any, low: int = 1) -> list[Any]:
    """`values` as a list, if they are a list, tuple, array or other collection in order, of at least `low` items.

    A text, bytes, a set and a dict are not lists, although Python can iterate over them.

    >>> check_items("layers", range(3))
    [0, 1, 2]
    >>> check_items("layers", "all")
    Traceback (most recent call last):
    workbench.errors.ArgumentTypeError: layers must be a list, got 'all'.

    Raises ArgumentTypeError for anything else, ArgumentError for too few items.
    """
    wrong = isinstance(values, str | bytes | bytearray | memoryview | Mapping | set | frozenset | type)
    if wrong or not isinstance(values, Iterable) or getattr(values, "ndim", 1) == 0:
        raise ArgumentTypeError(f"{what} must be a list, got {shown(values)}.")
    items = list(values)
    if len(items) < low:
        raise ArgumentError(f"{what} must have at least {low} {'entry' if low == 1 else 'entries'}, got {len(items)}.")
    return items


def check_slice(what: str, value: Any) -> slice:
    """`value`, if it is a slice of whole numbers. Raises ArgumentTypeError for anything else."""
    if not isinstance(value, slice):
        raise ArgumentTypeError(f"{what} must be a slice, as slice(0, 9), got {shown(value)}.")
    parts = [None if part is None else _whole_number(what, part) for part in (value.start, value.stop, value.step)]
    if parts[2] == 0:
        raise ArgumentError(f"{what} must have a step other than 0, got {shown(value)}.")
    return slice(*parts)


def check_real(what: str, value: Any) -> float:
    """`value` as a float, if it is a real number; NaN and infinity are allowed.

    Raises ArgumentTypeError for anything else; a bool is not a number.
    """
    try:
        number = _scalar(value)
        if isinstance(number, numbers.Real | np.floating) and not isinstance(number, bool):
            return float(number)
    except OverflowError:  # 10**400
        return math.inf if value > 0 else -math.inf
    except (TypeError, ValueError, RuntimeError):
        pass
    raise ArgumentTypeError(f"{what} must be a number, got {shown(value)}.")


def check_numbers(what: str, values: Any, *, ndim: int | None = None) -> np.ndarray:
    """`values` as a float64 array, if they are an array or nested lists of real numbers; NaN is allowed.

    Raises ArgumentTypeError for other values and for a single number, ArgumentError for another number of axes.
    """
    array = _array(what, values)
    if array.dtype.kind not in "iuf" and array.dtype.isbuiltin != 2:  # 2: bfloat16, registered by ml_dtypes
        raise ArgumentTypeError(f"{what} must be an array of real numbers, got {shown(values)}.")
    if ndim is not None and array.ndim != ndim:
        raise ArgumentError(
            f"{what} must have {ndim} {'axis' if ndim == 1 else 'axes'}, got shape {list(array.shape)}."
        )
    return array.astype(np.float64)


def check_outcomes(what: str, values: Any) -> np.ndarray:
    """As `check_numbers`; True and False are also allowed, as 1 and 0."""
    array = _array(what, values)
    return array.astype(np.float64) if array.dtype.kind == "b" else check_numbers(what, values)


def check_labels(what: str, values: Any, n: int | None = None) -> np.ndarray:
    """`values` as an array of labels (numbers or texts) with one axis, of length `n` if it is given.

    Raises ArgumentTypeError for other values, ArgumentError for another length or number of axes.
    """
    array = _array(what, values)
    if array.dtype.kind not in "biufUS":
        raise ArgumentTypeError(f"{what} must be a list of numbers or of texts, got {shown(values)}.")
    if array.ndim != 1:
        raise ArgumentError(f"{what} must have 1 axis, got shape {list(array.shape)}.")
    if n is not None and len(array) != n:
        raise ArgumentError(f"{what} must have one entry for each of the {n} observations, got {len(array)}.")
    return array


def check_axes(what: str, array: Any, axes: Sequence[str]) -> None:
    """ArgumentError unless a labeled array has exactly these axes, in any order."""
    if {*map(str, array.dims)} != {*axes}:
        raise ArgumentError(
            f"{what} must have the axes {' '.join(axes)}, got {' '.join(map(str, array.dims)) or 'none'}."
        )


def check_type(function: str, value: Any, kind: type, source: str = "") -> None:
    """ArgumentTypeError unless `value` is of that kind; `function` is the function that needs it, `source` one that
    gives such a value.

    >>> check_type("sink_mass", "pocket", int)
    Traceback (most recent call last):
    workbench.errors.ArgumentTypeError: sink_mass needs an int, got the text 'pocket'.
    """
    if isinstance(value, kind):
        return
    got = f"the text {shown(value)}" if isinstance(value, str) else _with_article(type(value).__name__)
    made = f" (as from {source})" if source else ""
    needed = _NEEDED.get(kind.__name__, _with_article(kind.__name__)) + made
    raise ArgumentTypeError(f"{function} needs {needed}, got {got}.")


def check_attributes(function: str, value: Any, *names: str) -> None:
    """ArgumentTypeError unless `value` has these attributes of a Trace."""
    if isinstance(value, type) or not all(hasattr(value, name) for name in names):
        raise ArgumentTypeError(f"{function} needs {_NEEDED['Trace']}, got {shown(value)}.")


def require(module: str, *, extra: str) -> Any:
    """The optional module `module`, imported; `extra` is the extra of gpt-oss-workbench that installs its package.

    >>> require("plotly.graph_objects", extra="lab").__name__
    'plotly.graph_objects'
    >>> require("no_such_package", extra="lab")
    Traceback (most recent call last):
    workbench.errors.MissingDependency: no_such_package is not installed. Run: pip install 'gpt-oss-workbench[lab]'

    Raises MissingDependency if it is not installed, or if importing it fails.
    """
    try:
        return import_module(module)
    except ImportError as error:
        top = module.partition(".")[0]
        package = _PACKAGES.get(top, top)
        if isinstance(error, ModuleNotFoundError) and error.name in (top, module):
            message = f"{package} is not installed. Run: pip install 'gpt-oss-workbench[{extra}]'"
            raise MissingDependency(message) from None
        raise MissingDependency(
            f"{package} is installed but cannot be imported: {error}. "
            f"Run: pip install --force-reinstall {package}, or pip install 'gpt-oss-workbench[{extra}]'"
        ) from error


def _with_article(noun: str) -> str:
    return f"{'an' if noun[:1].lower() in 'aeiou' or noun.startswith('nd') else 'a'} {noun}"


def _whole_number(what: str, value: Any) -> int:
    try:
        number = _scalar(value)
        if not isinstance(number, bool | np.bool_):
            return operator.index(number)
    except (TypeError, ValueError, RuntimeError):
        pass
    raise ArgumentTypeError(f"{what} must be a whole number, got {shown(value)}.")


def _scalar(value: Any) -> Any:
    """The single number in an array or tensor without axes; any other value itself."""
    return value.item() if hasattr(value, "item") and getattr(value, "ndim", 1) == 0 else value


def _array(what: str, values: Any) -> np.ndarray:
    try:
        array = np.asarray(values)
    except (TypeError, ValueError, RuntimeError, OverflowError):  # lists of different lengths, a tensor with a gradient
        array = np.array(None)
    if array.ndim == 0:
        raise ArgumentTypeError(f"{what} must be an array with at least one axis, got {shown(values)}.")
    return array


def _out_of_range(what: str, number: int, n: int) -> SelectionError:
    if n < 1:
        return SelectionError(f"{what} {shown(number)} does not exist: there are none here.")
    return SelectionError(f"{what} must be between 0 and {n - 1}, got {shown(number)}.")
