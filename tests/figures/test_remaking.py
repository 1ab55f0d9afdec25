"""`workbench figures`: what it makes again, and how it tells other bytes, other versions and other numbers apart."""

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
    where = tmp_path / "figures"
    where.mkdir()
    (where / "one.py").write_text(SCRIPT)
    neighbour(where, [0.5, 1.5])
    monkeypatch.chdir(tmp_path)
    return where


def neighbour(folder: Path, values: list[float]) -> None:
    sys.modules.pop("_neighbour", None)
    (folder / "_neighbour.py").write_text(f"VALUES = {values}  # {os.urandom(4).hex()}\n")
    for compiled in folder.rglob("*.pyc"):
        compiled.unlink()


def run(*arguments: str) -> int:
    return cli.main(["figures", "--folder", "figures", *arguments])


def test_a_figure_that_was_kept_is_the_same_when_it_is_made_again(folder: Path, capsys: pytest.CaptureFixture):
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


def test_other_numbers_are_told_and_are_code_3(folder: Path, capsys: pytest.CaptureFixture):
    run()
    neighbour(folder, [0.5, 2.5])
    capsys.readouterr()
    assert run("--check") == 3
    assert capsys.readouterr().out == "other numbers: one: other numbers are drawn; with the same versions\n"


def test_noise_in_the_last_bits_is_the_same_figure(folder: Path):
    run()
    neighbour(folder, [0.5 + 1e-12, 1.5])
    assert run("--check") == 0


def test_other_bytes_of_the_same_versions_are_told_and_are_code_3(folder: Path, capsys: pytest.CaptureFixture):
    run()
    kept = json.loads((folder / "sums.json").read_text())
    kept["one"]["png"] = "0" * 64
    (folder / "sums.json").write_text(json.dumps(kept))
    capsys.readouterr()
    assert run("--check", "--json") == 3
    [told] = json.loads(capsys.readouterr().out)
    assert told == {"name": "one", "state": "other bytes", "why": "png differs, with the same versions"}


def test_other_versions_under_the_same_numbers_are_told_and_are_no_error(folder: Path, capsys: pytest.CaptureFixture):
    run()
    kept = json.loads((folder / "sums.json").read_text())
    kept["one"] |= {"png": "0" * 64, "versions": kept["one"]["versions"] | {"matplotlib": "3.0.0"}}
    (folder / "sums.json").write_text(json.dumps(kept))
    capsys.readouterr()
    assert run("--check") == 0
    out = capsys.readouterr().out
    assert out.startswith("other versions: one: the same numbers and words; matplotlib 3.0.0 then, ")


def test_a_figure_that_is_not_kept_is_no_success(folder: Path, capsys: pytest.CaptureFixture):
    assert run("--check") == 3
    assert capsys.readouterr().out.startswith("new: one")


@pytest.mark.parametrize(
    ("script", "says"),
    [
        ("x = 1", "bad.py: it defines no draw()"),
        ("def draw():\n    return 1, []", "bad.py: draw() gives a Figure and its traces, not int"),
        ("def draw():\n    return {}['k']", "bad.py, line 2: KeyError: 'k'"),
        ("import no_such_module", "bad.py, line 1: ModuleNotFoundError"),
    ],
)
def test_a_script_that_fails_is_one_line_and_the_others_keep_their_sums(folder: Path, script: str, says: str, capsys):
    run()
    before = (folder / "sums.json").read_bytes()
    (folder / "bad.py").write_text(script)
    assert run() == 1
    assert says in capsys.readouterr().err
    assert (folder / "sums.json").read_bytes() == before


@pytest.mark.parametrize(
    ("arguments", "says"), [(["two"], "there is no figure 'two'"), (["--folder", "no"], "--folder")]
)
def test_a_name_or_folder_that_is_not_there_says_what_is(folder: Path, arguments: list[str], says: str, capsys):
    assert run(*arguments) == 1
    assert says in capsys.readouterr().err


def test_sums_that_cannot_be_read_are_an_error_and_stay(folder: Path):
    (folder / "sums.json").write_text('{"one": {}}')
    with pytest.raises(FigureError, match="cannot be read: one is not whole"):
        list(remaking.check(folder))


# The scripts of the documentation.


def test_there_is_a_kept_sum_for_every_script_and_no_other():
    kept = remaking.kept_sums(HOME / "docs/figures")
    assert sorted(kept) == [script.stem for script in SCRIPTS]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_a_script_is_short_and_says_its_question(script: Path):
    text = script.read_text("utf-8")
    assert len(text.splitlines()) <= 60
    assert text.startswith('"""')


@pytest.mark.parametrize("picture", sorted((HOME / "docs/images").glob("*.svg")), ids=lambda path: path.name)
def test_a_committed_picture_is_what_its_script_made(picture: Path):
    from hashlib import sha256

    kept = remaking.kept_sums(HOME / "docs/figures")
    if picture.stem in kept:
        assert sha256(picture.read_bytes()).hexdigest() == kept[picture.stem]["svg"]


@pytest.mark.long
@pytest.mark.skipif(not os.environ.get("WORKBENCH_LONG"), reason="minutes; WORKBENCH_LONG=1 switches it on")
def test_every_figure_of_the_docs_is_the_same_in_two_processes_with_other_hash_seeds():
    found = []
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
        found.append(json.loads(done.stdout))
    assert found[0] == found[1]
