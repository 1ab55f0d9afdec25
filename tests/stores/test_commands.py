"""`workbench store list|find|show|verify|reindex`."""

import json
from pathlib import Path

import pytest

import workbench as wb
from tests.stores.runs import chat
from workbench import cli
from workbench.errors import ArgumentError
from workbench.stores.words import conditions_of


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "120")  # narrower, and questions are shortened
    store = wb.Store(tmp_path / "runs")
    for number in range(3):
        store.add(chat(number, effort=["low", "high"][number % 2], question="What is\x1b 1+1?"))
    store.score(chat(1, question="What is\x1b 1+1?").id, "correct", 1)
    return str(tmp_path / "runs")


def test_list_and_find_print_the_same_table(folder: str, capsys: pytest.CaptureFixture[str]):
    assert cli.main(["store", "list", folder]) == 0
    head, *rows = capsys.readouterr().out.splitlines()
    assert head.split() == ["trace", "id", "model", "tokens", "question", "answer"] and len(rows) == 3
    assert all("What is␛ 1+1?" in row and "\x1b" not in row for row in rows)
    assert cli.main(["store", "find", folder, "effort=low", "seed=1..9"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 2
    for options in (["--text", "carry the"], ["verified=true"], ["--prompt", "What is\x1b 1+1?"], ["model=ma*"]):
        assert cli.main(["store", "find", folder, *options, "--json"]) == 0
        assert len(json.loads(capsys.readouterr().out)) == 3, options
    assert cli.main(["store", "find", folder, "--score", "correct=0.5..", "--json"]) == 0
    [row] = json.loads(capsys.readouterr().out)
    assert row["score.correct"] == 1 and row["seed"] == 1 and row["edited"] is False
    assert cli.main(["store", "find", folder, "--edit", "ablate"]) == 0
    assert "no such traces" in capsys.readouterr().out


def test_show_writes_a_page(folder: str, capsys: pytest.CaptureFixture[str]):
    trace_id = chat(1, question="What is\x1b 1+1?").id
    assert cli.main(["store", "show", folder, trace_id[:9], "-o", "page.html"]) == 0
    assert "page.html" in capsys.readouterr().out and trace_id[:12] in Path("page.html").read_text("utf-8")
    assert cli.main(["store", "show", folder, "zz"]) == 1
    assert "no trace in" in capsys.readouterr().err


def test_verify_and_reindex(folder: str, capsys: pytest.CaptureFixture[str]):
    assert cli.main(["store", "verify", folder, "--sample", "1"]) == 0
    assert capsys.readouterr().out.startswith("3 traces; 1 verified (28 B)")
    (Path(folder) / "broken").mkdir()
    (Path(folder) / "broken" / "manifest.json").write_text("{}")
    assert cli.main(["store", "verify", folder, "--json"]) == 3
    report = json.loads(capsys.readouterr().out)
    assert not report["ok"] and [each["path"] for each in report["problems"]] == ["broken"]
    assert cli.main(["store", "reindex", folder]) == 0
    assert "3 traces, 1 that cannot be read" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["find", "runs", "efort=low"], "no column 'efort'"),
        (["find", "runs", "effort"], "must be NAME=VALUE"),
        (["find", "runs", "seed=a"], "seed must be a number or a range"),
        (["find", "runs", "verified=maybe"], "verified must be true or false"),
        (["find", "runs", "seed=1", "seed=2"], "two conditions"),
        (["find", "runs", "--score", "correct=x"], "correct must be a number"),
        (["list", "nowhere"], "there is no folder nowhere"),
        (["verify", "runs", "--sample", "-1"], "sample must be at least 0"),
    ],
)
def test_a_wrong_command_says_what_is_allowed(folder: str, arguments: list[str], message: str, capsys):
    assert cli.main(["store", *arguments]) == 1
    assert message in capsys.readouterr().err
    assert not Path("nowhere").exists()


def test_words_are_conditions():
    words = ["effort=high", "verified=no", "n_tokens=..5", "temperature=0.5", "question=a=b"]
    given = {"effort": "high", "verified": False, "n_tokens": (None, 5), "temperature": 0.5, "question": "a=b"}
    assert conditions_of(words, of_columns=True) == given
    with pytest.raises(ArgumentError):
        conditions_of(["=3"], of_columns=True)
