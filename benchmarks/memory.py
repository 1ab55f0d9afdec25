"""The memory that memory="small" and memory="fast" take, and the time that "small" costs.

    python -m benchmarks.memory --model FOLDER                      # 256, 1,024 and 4,096 tokens, 3 rounds
    python -m benchmarks.memory --model FOLDER --sizes 256 --rounds 1
    python -m benchmarks.memory --model FOLDER --only memory --json out.json

Each mode runs over n random tokens: `model.forward` with logits of the last position (plain), and `model.trace` with
record="attention residuals", in memory (traced) and streamed to disk (`to=`, streamed; left out with a message where
this workbench cannot). A trace also predicts at every position and verifies itself, and its figures include this.

Memory. Every row runs in a fresh process: load, a pass over 8 tokens, give free memory back, then one pass. `peak` is
the kernel's own figure: VmHWM, reset before the pass. It counts the pages of mapped files, which the system can take
back. Anonymous memory cannot be taken back: its maximum is sampled every 5 ms, so a shorter peak may be missed. The
page cache outside the process belongs to no process: with "small", most of the model is in it while there is room.

Time. Both models are loaded and take turns, so that a ratio compares passes of the same minutes: the median over the
rounds of small / fast, of the wall clock and of CPU time. In "small", waiting for the disk shows in the wall clock
only. The file is in the page cache after the first round if the machine has room for it; GB that the process read from
disk in a pass show whether it had. To time a cold disk, drop the cache by hand between rounds.

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

from benchmarks.child import Child
from benchmarks.full_size import gb, log, ratio, tokens_of
from benchmarks.peers_full import clocks, disk_bytes_read, memory, reset_peak, serve_jobs, since

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
        options: dict[str, Any] = (
            {} if mode == "traced" else {"to": Path(folder) / f"{len(tokens)}-{time.monotonic_ns()}.trace"}
        )
        return self.model.trace(tokens, record=RECORD, **options)

    def run(self, tokens: list[int], mode: str, folder: str) -> dict:
        """Seconds of one pass, and the bytes that it read from disk."""
        gc.collect()
        disk, before = disk_bytes_read(), clocks()
        output = self._run(tokens, mode, folder)
        seconds = since(before)
        del output
        return {"seconds": seconds, "disk": disk_bytes_read() - disk}

    def weigh(self, tokens: list[int], mode: str, folder: str) -> dict:
        """Peak memory of one pass, including what it recorded, and the memory before and after it."""
        self._run(tokens[:8], mode, folder)
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)
        reset_peak()
        before, anonymous = memory(), []
        done = threading.Event()

        def sample() -> None:
            while not done.wait(0.005):
                anonymous.append(memory()["anonymous"])

        sampler = threading.Thread(target=sample)
        sampler.start()
        output = self._run(tokens, mode, folder)
        done.set()
        sampler.join()
        after = memory()
        del output
        return {"before": before, "after": after, "peak": after["peak"], "anonymous": max(anonymous, default=0)}


def serve(args: argparse.Namespace) -> None:
    import warnings

    warnings.simplefilter("ignore")  # a random model in bf16 may miss an identity, which is not measured here
    worker = Worker(args.model, args.serve, args.threads)
    serve_jobs({name: getattr(worker, name) for name in ("about", "run", "weigh")})


def child(args: argparse.Namespace, kind: str) -> Child:
    common = ("--model", args.model, "--threads", str(args.threads))
    return Child(sys.executable, "-m", "benchmarks.memory", "--serve", kind, *common)


def measure_peaks(args: argparse.Namespace, modes, d_vocab: int, folder: str) -> dict:
    peaks = {}
    for n, mode, kind in product(args.sizes, modes, KINDS):
        process = child(args, kind)
        peaks[n, mode, kind] = process("weigh", tokens=tokens_of(n, d_vocab, 0), mode=mode, folder=folder)
        process.close()
        _empty(folder)
        log(f"{n} tokens, {mode}, {kind}: memory measured")
    return peaks


def measure_times(args: argparse.Namespace, modes, d_vocab: int, folder: str) -> dict:
    """(n, mode, kind) -> rounds of [wall, CPU, bytes from disk]."""
    processes = {kind: child(args, kind) for kind in KINDS}
    measured: dict = {key: [] for key in product(args.sizes, modes, KINDS)}
    for n, mode in product(args.sizes, modes):
        tokens = tokens_of(n, d_vocab, 0)
        for kind in KINDS:
            processes[kind]("run", tokens=tokens[:64], mode=mode, folder=folder)  # warm up
        for i in range(args.rounds):
            for kind in KINDS[:: 1 if i % 2 else -1]:
                reply = processes[kind]("run", tokens=tokens, mode=mode, folder=folder)
                measured[n, mode, kind].append([*reply["seconds"], reply["disk"]])
            _empty(folder)
        log(f"{n} tokens, {mode}: timed")
    for process in processes.values():
        process.close()
    return {key: np.array(x) for key, x in measured.items()}


def _empty(folder: str) -> None:
    import shutil

    for path in Path(folder).iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def table(args: argparse.Namespace, modes, peaks: dict, times: dict) -> str:
    head = f"{'':16}"
    if peaks:
        head += f"{'fast: peak GB':>14}{'anonymous':>11}{'small: peak GB':>16}{'anonymous':>11}"
    if times:
        head += f"{'small / fast: wall':>20}{'CPU':>7}{'GB from disk, small':>22}"
    lines = [head]
    for n, mode in product(args.sizes, modes):
        line = f"{f'{mode} {n}':16}"
        if peaks:
            fast, small = (peaks[n, mode, kind] for kind in KINDS)
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
    parser.add_argument("--json", type=Path, help="file for every single measurement")
    parser.add_argument("--serve", choices=KINDS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        return serve(args)

    process = child(args, KINDS[0])
    about, modes = process("about"), list(args.modes)
    process.close()
    print(f"{about['text']}\n{args.threads} threads, record={RECORD!r}", flush=True)
    if "streamed" in modes and not about["streams"]:
        modes.remove("streamed")
        print("streamed is left out: Model.trace of this workbench has no `to=path`", flush=True)
    with tempfile.TemporaryDirectory(dir=args.scratch) as folder:
        peaks = measure_peaks(args, modes, about["d_vocab"], folder) if args.only != "time" else {}
        times = measure_times(args, modes, about["d_vocab"], folder) if args.only != "memory" else {}
    print("\n" + table(args, modes, peaks, times))
    if args.json:
        measurements = {
            "about": about["text"],
            "peaks": {" ".join(map(str, key)): x for key, x in peaks.items()},
            "wall_cpu_disk": {" ".join(map(str, key)): x.tolist() for key, x in times.items()},
        }
        args.json.write_text(json.dumps(measurements, indent=1))
    return None


if __name__ == "__main__":
    main()
