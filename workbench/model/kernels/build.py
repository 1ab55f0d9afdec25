"""Compiles native.c beside itself: `python -m workbench.model.kernels.build`. Needs a C compiler, no package.

The library is optional. Without it everything is computed by torch: the same numbers, several times slower.
"""

import hashlib
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
SOURCE = HERE / "native.c"
SOURCES = (SOURCE, HERE / "vectors.h", HERE / "fixed_order.h")  # the others are included by the first
LIBRARY = HERE / ("_native.dylib" if sys.platform == "darwin" else "_native.so")
# No contraction: a * b + c is one operation only where the source says fmaf, on every machine
FLAGS = ("-O3", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math")
HOW = "install a C compiler (apt install gcc / xcode-select --install) and run: python -m workbench.model.kernels.build"


class CannotBuild(Exception):
    """One line: what is missing and what to do about it."""


def digest() -> str:
    """What the library carries, so that one that was built from another source is never used."""
    return hashlib.sha256(b"".join(path.read_bytes() for path in SOURCES)).hexdigest()


def compiler() -> list[str] | None:
    """The first C compiler there is: $CC, which may hold options too, then the usual names."""
    for name in (os.environ.get("CC"), "cc", "gcc", "clang"):
        command = shlex.split(name or "")
        if command and shutil.which(command[0]):
            return command
    return None


def build(target: Path = LIBRARY, cc: list[str] | None = None, flags: tuple[str, ...] = ()) -> Path:
    """Compile to `target`, which is replaced at once or not at all. Raises `CannotBuild`."""
    cc = cc or compiler()
    if cc is None:
        raise CannotBuild(f"no C compiler here: {HOW}")
    temporary = target.with_name(f".{target.name}.{os.getpid()}")
    command = [*cc, *FLAGS, "-shared", "-fPIC", "-fvisibility=hidden",
               f'-DWORKBENCH_SOURCE="{digest()}"', *flags, str(SOURCE), "-o", str(temporary), "-lm"]  # fmt: skip
    said = ""
    try:
        # Apple's clang has no OpenMP; there the threads come from the system
        for threads in (["-fopenmp"], []) if sys.platform != "darwin" else ([],):
            done = subprocess.run([*command, *threads], capture_output=True, text=True)
            if done.returncode == 0:
                temporary.replace(target)  # not `files.atomic_path`: a build imports nothing of ours
                return target
            said = next((line for line in done.stderr.splitlines() if "error" in line), done.stderr.strip())
    except OSError as e:
        raise CannotBuild(f"{cc[0]} does not start ({e}): {HOW}") from None
    finally:
        temporary.unlink(missing_ok=True)
    raise CannotBuild(f"{cc[0]} cannot compile native.c: {said or 'no message'}")


def main() -> int:
    """Builds the library and says where it is, or why not."""
    try:
        print(f"native kernels: {build()}")  # noqa: T201 - it prints: that is its work
    except CannotBuild as e:
        print(f"native kernels: {e}", file=sys.stderr)  # noqa: T201
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
