"""Compiles native.c into a library beside it: `python -m workbench.model.kernels.build`. Needs only a C compiler.

The library is optional. Without it torch computes everything: the same numbers, several times slower.
"""

import hashlib
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
SOURCE = HERE / "native.c"
# native.c includes the others
SOURCES = (SOURCE, *(HERE / name for name in ("vectors.h", "fixed_order.h", "planes.h", "noise.h", "screen.h")))
LIBRARY = HERE / ("_native.dylib" if sys.platform == "darwin" else "_native.so")
# No contraction: a * b + c is one operation only where the source says fmaf, on every machine
FLAGS = ("-O3", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math")
TIME_LIMIT = 600  # seconds; it takes a few
MAX_MESSAGE_BYTES = 1 << 20
INSTRUCTIONS = (
    "install a C compiler (apt install gcc / xcode-select --install) and run: python -m workbench.model.kernels.build"
)


class CannotBuild(Exception):
    """The compilation failed; the message is one line with the reason and the remedy."""


def digest() -> str:
    """The digest of the source, which the library contains, so that one built from another source is never used."""
    return hashlib.sha256(b"".join(path.read_bytes() for path in SOURCES)).hexdigest()


def compiler() -> list[str] | None:
    """The first available C compiler: $CC, which may contain options, then the usual names.

    Raises `CannotBuild` if $CC cannot be split into words.
    """
    for name in (os.environ.get("CC"), "cc", "gcc", "clang"):
        try:
            command = shlex.split(name or "")
        except ValueError as e:
            raise CannotBuild(
                f"the environment variable CC is {name!r:.200}, which is not a command ({e}). Correct or unset it, and "
                f"run: python -m workbench.model.kernels.build"
            ) from None
        if command and shutil.which(command[0]):
            return command
    return None


def build(target: Path = LIBRARY, cc: list[str] | None = None, flags: tuple[str, ...] = ()) -> Path:
    """Compile to `target`, which is replaced atomically. Raises `CannotBuild`."""
    cc = cc or compiler()
    if cc is None:
        raise CannotBuild(f"no C compiler found: {INSTRUCTIONS}")
    temporary = target.with_name(f".{target.name}.{os.getpid()}")
    message = ""
    try:
        command = [*cc, *FLAGS, "-shared", "-fPIC", "-fvisibility=hidden",
                   f'-DWORKBENCH_SOURCE="{digest()}"', *flags, str(SOURCE), "-o", str(temporary), "-lm"]  # fmt: skip
        # Apple's clang has no OpenMP; native.c uses the system's threads there
        for threads in (["-fopenmp"], []) if sys.platform != "darwin" else ([],):
            message = _run([*command, *threads])
            if not message and temporary.is_file():
                temporary.replace(target)  # not `files.atomic_path`: this module imports nothing from workbench
                return target
    except OSError as e:
        raise CannotBuild(f"native.c cannot be read, or {target} not written: {e}") from None
    finally:
        temporary.unlink(missing_ok=True)
    raise CannotBuild(f"{cc[0]} cannot compile native.c: {message or 'it made no library'}")


def _run(command: list[str]) -> str:
    """Runs the compiler; its message if it fails, else "". Raises CannotBuild if it does not start or does not end."""
    with tempfile.TemporaryFile() as messages:  # not a pipe: one that is never closed would wait for ever
        try:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=messages, start_new_session=True
            )
        except (OSError, ValueError) as e:
            raise CannotBuild(f"{command[0]} does not start ({e}): {INSTRUCTIONS}") from None
        try:
            failed = process.wait(TIME_LIMIT)
        except subprocess.TimeoutExpired:
            raise CannotBuild(
                f"{command[0]} did not end within {TIME_LIMIT} s. Set the environment variable CC to a C compiler, and "
                f"run: python -m workbench.model.kernels.build"
            ) from None
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)  # with the programs that the compiler started
                process.wait()
        messages.seek(0)
        text = messages.read(MAX_MESSAGE_BYTES).decode("utf-8", "replace").strip()
    first = next((line for line in text.splitlines() if "error" in line), text[:500])
    return (first or f"it ended with code {failed} and no message") if failed else ""


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
