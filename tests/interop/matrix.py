"""The tests of interop under the oldest and the newest supported release of each library.

    python -m tests.interop.matrix                      # both, in a temporary folder that is deleted afterwards
    python -m tests.interop.matrix oldest --keep DIR    # one; the environments stay in DIR and are reused

Each environment is a venv with the project's constraints, except for the libraries under test and their own
dependencies (tokenizers, huggingface_hub, …). It needs PyPI, or another index that pip is configured for, and about
2 GB a venv. torch has the version of constraints.txt; if pip finds a CPU build first, it takes that.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from workbench.interop.versions import SUPPORTED

HOME = Path(__file__).parent.parent.parent
FREE = {
    "tokenizers",
    "huggingface-hub",
    "hf-xet",
    "safetensors",
    "typer",
}  # versions chosen by the libraries under test
NEEDED = ("pytest", "xarray", "ml_dtypes", "openai-harmony", "psutil", "jinja2", "gguf", "tqdm")
TESTS = [f"tests/interop/test_{name}.py" for name in ("transformers", "transformer_lens", "nnsight", "versions")]


def releases(which: str) -> dict[str, str]:
    """
    >>> releases("oldest")["nnsight"]
    '0.8.0'
    """
    return {package: supported[which == "newest"] for package, supported in SUPPORTED.items()}


def constraints() -> str:
    """The project's constraints, except those that the libraries under test choose."""
    lines = (HOME / "constraints.txt").read_text("utf-8").splitlines()
    name = re.compile(r"^([\w.-]+)==")
    excluded = FREE | set(SUPPORTED)
    parsed = [(name.match(line), line) for line in lines]
    return (
        "\n".join(line for match, line in parsed if match and match[1].lower().replace("_", "-") not in excluded) + "\n"
    )


def environment(folder: Path, which: str) -> Path:
    """The python of a venv with these releases, which is made if it does not exist yet."""
    python = folder / which / "bin" / "python"
    done = folder / which / ".done"
    requirements = [f"{package}=={release}" for package, release in releases(which).items()]
    if not done.exists() or done.read_text() != "\n".join(requirements):
        subprocess.run([sys.executable, "-m", "venv", "--clear", folder / which], check=True)
        constraints_file = folder / "constraints.txt"
        constraints_file.write_text(constraints())
        pip = [python, "-m", "pip", "--disable-pip-version-check", "install", "-q"]
        subprocess.run([*pip, "--upgrade", "pip"], check=True)
        subprocess.run([*pip, "-c", constraints_file, *requirements, *NEEDED], check=True)
        done.write_text("\n".join(requirements))
    return python


def run(folder: Path, which: str) -> int:
    python = environment(folder, which)
    show(f"{which}: {', '.join(f'{p} {r}' for p, r in releases(which).items())}")
    env = os.environ | {"PYTHONPATH": str(HOME), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    command = [python, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-W", "ignore", *TESTS]
    return subprocess.run(command, cwd=HOME, env=env, check=False).returncode


def show(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.interop.matrix", description=__doc__)
    parser.add_argument("which", nargs="*", choices=["oldest", "newest", []], help="by default both")
    parser.add_argument("--keep", type=Path, help="folder in which the environments stay")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as scratch:
        folder = args.keep or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        codes = {which: run(folder, which) for which in args.which or ("oldest", "newest")}
    show(", ".join(f"{which}: {'passed' if code == 0 else 'FAILED'}" for which, code in codes.items()))
    return max(codes.values())


if __name__ == "__main__":
    sys.exit(main())
