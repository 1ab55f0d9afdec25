"""Each notebook runs from top to bottom and its headline numbers are reproduced; its cells are those of its source.

The first two run here; all of them take ten minutes, so WORKBENCH_LONG=1 switches the others on.
"""

import os
import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from notebooks import make

HOME = Path(__file__).parent.parent
FOLDER = HOME / "notebooks"
NAMES = sorted(path.stem for path in FOLDER.glob("[0-9][0-9]_*.*") if path.suffix in (".ipynb", ".py"))
NAMES = list(dict.fromkeys(NAMES))
QUIET = pytest.mark.filterwarnings("ignore:Proactor event loop", "ignore::DeprecationWarning:zmq")


def stored(name: str) -> nbformat.NotebookNode:
    return nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)


LONG = pytest.mark.skipif(not os.environ.get("WORKBENCH_LONG"), reason="minutes; WORKBENCH_LONG=1 switches it on")


@QUIET
@pytest.mark.parametrize(  # each on a core that is free: tests/conftest.py
    "name", [name if name < "02" else pytest.param(name, marks=[pytest.mark.long, LONG]) for name in NAMES]
)
def test_a_notebook_runs_from_top_to_bottom(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for variable, value in make.ENVIRONMENT.items():
        monkeypatch.setenv(variable, value)
    resources = {"metadata": {"path": str(tmp_path)}}  # an empty folder: a copied notebook needs only the package
    ran, original = stored(name), stored(name)
    NotebookClient(ran, timeout=600, resources=resources).execute()
    for new, old in zip(ran.cells, original.cells, strict=True):
        assert alike(findings(new), findings(old)), f"{new.id} now has {findings(new)}"


def findings(cell: nbformat.NotebookNode) -> str:
    """The prose output of a cell, with its numbers, which come from the measurements."""
    shown = [output.get("data", {}).get("text/markdown", "") for output in cell.get("outputs", [])]
    return "".join("".join(text) for text in shown)


def alike(one: str, other: str) -> bool:
    """The same words, and numbers that another processor may round to the next hundredth."""
    number = re.compile(r"\d+(?:\.\d+)?")
    pairs = zip(number.findall(one), number.findall(other), strict=False)
    return number.sub("#", one) == number.sub("#", other) and all(abs(float(a) - float(b)) < 0.011 for a, b in pairs)


def test_findings_with_other_numbers_or_words_differ():
    assert alike("in 32 of 32 (0.89 to 1.00)", "in 32 of 32 (0.90 to 1.00)")
    assert not alike("in 32 of 32 (0.89 to 1.00)", "in 31 of 32 (0.89 to 1.00)")
    assert not alike("it is read off", "it is not read off")


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_and_its_source_have_the_same_cells(name: str):
    cells = [[(c.id, c.cell_type, c.source) for c in n.cells] for n in (make.read(FOLDER / f"{name}.py"), stored(name))]
    assert cells[0] == cells[1], f"run: python notebooks/make.py {name}"


@pytest.mark.parametrize("name", NAMES)
def test_a_stored_notebook_is_valid_and_has_no_local_paths(name: str):
    notebook = stored(name)
    nbformat.validate(notebook)
    assert notebook.metadata == make.METADATA  # no versions, no state of widgets
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell.outputs]
    assert outputs
    for output in outputs:
        assert output.output_type != "error"
        assert output.get("name") != "stderr", output.text
        shown = output.get("text", "") + "".join(str(data) for data in output.get("data", {}).values())
        assert not re.search(r"<script|\bsrc=\W*https?:| at 0x[0-9a-f]{6}|[\"' (/](?:home|root|tmp)/", shown)


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_needs_nothing_but_the_package(name: str):
    code = "\n".join(cell.source for cell in stored(name).cells if cell.cell_type == "code")
    assert not re.search(r"sys\.path|\.\./|__file__|chdir|data/", code)


def test_the_question_of_each_notebook_stands_in_its_first_cell():
    for name in NAMES:
        first = stored(name).cells[0]
        assert first.cell_type == "markdown" and first.source.startswith("# "), name
        assert "?" in first.source or name == "00_first_trace", name


def test_each_view_in_a_stored_notebook_has_a_snapshot_above_it_and_nothing_else_is_a_widget():
    shown = 0
    for name in NAMES:
        for cell in stored(name).cells:
            outputs = [output.get("data", {}) for output in cell.get("outputs", [])]
            live = [i for i, data in enumerate(outputs) if "application/vnd.jupyter.widget-view+json" in data]
            assert live == [i + 1 for i, data in enumerate(outputs) if "data-wb-still" in data.get("text/html", "")], (
                name
            )
            assert {"text/plain": ""} not in outputs, f"{name}, cell {cell.id}: the rest of a progress bar"
            shown += len(live)
    assert shown >= 10


# -- how they are made

GOOD = """# %% words [markdown]
# # Words

# %% print
import sys
print(sys.path is not None)

# %% two words
6 * 7
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(make, "HERE", tmp_path)
    for name, value in make.ENVIRONMENT.items():
        monkeypatch.setenv(name, value)  # what is set while a test runs is undone
    return tmp_path


@QUIET
def test_a_notebook_made_twice_is_the_same_file_and_one_that_fails_is_not_written(folder: Path):
    source, made = folder / "01_words.py", folder / "01_words.ipynb"
    source.write_text(GOOD)
    assert make.main([]) == 0
    first = made.read_bytes()
    assert make.main(["01_words.py"]) == 0 and made.read_bytes() == first
    notebook = nbformat.read(made, as_version=4)
    assert [cell.id for cell in notebook.cells] == ["words", "print", "two-words"]
    assert notebook.cells[2].outputs[0]["data"]["text/plain"] == "42"
    source.write_text(GOOD + "\n# %% wrong\nassert 6 * 9 == 42\n")
    assert make.main(["01_words"]) == 1 and made.read_bytes() == first
    assert sorted(path.name for path in folder.iterdir()) == ["01_words.ipynb", "01_words.py"]


@QUIET
def test_prose_is_renewed_without_running_and_changed_code_is_refused(folder: Path, capsys):
    source, made = folder / "01_words.py", folder / "01_words.ipynb"
    source.write_text(GOOD)
    assert make.main(["--text"]) == 1 and not made.exists()  # there are no outputs to keep
    assert make.main([]) == 0
    before = nbformat.read(made, as_version=4)
    source.write_text(GOOD.replace("# # Words", "# # Other words"))
    assert make.main(["--text"]) == 0
    after = nbformat.read(made, as_version=4)
    assert after.cells[0].source == "# Other words" and after.cells[1:] == before.cells[1:]
    source.write_text(GOOD.replace("6 * 7", "6 * 8"))
    capsys.readouterr()
    assert make.main(["--text", "01_words"]) == 1 and nbformat.read(made, as_version=4) == after
    assert "code cells were changed (two-words)" in capsys.readouterr().err


@pytest.mark.parametrize("title", ["", "Words", "print", "step 2", "a_b", 'print tags=["x"]'])
def test_a_title_that_cannot_be_an_id_is_refused_and_its_cell_named(folder: Path, title: str, capsys):
    (folder / "01_words.py").write_text(f"{GOOD}\n# %% {title}\nlast = 1\n")
    assert make.main([]) == 1
    assert "01_words.py: cell 4, which begins with 'last = 1'" in capsys.readouterr().err
    assert not (folder / "01_words.ipynb").exists()


def test_a_missing_notebook_error_lists_the_existing_ones(folder: Path, capsys):
    (folder / "01_words.py").write_text(GOOD)
    assert make.main(["02_more"]) == 2
    assert capsys.readouterr().err == "no such notebook: 02_more; available: 01_words\n"
