"""Every public analysis, experiment and circuit has a test of what it gives, and a place in docs/analyses.md."""

import ast
import re
from functools import cache
from pathlib import Path

import pytest

from workbench import topics

HERE = Path(__file__).parent
PACKAGES = ("workbench.analysis.", "workbench.experiments.", "workbench.circuits.")
PUBLIC = sorted(
    f"{topic}.{name}"
    for topic, names in topics.TOPICS.items()
    for name, home in names.items()
    if home.startswith(PACKAGES) and name != "Interval"
)
FILES = [
    *HERE.glob("test_*.py"),
    *(HERE.parent / "experiments").glob("test_*.py"),
    *(HERE.parent / "circuits").glob("test_*.py"),
    HERE.parent / "interop" / "test_sae.py",
    HERE.parent / "traces" / "test_patterns.py",
]


def called(function: ast.AST) -> set[str]:
    calls = [node.func for node in ast.walk(function) if isinstance(node, ast.Call)]
    return {f.id if isinstance(f, ast.Name) else f.attr for f in calls if isinstance(f, ast.Name | ast.Attribute)}


@cache
def compared() -> set[str]:
    """Functions that an asserting test calls, directly or through a helper of its file."""
    called_functions: set[str] = set()
    for path in FILES:
        tree = ast.parse(path.read_text("utf-8"))
        helpers = {f.name: called(f) for f in tree.body if isinstance(f, ast.FunctionDef)}
        shared = {name for node in tree.body if not isinstance(node, ast.FunctionDef) for name in called(node)}
        for test in tree.body:
            if isinstance(test, ast.FunctionDef) and any(isinstance(n, ast.Assert) for n in ast.walk(test)):
                calls = called(test) | (shared if "FIGURES" in ast.unparse(test) else set())
                called_functions |= calls | {name for helper in calls & set(helpers) for name in helpers[helper]}
    return called_functions


@pytest.mark.parametrize("name", PUBLIC)
def test_every_public_analysis_is_compared_with_a_known_answer(name):
    assert name.rpartition(".")[2] in compared(), (
        f"wb.{name} has no test: add one with an exact answer, an identity or an equivariance"
    )


@pytest.mark.parametrize("name", PUBLIC)
def test_every_public_analysis_is_on_the_page_of_analyses(name):
    page = (HERE.parents[1] / "docs/analyses.md").read_text("utf-8")
    assert re.search(rf"\b{name.rpartition('.')[2]}\b", page), (
        f"wb.{name} is not in docs/analyses.md: add a row that says what it gives"
    )


def test_the_list_is_not_empty():
    assert len(PUBLIC) > 20
