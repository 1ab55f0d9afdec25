"""The errors: `except WorkbenchError` catches every deliberate error, and so do the matching builtin classes."""

import ast
import pickle
import warnings
from pathlib import Path

import pytest

import workbench as wb
from workbench import errors
from workbench.errors import (
    ArgumentError,
    ArgumentTypeError,
    FileError,
    SelectionError,
    WorkbenchError,
)

ROOT = Path(wb.__file__).parent
BARE = {"ValueError", "TypeError", "IndexError", "KeyError"}
ALLOWED = 10  # checks inside data classes
CLASSES = [each for each in vars(errors).values() if isinstance(each, type) and issubclass(each, WorkbenchError)]


def bare_raises(source: str) -> list[tuple[int, str]]:
    """The lines that raise one of Python's own errors for bad arguments, with the name of the error; any arguments."""
    raises = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Raise) and node.exc is not None:
            raised = node.exc.func if isinstance(node.exc, ast.Call) else node.exc
            name = raised.attr if isinstance(raised, ast.Attribute) else getattr(raised, "id", "")
            if name in BARE:
                raises.append((node.lineno, name))
    return raises


def test_bare_raises_are_found_in_every_form():
    source = "raise ValueError\nraise KeyError('x')\nimport builtins\nraise builtins.TypeError('x') from None\nraise\n"
    assert bare_raises(source) == [(1, "ValueError"), (2, "KeyError"), (4, "TypeError")]
    assert bare_raises("try: pass\nexcept ValueError as error: raise error\nraise ArgumentError('x')") == []


def test_bad_arguments_raise_workbench_errors_throughout_the_package():
    bare = [
        f"{path.relative_to(ROOT)}:{line} raises {name}"
        for path in sorted(ROOT.rglob("*.py"))
        for line, name in bare_raises(path.read_text("utf-8"))
    ]
    assert len(bare) <= ALLOWED, "raise ArgumentError or SelectionError instead:\n" + "\n".join(bare)


@pytest.mark.parametrize(
    ("error", "parents"),
    [
        (ArgumentError, (WorkbenchError, ValueError)),
        (ArgumentTypeError, (ArgumentError, ValueError, TypeError)),
        (SelectionError, (WorkbenchError, IndexError, LookupError)),
        (FileError, (WorkbenchError, OSError)),
    ],
)
def test_errors_are_caught_by_the_matching_builtin_classes(error, parents):
    for parent in parents:
        with pytest.raises(parent, match=r"^layer must be between 0 and 23, got 31\.$"):
            raise error("layer must be between 0 and 23, got 31.")


@pytest.mark.parametrize("error", CLASSES, ids=lambda error: error.__name__)
def test_every_error_is_in_the_tree_of_the_docstring_and_survives_pickling(error):
    assert error.__name__ in (errors.__doc__ or "")
    unpickled = pickle.loads(pickle.dumps(error("what was wrong")))  # as from a worker process
    assert type(unpickled) is error and str(unpickled) == "what was wrong"


@pytest.fixture(scope="module")
def trace() -> wb.Trace:
    return wb.trace("What is 12+30?", max_tokens=1, record="everything")


@pytest.mark.parametrize(
    "call",
    [
        lambda trace: trace["resid_post", 6],
        lambda trace: wb.attention.pattern(trace, 6),
        lambda trace: wb.attention.pattern(trace, 0, 99),
        lambda trace: wb.attention.pattern(trace, 0, 0, 10_000),
        lambda trace: wb.routing.expert_load(trace, [10_000]),
        lambda trace: wb.reasoning.forking_tokens(trace, 2.0),
        lambda trace: wb.statistics.wilson_interval(5, 4),
        lambda trace: wb.views.tokens(trace, [1.0]),
        lambda trace: wb.views.score_sheet(trace, selected=10_000),
        lambda trace: wb.views.routing(trace, 6),
    ],
)
def test_one_except_catches_every_bad_argument(call, trace):
    with pytest.raises((ArgumentError, SelectionError)):
        call(trace)


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
def test_a_message_shows_control_characters_and_keeps_its_lines(kind: type[WorkbenchError]):
    error = kind("file a\x1b[2J\u202e\nis not a trace")
    assert str(error) == "file a␛[2J⟨U+202E⟩\nis not a trace"
    assert str(kind(str(error))) == str(error) == str(pickle.loads(pickle.dumps(error)))
    error.add_note("\x1b")
    assert error.__notes__ == ["␛"]


def test_a_warning_shows_control_characters():
    with pytest.warns(errors.VerificationWarning, match="a␛b"):
        warnings.warn("a\x1bb", errors.VerificationWarning, stacklevel=1)
