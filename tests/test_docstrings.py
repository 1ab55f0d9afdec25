"""Every example in a docstring gives the result beside it, and every public name has a docstring with an example."""

import doctest
import inspect
import pkgutil
from importlib import import_module
from pathlib import Path

import pytest

import workbench as wb
from tests.test_site import public

HOME = Path(__file__).parent.parent
MODULES = [m.name for m in pkgutil.walk_packages(wb.__path__, "workbench.") if not m.name.endswith("._native")]


@pytest.fixture(scope="module")
def known():
    """The names that the examples use."""
    model = wb.Model("pocket")
    question = wb.chat("What is 247+138?", reasoning="high")
    return {"wb": wb, "model": model, "question": question, "trace": model.generate(question)}


@pytest.mark.parametrize("name", MODULES)
def test_every_example_gives_the_result_beside_it(name, known, monkeypatch):
    monkeypatch.chdir(HOME)  # some examples use data/pocket
    module = import_module(name)
    failed = []
    for test in doctest.DocTestFinder(exclude_empty=True).find(module, extraglobs=known):
        result = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE).run(test)
        failed += [test.name] * result.failed
    assert not failed


def documented(module: str, name: str) -> bool:
    """Whether the rules for docstrings apply: to functions and classes, not to constants and exceptions."""
    value = getattr(import_module(module), name)
    return callable(value) and not (inspect.isclass(value) and issubclass(value, BaseException))


PUBLIC = [path.rpartition(".")[::2] for path in public()]
PUBLIC = [(module, name) for module, name in PUBLIC if documented(module, name)]


@pytest.mark.parametrize(("module", "name"), PUBLIC)
def test_every_public_function_and_class_has_a_docstring_with_an_example(module, name):
    text = getattr(import_module(module), name).__doc__ or ""
    assert ">>>" in text, f"{module}.{name} has no example"


@pytest.mark.parametrize(("module", "name"), PUBLIC)
def test_every_public_function_of_four_parameters_or_more_lists_them(module, name):
    value = getattr(import_module(module), name)
    methods = [m for n, m in vars(value).items() if inspect.isfunction(m) and not n.startswith("_")]
    for function in methods if inspect.isclass(value) else [value]:
        names = [p for p in inspect.signature(function).parameters if p != "self"]
        text = function.__doc__ or ""
        if len(names) >= 4:
            assert "Args:\n" in text, (
                f"{module}.{name}: {function.__name__} has {len(names)} parameters and no Args section"
            )
            listed = text.partition("Args:\n")[2]
            assert [p for p in names if f"{p}: " not in listed and f"{p}, " not in listed] == []
