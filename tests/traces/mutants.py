"""Damages traces in many ways and counts the outcomes of reading them.

`python -m tests.traces.mutants 1000` prints a JSON object of outcomes. Every batch runs in a forked child, so that a
crash is counted too. "forged" mutants carry a manifest whose hash was made to fit: those may load as another trace, but
must never crash or raise anything untyped.
"""

import json
import os
import random
import re
import resource
import shutil
import signal
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

from tests.traces import made
from workbench.errors import TraceError
from workbench.traces import load

BATCH = 250
NUMBERS = [
    b"0",
    b"1",
    b"-1",
    b"2147483648",
    b"9223372036854775808",
    b"1" + b"0" * 30,
    b"1e999",
    b"1.5",
    b"NaN",
    b"9" * 5000,
]
WORDS = [
    (b"F32", b"I32"),
    (b"BF16", b"F16"),
    (b"blocks.0", b"blocks.1"),
    (b"complete", b"partial!"),
    (b'"schema":3', b'"schema":4'),
    (b"part-00000", b"../../etc0"),
    (b"part-00000", b"part-00001"),
    (b"{", b"["),
    (b"null", b"true"),
    (b"[", b"[" * 3000),
    (b'"live"', b'"dead"'),
    (b"pos", b"key"),
    (b'"tokens":', b'"tokens":[],"tokens":'),
    (b'"spans":', b'"spams":'),
    (b"<", b"\xff"),
    (b'""', b'"\\ud800"'),
]


def mutate(data: bytes, rng: random.Random, other: bytes) -> bytes:
    b, size = bytearray(data), len(data)
    at = rng.randrange(size)
    match rng.randrange(10):
        case 0:
            b[at] ^= 1 << rng.randrange(8)
        case 1:
            for _ in range(rng.randrange(1, 9)):
                b[rng.randrange(size)] = rng.randrange(256)
        case 2:
            del b[at:]
        case 3:
            b += rng.randbytes(rng.randrange(1, 64))
        case 4:
            del b[at : at + rng.randrange(1, 64)]
        case 5:
            b[at:at] = b[at : at + rng.randrange(1, 64)]
        case 6:
            lengths = [0, 1, 7, 2**31, 2**32 - 1, 2**63, 2**64 - 1, size, size - 8, rng.randrange(1 << 20)]
            b[:8] = rng.choice(lengths).to_bytes(8, "little")
        case 7:
            numbers = list(re.finditer(rb"[0-9]+", data[: rng.choice([600, 6000, size])]))
            if numbers:
                hit = rng.choice(numbers)
                b[hit.start() : hit.end()] = rng.choice(NUMBERS)
        case 8:
            for old, new in rng.sample(WORDS, 3):
                b = b.replace(old, new, 1)
        case _:
            start = rng.randrange(len(other))
            stop = rng.randrange(start, len(other))
            b[at : at + stop - start] = other[start:stop]
    return bytes(b)


def forge(data: bytes, rng: random.Random, other: bytes) -> bytes:
    """A changed manifest with a matching hash."""
    body = mutate(data[12:-78], rng, other[12:-78])
    return data[:12] + body + b',"sha256":"' + sha256(body).hexdigest().encode() + b'"}\n'


def change_files(folder: Path, rng: random.Random) -> None:
    """Replaces a file by another file, or by something that is not a file."""
    path = rng.choice(sorted(folder.iterdir()))
    if rng.random() < 0.2:
        first, second = sorted(folder.glob("part-*"))[:2]
        first.rename(folder / "x")
        second.rename(first)
        (folder / "x").rename(second)
        return
    path.unlink()
    ways: list[Callable[[], object]] = [
        lambda: None,
        lambda: path.symlink_to("/etc/passwd"),
        lambda: path.symlink_to("/dev/zero"),
        lambda: path.symlink_to(path.name),
        lambda: os.mkfifo(path),
        path.mkdir,
        path.touch,
        lambda: os.truncate(path, 1 << 43) if path.touch() is None else None,
    ]
    rng.choice(ways)()


def outcome(seed: int, home: Path, truth: dict[str, dict]) -> str:
    rng = random.Random(seed)
    name = rng.choice(sorted(truth))
    folder = home / f"mutant-{os.getpid()}"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(home / name, folder)
    kind = rng.choices(["bytes", "forged", "files"], [6, 2, 2])[0]
    if kind == "files":
        change_files(folder, rng)
    else:
        path = folder / "manifest.json" if kind == "forged" else rng.choice(sorted(folder.iterdir()))
        other = home / rng.choice(sorted(truth)) / path.name
        data = path.read_bytes()
        path.write_bytes((forge if kind == "forged" else mutate)(data, rng, other.read_bytes()))
    try:
        trace = load(folder)
        read = {name: trace.raw(name) for name in trace.names()}
        shown = (repr(trace), trace.summary())
    except TraceError as error:
        assert str(error), "an error without a message"
        return f"refused: {type(error).__name__}"
    except Exception as error:
        return f"UNTYPED: {kind} {type(error).__name__} {error} seed {seed}"[:300]
    assert all(line.isprintable() for text in shown for line in text.split("\n"))
    expected = truth[name]
    right = trace.manifest.to_json() == expected["manifest"] and read.keys() == expected["arrays"].keys()
    right = right and all(made.same(read[key], array) for key, array in expected["arrays"].items())
    return (
        "unchanged" if right else "forged: another trace" if kind == "forged" else f"SILENT WRONG: {kind} seed {seed}"
    )


def batch(seeds: range, home: Path, truth: dict[str, dict]) -> list[str]:
    """The outcomes, from a child process; if it dies, that is an outcome."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.close(reader)
            resource.setrlimit(resource.RLIMIT_AS, (8 << 30, 8 << 30))
            with os.fdopen(writer, "w") as out:
                for seed in seeds:
                    signal.alarm(10)  # nothing may hang
                    print(outcome(seed, home, truth).replace("\n", " "), file=out, flush=True)
            os._exit(0)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(1)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        lines = pipe.read().splitlines()
    _, status = os.waitpid(pid, 0)
    return lines + ([f"CRASH: status {status} after seed {seeds[0] + len(lines) - 1}"] if status else [])


def main(count: int) -> Counter[str]:
    outcomes: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as temporary:
        home, truth = Path(temporary), {}
        for seed in range(3):
            path = made.streamed(home / f"trace-{seed}", seed=seed)
            truth[path.name] = {"arrays": made.joined(seed=seed), "manifest": load(path).manifest.to_json()}
        for start in range(0, count, BATCH):
            outcomes.update(batch(range(start, min(count, start + BATCH)), home, truth))
    return outcomes


if __name__ == "__main__":
    sys.stdout.write(json.dumps(main(int(sys.argv[1]))) + "\n")
