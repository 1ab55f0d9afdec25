"""The levels of the native kernels that this machine can test; AVX-512 is emulated if unavailable."""

import platform

import pytest

from workbench.model.kernels import build, native

EMULATED = "avx512-bf16, emulated"
LEVELS = [*native.levels()]
if "avx512-bf16" not in LEVELS and platform.machine() == "x86_64" and build.compiler():
    LEVELS.append(EMULATED)


@pytest.fixture(scope="session")
def emulated(tmp_path_factory):
    """The library with AVX-512 in plain C (avx512.h); skips if the compiler cannot build it."""
    flags = ("-O0", "-w", "-include", str(build.HERE.parents[2] / "tests/model/kernels/avx512.h"))
    try:
        return build.build(tmp_path_factory.mktemp("native") / build.LIBRARY.name, flags=flags)
    except build.CannotBuild as e:
        pytest.skip(f"AVX-512 cannot be emulated here: {e}")


@pytest.fixture(params=LEVELS)
def level(request, monkeypatch):
    if request.param == EMULATED:
        monkeypatch.setattr(build, "LIBRARY", request.getfixturevalue("emulated"))
        monkeypatch.setattr(native._State, "loaded", False)
        native.use("avx512-bf16")
        yield "avx512-bf16"
        monkeypatch.undo()
        native._State.loaded = False
        return
    native.use(request.param)
    yield request.param
