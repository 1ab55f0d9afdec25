"""From the arguments of `store.find` to a condition in SQL. Every value is a parameter, never part of the SQL."""

from collections.abc import Iterable
from difflib import get_close_matches
from typing import Any

import numpy as np

from workbench.checks import check_flag, check_real, check_text, check_type, check_whole
from workbench.errors import ArgumentError, ArgumentTypeError
from workbench.stores.row import COLUMNS, digest, integer
from workbench.text import shown, visible
from workbench.traces import Trace
from workbench.traces.listing import one_line

Condition = tuple[str, list[Any]]  # SQL, and the values of its question marks


def column_condition(name: str, value: Any) -> Condition:
    """The rows whose column has a value, one of a list of values, or one within a range (low, high).

    >>> column_condition("n_tokens", (100, None))
    ('("n_tokens" >= ?)', [100])
    >>> column_condition("model", "*20b*")
    ('"model" GLOB ?', ['*20b*'])

    Raises ArgumentError for a column that there is not, ArgumentTypeError for a value of another type.
    """
    if name not in COLUMNS:
        raise ArgumentError(unknown_column(name, [*COLUMNS, "text", "prompt", "edit", "score"]))
    return _condition(name, f'"{name}"', COLUMNS[name], value)


def unknown_column(name: str, known: Iterable[str]) -> str:
    """The message of the error for a column that there is not."""
    known = list(known)
    near = get_close_matches(name[:100], known, 1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return f"there is no column {shown(name)}.{hint} The columns are: {', '.join(known)}."


def text_condition(text: Any) -> Condition:
    """The rows whose question, answer or analysis contains these words, one after the other.

    >>> text_condition("carry the 1")
    ('key IN (SELECT rowid FROM texts WHERE texts MATCH ?)', ['"carry the 1"'])

    Raises ArgumentError for a text without a word.
    """
    words = visible(check_text("text", text), " ")
    if not any(character.isalnum() for character in words):
        raise ArgumentError(f"text must contain a word or a number to search for, got {shown(text)}.")
    quoted = '"' + words.replace('"', '""') + '"'
    return "key IN (SELECT rowid FROM texts WHERE texts MATCH ?)", [quoted]


def prompt_condition(prompt: Any) -> Condition:
    """The rows of a question (the text of the last message of the user), or of the same token ids: a Trace or a list.

    Raises ArgumentTypeError for anything else.
    """
    if isinstance(prompt, str):
        line, whole = visible(one_line(prompt)), visible(prompt, "\n")
        same = "key IN (SELECT rowid FROM texts WHERE texts.question = ?)"
        return f"(question = ? AND {same})", [line, whole]
    if isinstance(prompt, Trace):
        token_ids = prompt.manifest.tokens[: prompt.prompt_length]
    elif isinstance(prompt, list | tuple) or (isinstance(prompt, np.ndarray) and prompt.ndim == 1):
        token_ids = [check_whole("a token id of prompt", token, 0) for token in prompt]
    else:
        raise ArgumentTypeError(f"prompt must be a question, a Trace or a list of token ids, got {shown(prompt)}.")
    return "prompt_digest = ?", [digest(token_ids)]


def edit_condition(edit: Any) -> Condition:
    """The rows of runs with an edit whose hook point or function contains a text: "ablate", "blocks.2.*".

    `*` stands for any text. Raises ArgumentError for an empty text.
    """
    if not check_text("edit", edit):
        raise ArgumentError("edit is empty; give a part of a hook point or function, or edited=True for all edits.")
    return "edits GLOB ?", [_pattern(f"*{visible(edit)}*")]


def score_conditions(score: Any) -> dict[str, Condition]:
    """For each name of a score, the condition on `mean`: over a trace's tasks, samples and repeats.

    Raises ArgumentTypeError for anything but a dict from names to values, lists and ranges.
    """
    check_type("score", score, dict, 'score={"correct": 1}')
    conditions = {}
    for name, value in score.items():
        check_text("a name of score", name)
        conditions[visible(name)] = _condition(f"score[{shown(name)}]", "mean", float, value)
    return conditions


def _condition(what: str, column: str, kind: type, value: Any) -> Condition:
    if isinstance(value, tuple):
        return _range(what, column, kind, value)
    if isinstance(value, list | set | frozenset) or (isinstance(value, np.ndarray) and value.ndim == 1):
        if any(isinstance(item, list | tuple) for item in value):
            raise ArgumentTypeError(f"{what} must be a list of values, not of lists, got {shown(value)}.")
        parts = [_condition(what, column, kind, item) for item in value]
        return f"({' OR '.join(sql for sql, _ in parts) or '0'})", [v for _, values in parts for v in values]
    if value is None:
        return f"{column} IS NULL", []
    checked = _checked(what, kind, value)
    if kind is str and "*" in checked:
        return f"{column} GLOB ?", [_pattern(checked)]
    return f"{column} = ?", [checked]


def _range(what: str, column: str, kind: type, bounds: tuple[Any, ...]) -> Condition:
    if len(bounds) != 2:
        raise ArgumentError(f"{what} must be a value, a list of values or a range (low, high), got {shown(bounds)}.")
    ends = [(sign, bound) for sign, bound in zip((">=", "<="), bounds) if bound is not None]
    values = [_checked(what, kind, bound) for _, bound in ends]
    sql = " AND ".join(f"{column} {sign} ?" for sign, _ in ends)
    return f"({sql or f'{column} IS NOT NULL'})", values


def _checked(what: str, kind: type, value: Any) -> Any:
    if kind is bool:
        return int(check_flag(what, value))
    if kind is str:
        return visible(check_text(what, value), "\n")
    if kind is float:
        return float(value) if isinstance(value, bool | np.bool_) else _finite(what, value)
    number = _finite(what, value)
    return integer(int(value)) if number.is_integer() else number


def _finite(what: str, value: Any) -> float:
    number = check_real(what, value)
    if not np.isfinite(number):
        raise ArgumentError(f"{what} must be a finite number, got {shown(value)}. For an open range, use None.")
    return number


def _pattern(text: str) -> str:
    """A text with `*` as a pattern of SQLite's GLOB, where `?` and `[` are special too."""
    return text.replace("[", "[[]").replace("?", "[?]")


def joined(conditions: Iterable[Condition]) -> Condition:
    """All of the conditions at once."""
    conditions = list(conditions)
    return " AND ".join(sql for sql, _ in conditions) or "1", [value for _, values in conditions for value in values]
