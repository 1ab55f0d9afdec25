"""Digests of all arrays of one fp32 run of pocket: python -m tests.golden.pocket_fp32 writes them.

    python -m tests.golden.pocket_fp32 --compare avx2 portable    # compares at these levels and prints differences
    bash tests/golden/under_qemu.sh /tmp/arm                      # the same on aarch64

They are the same on every processor, at every level of the native kernels and with any number of threads. Other digests
mean that numbers have changed, which needs a line in the CHANGELOG.
"""

import argparse
import hashlib
import json
import sys
from pathlib import Path

import numpy as np

import workbench as wb
from workbench.model.kernels import native

FILE = Path(__file__).with_suffix(".json")
QUESTION = "Mod 10: a=3, b=a+4, c=b+2, d=c*3, e=d+a, f=e+b, g=f*2. Find g."
RECORD = "everything lens steps"


def recorded(model: wb.Model) -> wb.Trace:
    """A run with thinking and answer, every hook point and every summary."""
    return model.generate(QUESTION, max_tokens=96, record=RECORD)


def digests(trace: wb.Trace) -> dict[str, str]:
    """sha256 of each array's bytes, by name."""
    arrays = {name: np.ascontiguousarray(trace.raw(name)) for name in trace.names()}
    return {name: hashlib.sha256(array.tobytes()).hexdigest() for name, array in arrays.items()}


def compare(level: str, model: wb.Model) -> bool:
    """True if a run at this level of kernels equals the committed one; prints the differences."""
    golden = json.loads(FILE.read_text())
    native.use(level)
    trace = recorded(model)
    recomputed = digests(trace)
    differ = [name for name in golden["arrays"] if recomputed.get(name) != golden["arrays"][name]]
    same = "equal" if trace.id == golden["id"] else "differs"
    print(f"{level}: id {same}, {len(differ)} of {len(recomputed)} arrays differ")  # noqa: T201 - a command line tool
    return not differ and trace.id == golden["id"]


def main() -> int:
    parser = argparse.ArgumentParser("python -m tests.golden.pocket_fp32")
    parser.add_argument("--compare", nargs="+", metavar="LEVEL", help="compare without writing")
    args = parser.parse_args()
    model = wb.Model("pocket", dtype="float32")
    if args.compare:
        results = [compare(level, model) for level in args.compare]  # all levels, also after one that differs
        return 0 if all(results) else 1
    trace = recorded(model)
    golden = {"id": trace.id, "tokens": len(trace), "arrays": digests(trace)}
    FILE.write_text(json.dumps(golden, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
