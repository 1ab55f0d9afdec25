"""A run in two lines, its question and its answer, and the list of the traces in a folder."""

import json
from pathlib import Path

import pytest

from tests.traces import made
from workbench import cli
from workbench.errors import FileError
from workbench.traces.listing import Listed, listed, question_and_answer, table
from workbench.traces.spans import Span

PIECES = ["<u>", "What is\n", "1+1?", "<end>", "<a>", "Hm.", "<end>", "<f>", "It is ", "\u202e2.\x1b", "<end>"]
SPANS = [
    Span(0, 4, 1, 3, "user"),
    Span(4, 7, 5, 6, "assistant", "analysis"),
    Span(7, 11, 8, 10, "assistant", "final"),
]


def manifest(**changes):
    fields = {"tokens": list(range(11)), "str_tokens": PIECES, "spans": SPANS, "prompt_length": 4}
    return made.manifest(11, **fields | changes)


def saved(folder: Path, name: str, **changes) -> Path:
    from workbench.traces import Trace

    return Trace(manifest(**changes), {}).save(folder / name)


def test_question_and_answer_are_one_line_each():
    assert question_and_answer(manifest()) == ("What is 1+1?", "It is \u202e2.\x1b")
    assert question_and_answer(manifest(), length=6) == ("What…", "It is…")


def test_a_run_that_was_stopped_in_its_thoughts_has_no_answer():
    assert question_and_answer(manifest(spans=SPANS[:2])) == ("What is 1+1?", "")


def test_a_text_that_is_no_chat_shows_its_beginning():
    assert question_and_answer(made.manifest(3, spans=[Span(0, 3, 0, 3, "unparsed")])) == ("w0 w1 w2", "")
    assert question_and_answer(made.manifest(0)) == ("", "")


def test_info_tells_question_and_answer(tmp_path: Path, capsys):
    assert cli.main(["info", str(saved(tmp_path, "a"))]) == 0
    out = capsys.readouterr().out
    assert "question  What is 1+1?\n" in out and "answer    It is ⟨U+202E⟩2.␛\n" in out


def test_ls_lists_traces_and_says_which_cannot_be_read(tmp_path: Path, capsys):
    saved(tmp_path, "b.trace")
    saved(tmp_path, "a.trace", status="partial")
    (tmp_path / "page.html").write_text("")
    (tmp_path / "folder").mkdir()
    assert cli.main(["ls", str(tmp_path)]) == 0
    head, first, second = capsys.readouterr().out.splitlines()
    assert head.split() == ["trace", "id", "model", "tokens", "question", "answer"]
    assert first.split()[:5] == ["a.trace", manifest().id[:8], "made", "11", "partial"]
    assert second.endswith("11  What is 1+1?  It is ⟨U+202E⟩2.␛")

    broken = tmp_path / "c\x1b[31m.trace"
    broken.mkdir()
    (broken / "manifest.json").write_text("{}")
    assert cli.main(["ls", str(tmp_path)]) == 3
    out = capsys.readouterr().out
    assert "\x1b" not in out and "c␛[31m.trace  " in out
    assert cli.main(["ls", str(tmp_path), "--json"]) == 3
    rows = json.loads(capsys.readouterr().out)
    assert [row["name"] for row in rows] == ["a.trace", "b.trace", "c\x1b[31m.trace"]
    assert rows[1]["answer"] == "It is ⟨U+202E⟩2.␛" and rows[2]["problem"]


def test_ls_of_an_empty_or_missing_folder(tmp_path: Path, capsys):
    assert cli.main(["ls", str(tmp_path)]) == 0
    assert "no traces" in capsys.readouterr().out
    with pytest.raises(FileError, match="cannot be listed"):
        listed(tmp_path / "nowhere")


@pytest.mark.parametrize("width", [60, 80, 120, 400])
def test_a_table_keeps_its_width(width: int):
    rows = [
        Listed("a.trace", "9c41e0f2", "pocket", 83, "complete", "question " * 20, "answer " * 20),
        Listed("b.trace", "1234abcd", "pocket", 1083, "complete", "short", "answer " * 20),
        Listed("c.trace", problem="it is broken " * 20),
    ]
    lines = table(rows, width)
    assert len(lines) == 4 and max(map(len, lines)) <= width
    assert "question q" in lines[1] and "answer a" in lines[1] and "1,083" in lines[2]
