"""`workbench notebooks` and the defaults of `workbench lab`."""

import json
import os
from pathlib import Path

import pytest

from workbench import cli
from workbench.errors import FileError
from workbench.shipped_notebooks import copy_notebooks

HOME = Path(__file__).parent.parent


def test_all_notebooks_are_copied_as_they_are(tmp_path: Path):
    originals = sorted((HOME / "notebooks").glob("[0-9]*.ipynb"))
    copied = copy_notebooks(tmp_path / "new" / "folder")
    assert [path.name for path in copied] == [path.name for path in originals]
    assert [path.read_bytes() for path in copied] == [path.read_bytes() for path in originals]


def test_a_notebook_that_is_there_is_never_changed(tmp_path: Path):
    (tmp_path / "03_does_it_switch_experts.ipynb").write_text("mine")
    with pytest.raises(FileError, match=r"03_does_it_switch_experts\.ipynb already\. Nothing was written"):
        copy_notebooks(tmp_path)
    assert os.listdir(tmp_path) == ["03_does_it_switch_experts.ipynb"]
    (tmp_path / "file").write_text("mine")
    with pytest.raises(FileError, match="cannot be made"):
        copy_notebooks(tmp_path / "file" / "folder")


def test_the_command_says_how_to_open_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["notebooks", "my notebooks"]) == 0
    assert "workbench lab 'my notebooks/00_first_trace.ipynb'" in capsys.readouterr().out


def test_jupyterlab_does_not_ask_about_news(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """The folder of defaults comes before the user's own, which JupyterLab reads as well."""
    pytest.importorskip("jupyterlab_server")
    from jupyterlab_server.settings_utils import _get_overrides

    monkeypatch.setenv("JUPYTER_CONFIG_PATH", str(tmp_path))
    monkeypatch.setattr(os, "execv", lambda *_: None)
    cli.main(["lab"])
    assert os.environ["JUPYTER_CONFIG_PATH"].split(os.pathsep)[1:] == [str(tmp_path)]
    overrides, _ = _get_overrides(str(tmp_path))
    assert overrides["@jupyterlab/apputils-extension:notification"]["fetchNews"] == "false"
    assert json.dumps(overrides)
