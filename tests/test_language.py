"""Names and sentences use the field's words: a short list of words that hide what is meant stays out.

Each word is on the list because it stood for several different things in this project, or names a thing by a verb.
docs/glossary.md has the terms that we use.
"""

import ast
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

HOME = Path(__file__).parent.parent

# Names of variables, parameters, functions, classes and attributes that do not say which value they hold.
NAMES = {
    "told": "a dict, a message or a manifest entry",
    "heard": "recorded values",
    "asked": "the request, the prompt or the requested names",
    "wanted": "the expected or the requested value",
    "ours": "the model or library meant",
    "theirs": "the model or library meant",
    "dice": "rng",
    "gave_way": "omitted",
}

# Names that stay, with the reason.
KEPT = {("workbench/pocket/families/controls.py", "asked"): "a hash of the facts' names splits training from test"}

# Phrases that a reader has to read twice.
PHRASES = {
    r"g[ai]ves? way": "is omitted to fit the budget",
    r"hangs? on": "depends on",
    r"these and those": "name both",
    r"what (?:a|the) run left": "what the run recorded",
    r"takes? it up": "continues",
    r"\bis told\b|\bare told\b": "is given, is printed",
    r"tells? apart": "distinguishes",
    r"is heard|\bhears?\b|\bdeaf\b": "is recorded; is not available",
    r"\bdice\b": "random numbers",
    r"(?<!there )\bis no (?:position|layer|token|share|number|model|trace|text|head|expert|name)\b": "is not a …",
    r"knows? nothing of": "is independent of",
    r"what is wanted": "the request",
}


def tracked(*suffixes: str) -> list[Path]:
    listed = subprocess.run(["git", "ls-files"], cwd=HOME, capture_output=True, text=True, check=True).stdout
    return [HOME / name for name in listed.splitlines() if name.endswith(suffixes) and name != "tests/test_language.py"]


def names(path: Path) -> Iterator[tuple[int, str]]:
    """Every name that a Python file binds, with its line."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.lineno, node.id
        elif isinstance(node, ast.arg):
            yield node.lineno, node.arg
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.lineno, node.name
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.lineno, node.attr


def test_names_say_which_value_they_hold():
    wrong = [
        f"{path.relative_to(HOME)}:{line}: {name} ({NAMES[name]})"
        for path in tracked(".py")
        for line, name in names(path)
        if name in NAMES and (str(path.relative_to(HOME)), name) not in KEPT
    ]
    assert wrong == []


@pytest.mark.parametrize("phrase", PHRASES)
def test_docs_docstrings_errors_and_pages_do_without_the_phrase(phrase):
    wrong = [
        f"{path.relative_to(HOME)}:{number}: {line.strip()[:90]} (say: {PHRASES[phrase]})"
        for path in tracked(".py", ".md", ".js", ".c", ".h")
        for number, line in enumerate(path.read_text("utf-8").splitlines(), 1)
        if re.search(phrase, line, re.IGNORECASE)
    ]
    assert wrong == []
