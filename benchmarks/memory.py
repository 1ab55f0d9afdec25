"""What memory="small" and memory="fast" take, and what "small" costs in time.

    python -m benchmarks.memory --model FOLDER                      # 256, 1,024 and 4,096 tokens, 3 rounds
    python -m benchmarks.memory --model FOLDER --sizes 256 --rounds 1
    python -m benchmarks.memory --model FOLDER --only memory --json out.json

What runs is `model.forward` over n random tokens, logits of the last position (plain), and `model.trace` of the same
tokens with record="attention residuals", in memory (traced) and streamed to disk (`to=`, streamed; left out, and said,
where this workbench cannot). A trace also predicts at every position and verifies itself; its figures hold all of that.

Memory. Every row in a fresh process: load, a pass over 8 tokens, give free memory back, then one pass. `peak` is the
kernel's own: VmHWM, set back before the pass; it counts the pages of mapped files, which the system can take back. What
it cannot take back is anonymous memory: the most of it seen, looked at every 5 ms, so a shorter peak may be missed.
The page cache outside the process is nobody's: with "small", most of the model lies there while there is room.

Time. Both models are alive and take turns, so that a ratio compares passes of the same minutes: the median over the
rounds of small / fast, of the wall clock and of CPU time. In "small" what waits for the disk shows in the wall clock
only. The file is in the page cache after the first round if the machine has room for it; whether it had is told by
what the process read from the disk, in GB a pass. To time a cold disk, drop the cache by hand between rounds.

Linux only: the figures are read from /proc.
"""

import argparse
import ctypes
import gc
import inspect
import json
import sys
import tempfile
import threading
import time
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.full_size import Child, gb, ratio, say, tokens_of
from benchmarks.peers_full import answer, clocks, from_disk, memory, reset_peak, since

RECORD = "attention residuals"
KINDS = ("fast", "small")
MODES = ("plain", "traced", "streamed")
SIZES = (256, 1024, 4096)


class Worker:
    def __init__(self, folder: str, kind: str, threads: int):
        from workbench import Model

        torch.set_num_threads(threads)
        self.model = Model(folder, memory=kind)

    def about(self) -> dict:
        from workbench.model.kernels import native

        streams = "to" in inspect.signature(self.model.trace).parameters
        return {"text": f"{self.model!r}, {native.status()}", "streams": streams, "d_vocab": self.model.config.d_vocab}

    def _run(self, tokens: list[int], mode: str, folder: str):
        if mode == "plain":
            with torch.no_grad():
                return self.model.forward(torch.tensor([tokens]), logits_at=slice(-1, None))
        more: dict[str, Any] = (
            {} if mode == "traced" else {"to": Path(folder) / f"{len(tokens)}-{time.monotonic_ns()}.trace"}
        )
        return self.model.trace(tokens, record=RECORD, **more)

    def run(self, tokens: list[int], mode: str, folder: str) -> dict:
        """Seconds of one pass, and the bytes that it read from the disk."""
        gc.collect()
        disk, before = from_disk(), clocks()
        kept = self._run(tokens, mode, folder)
        seconds = since(before)
        del kept
        return {"seconds": seconds, "disk": from_disk() - disk}

    def weigh(self, tokens: list[int], mode: str, folder: str) -> dict:
        """Peaks of one pass, what it recorded included, and what was there before."""
        self._run(tokens[:8], mode, folder)
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)
        reset_peak()
        before, anonymous = memory(), []
        done = threading.Event()

        def look() -> None:
            while not done.wait(0.005):
                anonymous.append(memory()["anonymous"])

        watch = threading.Thread(target=look)
        watch.start()
        kept = self._run(tokens, mode, folder)
        done.set()
        watch.join()
        after = memory()
        del kept
        return {"before": before, "after": after, "peak": after["peak"], "anonymous": max(anonymous, default=0)}


def serve(args: argparse.Namespace) -> None:
    import warnings

    warnings.simplefilter("ignore")  # a random model in bf16 may miss an identity; that is not what is measured
    worker = Worker(args.model, args.serve, args.threads)
    answer({name: getattr(worker, name) for name in ("about", "run", "weigh")})


def child(args: argparse.Namespace, kind: str) -> Child:
    common = ("--model", args.model, "--threads", str(args.threads))
    return Child(sys.executable, "-m", "benchmarks.memory", "--serve", kind, *common)


def weighed(args: argparse.Namespace, modes, d_vocab: int, folder: str) -> dict:
    found = {}
    for n, mode, kind in product(args.sizes, modes, KINDS):
        one = child(args, kind)
        found[n, mode, kind] = one("weigh", tokens=tokens_of(n, d_vocab, 0), mode=mode, folder=folder)
        one.close()
        _empty(folder)
        say(f"{n} tokens, {mode}, {kind}: weighed")
    return found


def timed(args: argparse.Namespace, modes, d_vocab: int, folder: str) -> dict:
    """(n, mode, kind) -> rounds of [wall, CPU, bytes from the disk]."""
    both = {kind: child(args, kind) for kind in KINDS}
    found: dict = {key: [] for key in product(args.sizes, modes, KINDS)}
    for n, mode in product(args.sizes, modes):
        tokens = tokens_of(n, d_vocab, 0)
        for kind in KINDS:
            both[kind]("run", tokens=tokens[:64], mode=mode, folder=folder)  # warm up
        for i in range(args.rounds):
            for kind in KINDS[:: 1 if i % 2 else -1]:
                reply = both[kind]("run", tokens=tokens, mode=mode, folder=folder)
                found[n, mode, kind].append([*reply["seconds"], reply["disk"]])
            _empty(folder)
        say(f"{n} tokens, {mode}: timed")
    for one in both.values():
        one.close()
    return {key: np.array(x) for key, x in found.items()}


def _empty(folder: str) -> None:
    import shutil

    for path in Path(folder).iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def table(args: argparse.Namespace, modes, weights: dict, times: dict) -> str:
    head = f"{'':16}"
    if weights:
        head += f"{'fast: peak GB':>14}{'anonymous':>11}{'small: peak GB':>16}{'anonymous':>11}"
    if times:
        head += f"{'small / fast: wall':>20}{'CPU':>7}{'GB from disk, small':>22}"
    lines = [head]
    for n, mode in product(args.sizes, modes):
        line = f"{f'{mode} {n}':16}"
        if weights:
            fast, small = (weights[n, mode, kind] for kind in KINDS)
            line += f"{gb(fast['peak']):>14}{gb(fast['anonymous']):>11}"
            line += f"{gb(small['peak']):>16}{gb(small['anonymous']):>11}"
        if times:
            fast, small = (times[n, mode, kind] for kind in KINDS)
            line += f"  {ratio(small, fast)}{gb(np.median(small[:, 2])):>22}"
        lines.append(line)
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser("python -m benchmarks.memory", description="memory='small' beside 'fast'.")
    parser.add_argument("--model", required=True, help="folder of a gpt-oss in MXFP4")
    parser.add_argument("--sizes", type=int, nargs="+", default=list(SIZES), help="tokens (default: 256 1024 4096)")
    parser.add_argument("--rounds", type=int, default=3, help="default: 3")
    parser.add_argument("--threads", type=int, default=2, help="default: 2")
    parser.add_argument("--only", choices=("time", "memory"), help="measure one of the two")
    parser.add_argument("--modes", nargs="+", choices=MODES, default=list(MODES), help="default: all")
    parser.add_argument("--scratch", type=Path, help="where traces are streamed to and deleted (default: a new folder)")
    parser.add_argument("--json", type=Path, help="write every single measurement there")
    parser.add_argument("--serve", choices=KINDS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        return serve(args)

    one = child(args, KINDS[0])
    about, modes = one("about"), list(args.modes)
    one.close()
    print(f"{about['text']}\n{args.threads} threads, record={RECORD!r}", flush=True)
    if "streamed" in modes and not about["streams"]:
        modes.remove("streamed")
        print("streamed is left out: Model.trace of this workbench has no `to=path`", flush=True)
    with tempfile.TemporaryDirectory(dir=args.scratch) as folder:
        weights = weighed(args, modes, about["d_vocab"], folder) if args.only != "time" else {}
        times = timed(args, modes, about["d_vocab"], folder) if args.only != "memory" else {}
    print("\n" + table(args, modes, weights, times))
    if args.json:
        said = {
            "about": about["text"],
            "peaks": {" ".join(map(str, key)): x for key, x in weights.items()},
            "wall_cpu_disk": {" ".join(map(str, key)): x.tolist() for key, x in times.items()},
        }
        args.json.write_text(json.dumps(said, indent=1))
    return None


if __name__ == "__main__":
    main()
