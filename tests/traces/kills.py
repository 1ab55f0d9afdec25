"""Kills a process that writes traces, at random moments, and looks at what it left.

`python -m tests.traces.kills 100` prints a JSON object: how many traces the writer had reported as committed, how many
of those are missing or not whole afterwards, how many others are visible, and what stays of the unfinished ones.
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


def write_forever(room: Path, first: int, out: int) -> None:
    number = first
    while True:
        made.streamed(room / f"trace-{number}", COUNTS, seed=number)
        os.write(out, struct.pack("<q", number))  # only now does anyone believe that it is there
        number += 1


def kill_one(room: Path, first: int, after: float) -> list[int]:
    """The numbers that a writer reported before it was killed `after` seconds."""
    ours, theirs = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            write_forever(room, first, theirs)
        finally:
            os._exit(1)
    os.close(theirs)
    time.sleep(after)
    os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    assert os.WIFSIGNALED(status), "the writer failed before it was killed"
    data = b""
    while chunk := os.read(ours, 65536):
        data += chunk
    os.close(ours)
    return [number for (number,) in struct.iter_unpack("<q", data[: len(data) // 8 * 8])]


def main(kills: int) -> dict[str, int]:
    rng = random.Random(7)
    left = {"kills": kills, "reported": 0, "lost": 0, "torn": 0, "wrong": 0, "visible": 0, "unfinished": 0, "stale": 0}
    with tempfile.TemporaryDirectory() as temporary:
        room, first = Path(temporary) / "room", 0
        reported: set[int] = set()
        for _ in range(kills):
            reported |= set(kill_one(room, first, rng.uniform(0.002, 0.15)))
            left["unfinished"] += len(list(room.glob(".*.writing-*")))
            first = max(reported | {first}) + 2
        left["reported"] = len(reported)
        left["lost"] = sum(not (room / f"trace-{number}").exists() for number in reported)
        for path in room.glob("trace-*"):
            left["visible"] += 1
            expected = made.joined(COUNTS, seed=int(path.name[6:]))
            try:
                trace = load(path)
                left["wrong"] += not all(made.same(trace.raw(name), array) for name, array in expected.items())
            except TraceError:
                left["torn"] += 1
        made.streamed(room / "last")
        left["stale"] = len(list(room.glob(".*")))
    return left


if __name__ == "__main__":
    sys.stdout.write(json.dumps(main(int(sys.argv[1]))) + "\n")
