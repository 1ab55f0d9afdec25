"""Scores are data: they survive the loss of the index, a torn line and a flipped bit."""

import json
import os
from pathlib import Path

import pytest

import workbench as wb
from tests.stores.runs import chat
from workbench.errors import ArgumentError, FileError, TraceNotFound
from workbench.stores.scores import MAX_LINE, Score, append, read


@pytest.fixture
def store(tmp_path: Path) -> wb.Store:
    store = wb.Store(tmp_path / "runs")
    for number in range(3):
        store.add(chat(number, effort=["low", "high", ""][number]))
    return store


def ids() -> list[str]:
    return [chat(number, effort=["low", "high", ""][number]).id for number in range(3)]


def test_scores_are_kept_without_the_index(store: wb.Store):
    for number, trace_id in enumerate(ids()):
        store.score(trace_id, "correct", number == 1, task="sums", sample=str(number), repeat=number)
    before = store.sql("select * from scores order by sample")
    assert before["value"].tolist() == [0.0, 1.0, 0.0] and before["effort"].tolist() == ["low", "high", ""]
    for path in store.folder.glob("index.sqlite*"):
        path.unlink()
    assert wb.Store(store.folder).sql("select * from scores order by sample").equals(before)


def test_a_later_score_replaces_an_earlier_one_of_the_same_run(store: wb.Store):
    first = ids()[0]
    for value in (0, 0.25, 1):
        store.score(first[:8], "correct", value)
    store.score(first, "correct", 0, repeat=1)
    store.score(first, "length", 7)
    assert store.find(score={"correct": 0.5})["score.correct"].tolist() == [0.5]
    assert store.find(score={"correct": (None, None), "length": [7, 8]})["score.length"].tolist() == [7.0]
    assert store.find(score={"correct": (0.6, 1)}).empty and store.find(score={"other": 1}).empty
    assert len((store.folder / "scores.jsonl").read_bytes().splitlines()) == 5  # nothing is deleted


def test_a_wrong_score_is_refused_and_not_written(store: wb.Store):
    first = ids()[0]
    wrong = [
        ((first, "correct", "1"), {}),
        ((first, "correct", float("nan")), {}),
        ((first, "", 1), {}),
        ((first, 3, 1), {}),
        ((first, "x" * 201, 1), {}),
        ((first, "correct", 1), {"repeat": -1}),
        ((first, "correct", 1), {"task": None}),
        ((first, "correct", 1), {"effort": 3}),
    ]
    for arguments, options in wrong:
        with pytest.raises(ArgumentError):
            store.score(*arguments, **options)
    with pytest.raises(TraceNotFound):
        store.score("f" * 32, "correct", 1)
    assert not (store.folder / "scores.jsonl").exists()


def test_hidden_characters_of_a_name_are_visible(store: wb.Store):
    store.score(ids()[0], "a\u202eb", 1, task="\x1b[31m")
    [row] = store.sql("select name, task from scores").values.tolist()
    assert row == ["a⟨U+202E⟩b", "␛[31m"]
    assert len(store.find(score={"a\u202eb": 1})) == 1


def test_a_flipped_bit_in_any_byte_never_gives_another_score(tmp_path: Path):
    score = Score("0" * 32, "t", "s", "low", 0, "n", 0.5)
    append(tmp_path, score)
    path = tmp_path / "scores.jsonl"
    data = path.read_bytes()
    for at in range(len(data)):
        for bit in range(8):
            changed = bytearray(data)
            changed[at] ^= 1 << bit
            path.write_bytes(changed)
            assert read(tmp_path).scores in ([], [score]), (at, bit)


@pytest.mark.parametrize("cut", [1, 20, 150])
def test_a_line_without_its_end_does_not_take_the_next_one_with_it(store: wb.Store, cut: int):
    first, second, _ = ids()
    store.score(first, "correct", 1)
    path = store.folder / "scores.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole + whole[:-cut])  # as a full disk leaves it
    assert len(store.sql("select * from scores")) == 1 and store.verify(0).ok
    store.score(second, "correct", 0)
    assert sorted(store.sql("select value from scores")["value"]) == [0.0, 1.0]
    problems = store.verify(0).problems
    assert len(problems) == (0 if cut == 1 else 1)  # without the line feed alone, the score is whole
    assert all(path == "scores.jsonl" and "is damaged" in problem for path, problem in problems)


def test_other_lines_are_damaged_and_the_rest_counts(store: wb.Store):
    """The file may also be written by hand, in its place."""
    first = ids()[0]
    store.score(first, "correct", 1)
    path = store.folder / "scores.jsonl"
    line = json.loads(path.read_bytes())
    others = [
        b"{}",
        b"[]",
        b"nonsense",
        b"\xff",
        b"[" * 5000,
        b"x" * (3 * MAX_LINE),
        json.dumps(line | {"value": 0}).encode(),
    ]
    path.write_bytes(b"\n".join([*others, path.read_bytes()]))
    store = wb.Store(store.folder)
    assert store.sql("select value from scores")["value"].tolist() == [1.0]
    assert len(store.verify(0).problems) == len(others)


def test_the_scores_of_two_stores_are_joined_by_joining_their_files(store: wb.Store, tmp_path: Path):
    other = wb.Store(tmp_path / "other")
    other.add(chat(9))
    other.score(chat(9).id, "correct", 1)
    store.score(ids()[0], "correct", 0)
    with (store.folder / "scores.jsonl").open("ab") as file:
        file.write((other.folder / "scores.jsonl").read_bytes())
    assert len(store.sql("select * from scores")) == 2


@pytest.mark.parametrize("kind", ["symlink", "FIFO", "folder"])
def test_what_is_no_file_is_not_written_to(store: wb.Store, tmp_path: Path, kind: str):
    mine = tmp_path / "mine"
    mine.write_text("mine")
    path = store.folder / "scores.jsonl"
    {"symlink": lambda: path.symlink_to(mine), "FIFO": lambda: os.mkfifo(path), "folder": path.mkdir}[kind]()
    with pytest.raises(FileError):
        store.score(ids()[0], "correct", 1)
    assert mine.read_text() == "mine"


def test_a_full_disk_leaves_the_file_as_it_was(store: wb.Store, monkeypatch: pytest.MonkeyPatch):
    from workbench.stores import scores

    store.score(ids()[0], "correct", 1)
    before = (store.folder / "scores.jsonl").read_bytes()

    def full(fd, data):
        os.write(fd, data[:10])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(scores, "write_all", full)
    with pytest.raises(FileError, match="No space left"):
        store.score(ids()[1], "correct", 1)
    assert (store.folder / "scores.jsonl").read_bytes() == before
