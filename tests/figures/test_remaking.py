"""`workbench figures`: what it re-makes, and how it distinguishes other bytes, other versions and other numbers."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from workbench import cli, figures
from workbench.errors import FigureError
from workbench.figures import remaking

pytest.importorskip("matplotlib", reason="needs the extra `figures`")

HOME = Path(__file__).parents[2]
SCRIPTS = sorted((HOME / "docs/figures").glob("[!_]*.py"))
SCRIPT = """
from _neighbour import VALUES
from workbench.figures import Figure, Line, Panel

def draw():
    return Figure(panels=[Panel(marks=[Line(x=range(len(VALUES)), y=VALUES)])], title="t"), []
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder_path = tmp_path / "figures"
    folder_path.mkdir()
    (folder_path / "one.py").write_text(SCRIPT)
    neighbour(folder_path, [0.5, 1.5])
    monkeypatch.chdir(tmp_path)
    return folder_path


def neighbour(folder: Path, values: list[float]) -> None:
    sys.modules.pop("_neighbour", None)
    (folder / "_neighbour.py").write_text(f"VALUES = {values}  # {os.urandom(4).hex()}\n")
    for compiled in folder.rglob("*.pyc"):
        compiled.unlink()


def run(*arguments: str) -> int:
    return cli.main(["figures", "--folder", "figures", *arguments])


def test_a_recorded_figure_is_the_same_when_remade(folder: Path, capsys: pytest.CaptureFixture):
    assert run() == 0
    assert sorted(path.name for path in (folder / "out").iterdir()) == [
        f"one.{ending}" for ending in ("csv", "json", "pdf", "png", "svg")
    ]
    assert figures.provenance(folder / "out/one.svg")["code"]["name"] == "one.py"
    capsys.readouterr()
    assert run("--check") == 0
    assert capsys.readouterr().out == "same: one\n"


def test_a_check_writes_nothing(folder: Path):
    assert run() == 0
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.suffix not in (".pyc", "")}
    neighbour(folder, [0.5, 2.5])
    before[folder / "_neighbour.py"] = (folder / "_neighbour.py").read_bytes()
    assert run("--check") == 3
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.suffix not in (".pyc", "")} == before


def test_other_numbers_are_reported_with_exit_code_3(folder: Path, capsys: pytest.CaptureFixture):
    run()
    neighbour(folder, [0.5, 2.5])
    capsys.readouterr()
    assert run("--check") == 3
    assert capsys.readouterr().out == "other numbers: one: other numbers are drawn; with the same versions\n"


def test_noise_in_the_last_bits_is_the_same_figure(folder: Path):
    run()
    neighbour(folder, [0.5 + 1e-12, 1.5])
    assert run("--check") == 0


def test_other_bytes_from_the_same_versions_are_reported_with_exit_code_3(folder: Path, capsys: pytest.CaptureFixture):
    run()
    recorded = json.loads((folder / "sums.json").read_text())
    recorded["one"]["png"] = "0" * 64
    (folder / "sums.json").write_text(json.dumps(recorded))
    capsys.readouterr()
    assert run("--check", "--json") == 3
    [report] = json.loads(capsys.readouterr().out)
    assert report == {"name": "one", "state": "other bytes", "why": "png differs, with the same versions"}


def test_other_versions_with_the_same_numbers_are_reported_and_succeed(folder: Path, capsys: pytest.CaptureFixture):
    run()
    recorded = json.loads((folder / "sums.json").read_text())
    recorded["one"] |= {"png": "0" * 64, "versions": recorded["one"]["versions"] | {"matplotlib": "3.0.0"}}
    (folder / "sums.json").write_text(json.dumps(recorded))
    capsys.readouterr()
    assert run("--check") == 0
    out = capsys.readouterr().out
    assert out.startswith("other versions: one: the same numbers and words; matplotlib 3.0.0 then, ")


def test_a_figure_without_a_recorded_entry_fails_the_check(folder: Path, capsys: pytest.CaptureFixture):
    assert run("--check") == 3
    assert capsys.readouterr().out.startswith("new: one")


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("x = 1", "bad.py: it defines no draw()"),
        ("def draw():\n    return 1, []", "bad.py: draw() must return a Figure and its traces, got int"),
        ("def draw():\n    return {}['k']", "bad.py, line 2: KeyError: 'k'"),
        ("import no_such_module", "bad.py, line 1: ModuleNotFoundError"),
    ],
)
def test_a_failing_script_is_reported_in_one_line_and_no_sum_changes(folder: Path, script: str, message: str, capsys):
    run()
    before = (folder / "sums.json").read_bytes()
    (folder / "bad.py").write_text(script)
    assert run() == 1
    assert message in capsys.readouterr().err
    assert (folder / "sums.json").read_bytes() == before


@pytest.mark.parametrize(
    ("arguments", "message"), [(["two"], "there is no figure 'two'"), (["--folder", "no"], "--folder")]
)
def test_an_unknown_name_or_folder_is_refused_with_the_known_ones(folder: Path, arguments, message: str, capsys):
    assert run(*arguments) == 1
    assert message in capsys.readouterr().err


def test_saved_files_that_do_not_belong_together_fail_the_check(folder: Path, capsys: pytest.CaptureFixture):
    run()
    (folder / "out/one.csv").write_text("panel\n")
    capsys.readouterr()
    assert run("--check") == 3
    assert capsys.readouterr().out.startswith("damaged: one: one.csv is not the file that figures/out/one.json")


def test_damaged_sums_are_an_error_and_stay_unchanged(folder: Path):
    (folder / "sums.json").write_text('{"one": {}}')
    with pytest.raises(FigureError, match="cannot be read: the entry one is incomplete"):
        list(remaking.check(folder, folder / "out"))


# The scripts of the docs.


def test_every_script_has_a_recorded_entry_and_every_entry_a_script():
    recorded = remaking.read_sums(HOME / "docs/figures")
    assert sorted(recorded) == [script.stem for script in SCRIPTS]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_a_script_is_short_and_begins_with_its_question(script: Path):
    text = script.read_text("utf-8")
    assert len(text.splitlines()) <= 60
    assert text.startswith('"""')


@pytest.mark.parametrize("picture", sorted((HOME / "docs/images").glob("*.svg")), ids=lambda path: path.name)
def test_a_committed_picture_is_the_one_its_script_made(picture: Path):
    from hashlib import sha256

    recorded = remaking.read_sums(HOME / "docs/figures")
    if picture.stem in recorded:
        assert sha256(picture.read_bytes()).hexdigest() == recorded[picture.stem]["svg"]


@pytest.mark.long
@pytest.mark.skipif(not os.environ.get("WORKBENCH_LONG"), reason="minutes; WORKBENCH_LONG=1 switches it on")
def test_every_figure_of_the_docs_is_the_same_in_two_processes_with_other_hash_seeds():
    entries = []
    for seed in ("1", "2"):
        code = (
            "import json; from pathlib import Path; from workbench.figures.remaking import entry, remake, scripts\n"
            "print(json.dumps({s.stem: entry(remake(s)) for s in scripts(Path('docs/figures'))}))"
        )
        env = os.environ | {"PYTHONHASHSEED": seed}
        done = subprocess.run(
            [sys.executable, "-c", code], env=env, cwd=HOME, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        entries.append(json.loads(done.stdout))
    assert entries[0] == entries[1]
