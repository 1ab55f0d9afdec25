"""The question and the answer of a run, in one line each; and the traces in a folder."""

import os
import re
from pathlib import Path
from typing import NamedTuple

from workbench.errors import FileError, TraceError
from workbench.paths import expanded
from workbench.text import visible
from workbench.traces.manifest import Manifest
from workbench.traces.reader import MANIFEST, StoredArrays
from workbench.traces.spans import last_turn

LINE = 160  # characters of a question or an answer
_EFFORT = re.compile(r"^Reasoning: ([A-Za-z]{1,12})\b", re.MULTILINE)


class Listed(NamedTuple):
    """A trace in a folder; `problem` is why it cannot be read, or ""."""

    name: str
    id: str = ""
    model: str = ""
    tokens: int = 0
    status: str = ""
    question: str = ""
    answer: str = ""
    problem: str = ""


def listed(folder: os.PathLike[str] | str) -> list[Listed]:
    """The traces in a folder by name, those in its subfolders not included. Reads their manifests only.

    >>> listed("traces")  # doctest: +SKIP
    [Listed(name='first.trace', id='9c41…', model='pocket', tokens=83, …, question='What is 12+30?', …)]

    Raises FileError if the folder cannot be read.
    """
    place = expanded(folder)
    try:
        names = sorted(os.listdir(place))
    except OSError as error:
        raise FileError(f"the folder {visible(str(place))} cannot be listed: {error.strerror}. Give another") from None
    return [_listed(place, name) for name in names if os.path.lexists(place / name / MANIFEST)]


def _listed(folder: Path, name: str) -> Listed:
    try:
        manifest = StoredArrays(folder / name).manifest
    except TraceError as error:
        return Listed(name, problem=one_line(str(error)))
    question, answer = question_and_answer(manifest)
    return Listed(
        name, manifest.id, visible(manifest.model["name"]), len(manifest.tokens), manifest.status,
        visible(question), visible(answer),
    )  # fmt: skip


def question_and_answer(manifest: Manifest, length: int = LINE) -> tuple[str, str]:
    """The last question and the final answer of a run, in one line each; "" for what it has not.

    A text that is not a chat has no question: it is represented by its beginning.
    """
    turn, text = last_turn(manifest.spans), manifest.str_tokens
    question = "".join("".join(text[message.content]) for message in turn.messages if message.role == "user")
    question = question or "".join(text[: 4 * length])
    answer = "".join("".join(text[message.content]) for message in turn.on("final"))
    return one_line(question, length), one_line(answer, length)


def reasoning_effort(manifest: Manifest) -> str:
    """The reasoning effort that the system message asks for, such as "high"; "" if it asks for none.

    >>> reasoning_effort(trace.manifest)
    'high'
    """
    system = "".join("".join(manifest.str_tokens[s.content]) for s in manifest.spans if s.role == "system")
    found = _EFFORT.search(system)
    return found[1] if found else ""


def one_line(text: str, length: int = LINE) -> str:
    r"""A text with its white space as single spaces, cut. Hidden characters stay: use `workbench.text` to show it.

    >>> one_line("What is\n\n 12+30?"), one_line("a b c d e f", 7)
    ('What is 12+30?', 'a b c…')
    """
    words = " ".join(text[: 4 * length].split())
    return words if len(words) <= length else f"{words[: length - 1].rstrip()}…"


def table(rows: list[Listed], width: int) -> list[str]:
    """The lines of a table of traces, at most `width` characters wide: questions and answers share what is left.

    >>> for line in table([Listed("a.trace", "9c41e0f2", "pocket", 83, "complete", "What is 12+30?", "It is 42.")], 80):
    ...     print(line)
    trace    id        model   tokens  question        answer
    a.trace  9c41e0f2  pocket      83  What is 12+30?  It is 42.
    """
    head = ("trace", "id", "model", "tokens", "question", "answer")
    cells = [
        (_cut(visible(row.name), 40), row.id[:8], _cut(row.model, 30), _tokens(row), row.question, row.answer)
        for row in rows
    ]
    of_rows = [cell for cell, row in zip(cells, rows, strict=True) if not row.problem]
    widths = [max((len(cell[i]) for cell in (head, *of_rows)), default=0) for i in range(len(head))]
    widths[0] = max(len(cell[0]) for cell in (head, *cells))
    left = max(20, width - sum(widths[:4]) - 2 * 5)
    widths[4:] = _shared(left, widths[4], widths[5])
    lines = []
    for cell, problem in ((head, ""), *((cell, row.problem) for cell, row in zip(cells, rows, strict=True))):
        if problem:
            lines.append(f"{cell[0]:<{widths[0]}}  {_cut(problem, max(20, width - widths[0] - 2))}")
            continue
        columns = [_cut(text, size) for text, size in zip(cell, widths, strict=True)]
        columns[3] = columns[3].rjust(widths[3])
        texts = [text.ljust(size) for text, size in zip(columns, widths, strict=True)]
        lines.append("  ".join(texts).rstrip())
    return lines


def _tokens(row: Listed) -> str:
    return f"{row.tokens:,}" + (" partial" if row.status == "partial" else "")


def _shared(width: int, *lengths: int) -> list[int]:
    """What each of two columns gets of a width: as much as it needs, or at least half."""
    first, second = lengths
    if first + second <= width:
        return [first, second]
    half = width // 2
    if first <= half:
        return [first, width - first]
    return [width - second, second] if second <= half else [half, width - half]


def _cut(text: str, length: int) -> str:
    return text if len(text) <= length else f"{text[: max(0, length - 1)]}…"
