"""Digests of everything that one fp32 run of pocket leaves: python -m tests.golden.pocket_fp32 writes them anew.

The same on every processor, at every level of the native kernels and with any number of threads; other digests mean
that numbers have changed, which a CHANGELOG line should say.
"""

import hashlib
import json
from pathlib import Path

import numpy as np

import workbench as wb

FILE = Path(__file__).with_suffix(".json")
QUESTION = "Mod 10: a=3, b=a+4, c=b+2, d=c*3, e=d+a, f=e+b, g=f*2. Find g."
RECORD = "everything lens steps"


def recorded(model: wb.Model) -> wb.Trace:
    """A run that thinks and answers, with every hook point and lane."""
    return model.generate(QUESTION, max_tokens=96, record=RECORD)


def digests(trace: wb.Trace) -> dict[str, str]:
    """sha256 of each array's bytes, by name."""
    arrays = {name: np.ascontiguousarray(trace.stored(name)) for name in trace.names()}
    return {name: hashlib.sha256(array.tobytes()).hexdigest() for name, array in arrays.items()}


def main() -> None:
    trace = recorded(wb.Model("pocket"))
    found = {"id": trace.id, "tokens": len(trace), "arrays": digests(trace)}
    FILE.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
