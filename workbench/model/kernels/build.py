"""Compiles native.c into a library beside it: `python -m workbench.model.kernels.build`. Needs only a C compiler.

The library is optional. Without it torch computes everything: the same numbers, several times slower.
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
SOURCES = (SOURCE, HERE / "vectors.h", HERE / "fixed_order.h")  # native.c includes the other two
LIBRARY = HERE / ("_native.dylib" if sys.platform == "darwin" else "_native.so")
# No contraction: a * b + c is one operation only where the source says fmaf, on every machine
FLAGS = ("-O3", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math")
INSTRUCTIONS = (
    "install a C compiler (apt install gcc / xcode-select --install) and run: python -m workbench.model.kernels.build"
)


class CannotBuild(Exception):
    """The compilation failed; the message is one line with the reason and the remedy."""


def digest() -> str:
    """The digest of the source, which the library contains, so that one built from another source is never used."""
    return hashlib.sha256(b"".join(path.read_bytes() for path in SOURCES)).hexdigest()


def compiler() -> list[str] | None:
    """The first available C compiler: $CC, which may contain options, then the usual names."""
    for name in (os.environ.get("CC"), "cc", "gcc", "clang"):
        command = shlex.split(name or "")
        if command and shutil.which(command[0]):
            return command
    return None


def build(target: Path = LIBRARY, cc: list[str] | None = None, flags: tuple[str, ...] = ()) -> Path:
    """Compile to `target`, which is replaced atomically. Raises `CannotBuild`."""
    cc = cc or compiler()
    if cc is None:
        raise CannotBuild(f"no C compiler found: {INSTRUCTIONS}")
    temporary = target.with_name(f".{target.name}.{os.getpid()}")
    command = [*cc, *FLAGS, "-shared", "-fPIC", "-fvisibility=hidden",
               f'-DWORKBENCH_SOURCE="{digest()}"', *flags, str(SOURCE), "-o", str(temporary), "-lm"]  # fmt: skip
    message = ""
    try:
        # Apple's clang has no OpenMP; native.c uses the system's threads there
        for threads in (["-fopenmp"], []) if sys.platform != "darwin" else ([],):
            done = subprocess.run([*command, *threads], capture_output=True, text=True)
            if done.returncode == 0:
                temporary.replace(target)  # not `files.atomic_path`: this module imports nothing from workbench
                return target
            message = next((line for line in done.stderr.splitlines() if "error" in line), done.stderr.strip())
    except OSError as e:
        raise CannotBuild(f"{cc[0]} does not start ({e}): {INSTRUCTIONS}") from None
    finally:
        temporary.unlink(missing_ok=True)
    raise CannotBuild(f"{cc[0]} cannot compile native.c: {message or 'no message'}")


def main() -> int:
    """Build the library; prints its path, or the reason why it could not be built."""
    try:
        print(f"native kernels: {build()}")  # noqa: T201 - a command line tool
    except CannotBuild as e:
        print(f"native kernels: {e}", file=sys.stderr)  # noqa: T201
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
