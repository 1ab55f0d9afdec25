"""Supported platforms, and the error on others: other systems are simulated by hiding what they lack."""

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
def test_on_an_unsupported_platform_the_import_fails_with_the_reason(system, module):
    process = python(f"import sys; {HIDDEN[system]}\nimport {module}")
    last = process.stderr.strip().splitlines()[-1]
    assert process.returncode == 1 and "UnsupportedPlatform: workbench runs on Linux and macOS, not on" in last
    assert "WSL 2" in last


def test_the_platform_error_is_an_import_error_and_a_workbench_error():
    code = (
        "import sys; sys.modules['fcntl'] = None\ntry: import workbench\nexcept ImportError as e: print(type(e).mro())"
    )
    assert "WorkbenchError" in python(code).stdout


def test_on_macos_without_a_compiler_a_run_is_recorded_saved_and_read(tmp_path):
    """With torch kernels; the platform name and preadv are hidden, because not every Python on macOS has preadv."""
    code = f"""
import os, sys, psutil, torch  # these two read the platform on import
import workbench as wb
from workbench.model.kernels import native
sys.platform = "darwin"
del os.preadv
native.use("torch")
trace = wb.Model("pocket", memory="small").generate("What is 1+1?", record="residuals")
trace.save({str(tmp_path / "a.trace")!r})
loaded = wb.load({str(tmp_path / "a.trace")!r})
assert loaded.verified and (loaded["resid_post"] == trace["resid_post"]).all()
print(loaded.manifest.numerics["kernels"])
"""
    process = python(code)
    assert process.returncode == 0, process.stderr
    assert "torch" in process.stdout


def test_large_arrays_are_read_in_several_calls(tmp_path, monkeypatch):
    path = made.trace().save(tmp_path / "a.trace")
    expected = {name: np.array(load(path).raw(name)) for name in load(path).names()}
    monkeypatch.setattr(untrusted_files, "CHUNK_BYTES", 7)
    for hide in (False, True):
        if hide:
            monkeypatch.delattr("os.preadv")
        loaded = load(path)
        assert all(np.array_equal(loaded.raw(name), expected[name]) for name in expected)


def test_readme_and_classifiers_name_the_same_systems():
    about = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["classifiers"]
    assert [c.rpartition(" ")[2] for c in about if c.startswith("Operating System")] == ["MacOS", "Linux"]
    limits = (ROOT / "README.md").read_text("utf-8").partition("## Limits")[2]
    assert all(word in limits for word in ("Linux", "macOS on Apple silicon", "mps", "Windows", "WSL 2"))
