"""Compiling the native kernels: with a compiler, without one, for another processor, and as part of a wheel."""

import os
import shlex
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from workbench.model.kernels import build, native

ROOT = build.HERE.parents[2]
needs_compiler = pytest.mark.skipif(build.compiler() is None, reason="no C compiler")


def python(code, **env):
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, env={**os.environ, **env}, check=False
    )


@pytest.fixture
def no_compiler(monkeypatch):
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CC", raising=False)


@pytest.fixture
def reloaded(monkeypatch):
    """Load another library, and load the original again afterwards."""
    monkeypatch.delenv(native.VARIABLE, raising=False)

    def load(library):
        monkeypatch.setattr(build, "LIBRARY", library)
        native._State.loaded = False
        return native.status()

    yield load
    monkeypatch.undo()
    native._State.loaded = False
    native.isa()


def test_without_a_compiler_build_says_what_to_do(no_compiler, tmp_path):
    with pytest.raises(
        build.CannotBuild, match=r"apt install gcc / xcode-select --install.*workbench.model.kernels.build"
    ):
        build.build(tmp_path / "x.so")
    done = subprocess.run(
        [sys.executable, "-I", build.__file__], capture_output=True, text=True, env={"PATH": ""}, check=False
    )
    assert done.returncode == 1 and len(done.stderr.splitlines()) == 1 and "install a C compiler" in done.stderr


def test_the_error_names_a_compiler_that_does_not_start(monkeypatch, tmp_path):
    with pytest.raises(build.CannotBuild, match="/nowhere/cc"):
        build.build(tmp_path / "x.so", cc=["/nowhere/cc"])
    monkeypatch.setenv("CC", "/nowhere/cc")
    assert build.compiler() != ["/nowhere/cc"]


@needs_compiler
def test_a_failed_compilation_keeps_the_old_library(monkeypatch, tmp_path):
    (tmp_path / "bad.c").write_text("int f( {")
    (tmp_path / "x.so").write_text("old")
    monkeypatch.setattr(build, "SOURCE", tmp_path / "bad.c")
    with pytest.raises(build.CannotBuild, match="error"):
        build.build(tmp_path / "x.so")
    assert (tmp_path / "x.so").read_text() == "old" and len(list(tmp_path.iterdir())) == 2


def test_without_a_library_torch_computes_and_status_says_how_to_get_one(reloaded, tmp_path):
    status = reloaded(tmp_path / "none.so")
    assert native.isa() is None and native.levels() == []
    assert "torch computes" in status and build.INSTRUCTIONS in status and "\n" not in status
    with pytest.raises(ValueError, match="avx2 kernels do not run here"):
        native.use("avx2")
    native.use("torch")


def test_a_file_that_is_not_a_library_is_not_loaded(reloaded, tmp_path):
    (tmp_path / "x.so").write_text("not a library")
    assert "torch computes" in reloaded(tmp_path / "x.so") and native.isa() is None


@needs_compiler
def test_a_library_built_from_another_source_is_not_used(reloaded, monkeypatch, tmp_path):
    library = build.build(tmp_path / "x.so", flags=("-O0", "-w"))
    assert "native kernels: " in reloaded(library) and native.isa()
    monkeypatch.setattr(build, "digest", lambda: "another")
    status = reloaded(library)
    assert native.isa() is None and "another version of native.c" in status
    assert "python -m workbench.model.kernels.build" in status
    assert "\n" not in status


def test_the_environment_variable_selects_the_kernels():
    code = "from workbench.model.kernels import native; print(native.isa(), '|', native.status())"
    assert python(code, WORKBENCH_KERNELS="torch").stdout.startswith(
        "None | no native kernels, torch computes: switched off"
    )
    invalid = python(code, WORKBENCH_KERNELS="abacus")
    assert invalid.returncode == 0 and "abacus kernels do not run here" in invalid.stdout
    if native.levels():
        assert python(code, WORKBENCH_KERNELS="portable").stdout.startswith("portable | native kernels: portable")


@needs_compiler
def test_torch_and_the_kernels_share_one_openmp():
    if sys.platform != "linux" or not native.isa():
        pytest.skip("needs Linux and the native kernels")
    code = "from workbench.model.kernels import native; native.isa(); print(open('/proc/self/maps').read())"
    maps = python(code).stdout.splitlines()
    assert len({line.split()[-1] for line in maps if "libgomp" in line}) == 1


@pytest.mark.parametrize("compiler", [pytest.param(True, marks=needs_compiler), False])
def test_the_wheel_contains_the_library_if_there_is_a_compiler(tmp_path, compiler):
    pytest.importorskip("hatchling", reason="no hatchling in this environment: pip install hatchling")
    source = tmp_path / "source"
    for name in ["pyproject.toml", "README.md", "LICENSE", "hatch_build.py", "workbench/__init__.py"]:
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, source / name)
    shutil.copytree(
        build.HERE, source / "workbench/model/kernels", ignore=shutil.ignore_patterns("_native*", "__pycache__")
    )
    shutil.copy(ROOT / ".gitignore", source / ".gitignore")
    (source / "data/pocket").mkdir(parents=True)
    (source / "data/reference").mkdir()
    (source / "data/pocket/x").write_text("")
    quick = tmp_path / "cc"  # without optimization, to save time; other tests check the kernels
    quick.write_text(f'#!/bin/sh\nexec {shlex.join(build.compiler() or [])} "$@" -O0\n')
    quick.chmod(0o755)
    env = {**os.environ, "CC": str(quick)} if compiler else {**os.environ, "PATH": ""}
    done = subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)],
        cwd=source, env=env, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (wheel,) = Path(tmp_path).glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert (
        f"workbench/model/kernels/{build.LIBRARY.name}" in names
    ) == compiler and "workbench/model/kernels/native.c" in names
    assert wheel.name.endswith("-py3-none-any.whl") != compiler
    assert ("torch computes" in done.stderr + done.stdout) != compiler


@pytest.mark.parametrize(
    ("cc", "words"), [('gcc "', "CC is 'gcc \"', which is not a command"), ("sh -c 'sleep 60'", "did not end")]
)
def test_a_compiler_that_is_none_or_does_not_end_is_reported(monkeypatch, tmp_path, cc, words):
    monkeypatch.setenv("CC", cc)
    monkeypatch.setattr(build, "TIME_LIMIT", 0.2)
    with pytest.raises(build.CannotBuild, match=words):
        build.build(tmp_path / "x.so")
    assert not list(tmp_path.iterdir())
