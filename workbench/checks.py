"""Checks of arguments: an index within its range, a type, an optional package that is installed.

Each check has one wording, so that the error for a wrong layer is the same everywhere.
"""

import operator
from importlib import import_module
from typing import Any

from workbench.errors import ArgumentTypeError, MissingDependency, SelectionError
from workbench.text import visible

# Import name -> name on PyPI, where they differ.
_PACKAGES = {"sklearn": "scikit-learn", "transformer_lens": "transformer-lens"}

# Class -> how an error names it, and where one comes from.
_NEEDED = {
    "Trace": "a Trace (as from wb.trace, model.trace or wb.load)",
    "Model": "a wb.Model (such as wb.Model('pocket'))",
    "Figure": "a Figure (as from the functions of wb.figures)",
    "DataArray": "a labeled array (as from wb.attention.step_attention)",
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


def check_type(function: str, value: Any, kind: type) -> None:
    """ArgumentTypeError unless `value` is of that kind; `function` is the function that needs it.

    >>> check_type("sink_mass", "pocket", int)
    Traceback (most recent call last):
    workbench.errors.ArgumentTypeError: sink_mass needs an int, got the text 'pocket'.
    """
    if isinstance(value, kind):
        return
    got = f"the text {visible(repr(value)[:80])}" if isinstance(value, str) else _with_article(type(value).__name__)
    needed = _NEEDED.get(kind.__name__, _with_article(kind.__name__))
    raise ArgumentTypeError(f"{function} needs {needed}, got {got}.")


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
        return operator.index(value.item() if hasattr(value, "item") else value)  # 0-d arrays and tensors
    except (TypeError, ValueError, RuntimeError):
        raise ArgumentTypeError(f"{what} must be a whole number, got {visible(repr(value)[:80])}.") from None


def _out_of_range(what: str, number: int, n: int) -> SelectionError:
    if n < 1:
        return SelectionError(f"{what} {number} does not exist: there are none here.")
    return SelectionError(f"{what} must be between 0 and {n - 1}, got {number}.")
