"""Where workbench runs, and what it says elsewhere: systems that are not here are tried by hiding what they lack."""

import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest

from tests.traces import made
from workbench.traces import load, untrusted_files

ROOT = Path(__file__).parent.parent


def python(code: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)


HIDDEN = {
    "Windows": "sys.platform = 'win32'",
    "Windows without fcntl": "sys.platform = 'win32'; sys.modules['fcntl'] = None",
    "a browser": "sys.platform = 'emscripten'; sys.modules['fcntl'] = None",
}


@pytest.mark.parametrize("system", HIDDEN)
@pytest.mark.parametrize("module", ["workbench", "workbench.traces", "workbench.cli"])
def test_where_it_cannot_run_the_first_import_says_so(system, module):
    found = python(f"import sys; {HIDDEN[system]}\nimport {module}")
    last = found.stderr.strip().splitlines()[-1]
    assert found.returncode == 1 and "UnsupportedPlatform: workbench runs on Linux and macOS, not on" in last
    assert "WSL 2" in last


def test_the_refusal_is_an_import_error_and_one_of_workbenchs_own():
    code = (
        "import sys; sys.modules['fcntl'] = None\ntry: import workbench\nexcept ImportError as e: print(type(e).mro())"
    )
    assert "WorkbenchError" in python(code).stdout


def test_on_macos_without_a_compiler_a_run_is_recorded_saved_and_read(tmp_path):
    """By plain torch; what only Linux has is hidden: its name, and preadv, which not every Python on macOS has."""
    code = f"""
import os, sys, psutil, torch  # these two ask for the system when they are imported
import workbench as wb
from workbench.model.kernels import native
sys.platform = "darwin"
del os.preadv
native.use("torch")
trace = wb.Model("pocket", memory="small").generate("What is 1+1?", record="residuals")
trace.save({str(tmp_path / "a.trace")!r})
again = wb.load({str(tmp_path / "a.trace")!r})
assert again.verified and (again["resid_post"] == trace["resid_post"]).all()
print(again.manifest.numerics["kernels"])
"""
    found = python(code)
    assert found.returncode == 0, found.stderr
    assert "torch" in found.stdout


def test_large_arrays_are_read_in_several_calls(tmp_path, monkeypatch):
    path = made.trace().save(tmp_path / "a.trace")
    want = {name: np.array(load(path).raw(name)) for name in load(path).names()}
    monkeypatch.setattr(untrusted_files, "CHUNK_BYTES", 7)
    for hide in (False, True):
        if hide:
            monkeypatch.delattr("os.preadv")
        again = load(path)
        assert all(np.array_equal(again.raw(name), want[name]) for name in want)


def test_readme_and_classifiers_name_the_same_systems():
    about = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["classifiers"]
    assert [c.rpartition(" ")[2] for c in about if c.startswith("Operating System")] == ["MacOS", "Linux"]
    limits = (ROOT / "README.md").read_text("utf-8").partition("## Limits")[2]
    assert all(word in limits for word in ("Linux", "macOS on Apple silicon", "mps", "Windows", "WSL 2"))
