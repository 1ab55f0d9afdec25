"""Kills a process that writes traces at random moments, and checks the traces afterwards.

`python -m tests.traces.kills 100` prints a JSON object: how many traces the writer had reported as committed, how many
of them are missing or incomplete afterwards, how many others are visible, and how many unfinished folders remain.
"""

import json
import os
import random
import signal
import struct
import sys
import tempfile
import time
from pathlib import Path

from tests.traces import made
from workbench.errors import TraceError
from workbench.traces import load

COUNTS = (40, 20, 1)


def write_forever(folder: Path, first: int, out: int) -> None:
    number = first
    while True:
        made.streamed(folder / f"trace-{number}", COUNTS, seed=number)
        os.write(out, struct.pack("<q", number))  # reported only after the commit
        number += 1


def kill_one(folder: Path, first: int, after: float) -> list[int]:
    """The numbers that a writer reported before it was killed `after` seconds."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            write_forever(folder, first, writer)
        finally:
            os._exit(1)
    os.close(writer)
    time.sleep(after)
    os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    assert os.WIFSIGNALED(status), "the writer failed before it was killed"
    data = b""
    while chunk := os.read(reader, 65536):
        data += chunk
    os.close(reader)
    return [number for (number,) in struct.iter_unpack("<q", data[: len(data) // 8 * 8])]


def main(kills: int) -> dict[str, int]:
    rng = random.Random(7)
    counts = {
        "kills": kills,
        "reported": 0,
        "lost": 0,
        "torn": 0,
        "wrong": 0,
        "visible": 0,
        "unfinished": 0,
        "stale": 0,
    }
    with tempfile.TemporaryDirectory() as temporary:
        folder, first = Path(temporary) / "folder", 0
        reported: set[int] = set()
        for _ in range(kills):
            reported |= set(kill_one(folder, first, rng.uniform(0.002, 0.15)))
            counts["unfinished"] += len(list(folder.glob(".*.writing-*")))
            first = max(reported | {first}) + 2
        counts["reported"] = len(reported)
        counts["lost"] = sum(not (folder / f"trace-{number}").exists() for number in reported)
        for path in folder.glob("trace-*"):
            counts["visible"] += 1
            expected = made.joined(COUNTS, seed=int(path.name[6:]))
            try:
                trace = load(path)
                counts["wrong"] += not all(made.same(trace.raw(name), array) for name, array in expected.items())
            except TraceError:
                counts["torn"] += 1
        made.streamed(folder / "last")
        counts["stale"] = len(list(folder.glob(".*")))
    return counts


if __name__ == "__main__":
    sys.stdout.write(json.dumps(main(int(sys.argv[1]))) + "\n")
