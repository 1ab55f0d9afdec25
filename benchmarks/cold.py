"""A model that is not in memory but on disk: the effect of explicit reads of the chosen experts and of reading ahead.

    python -m benchmarks.cold --model FOLDER                                   # every row, 3 rounds
    python -m benchmarks.cold --model FOLDER --rows decode-warm decode-cold --json out.json
    python -m benchmarks.cold --model FOLDER --rows prefill-cold --prefill 512 --rounds 2

FOLDER is a cut of gpt-oss-120b, `workbench synth --like 120b --layers 8 FOLDER` (16.3 GB), which fits into memory: the
whole model has 65 GB and would never be warm here. Three ways to read its bytes, each in its own process:

    ahead     memory="small": several readers fetch the chosen experts at once. Meanwhile or afterwards they fetch what
              the next layer will need: its other weights, and the experts that its router would choose already now
    reads     the same without reading ahead
    faults    memory="fast": the kernel reads a page when it is touched, and as many around it as the read-ahead of the
              device says (printed: Linux has 128 kB, some clouds megabytes)

Each row runs the three in turn, and every round rotates their order:

    decode-warm     token by token, all of the file in the page cache ("ahead" and "reads" map experts anew)
    decode-cold     token by token, the experts dropped before each, the rest in the page cache: the limit for a model
                    that is larger than the memory, if no token chooses an expert that one of the last had chosen
    first-cold      one token, nothing of the file in memory
    prefill-warm    n tokens at once from an empty cache, logits of the last position
    prefill-cold    the same, nothing of the file in memory
    start-cold      the same as first-cold, but from the start of the process: imports, loading, first token
    start-warm      the same, all of the file in the page cache

"Dropped" is madvise in all processes and posix_fadvise on the files. GB is what the process then read from disk, by
/proc/self/io. Before each cold round, as many readers as workbench uses read 1 GB at full speed: "of the disk" is the
time in which that speed would have read those GB, as a share of the time taken. Peak is VmHWM, reset before the row, so
it counts mapped pages of files. Times are medians of the rounds (decode: of their median tokens). Ratios are of the
same round, with quartiles.

Then the quality of the guess: the share of the chosen experts that the router would have chosen from the residual
stream before the experts of the previous layer have written (hook_resid_mid: read ahead in a prefill, which chooses
most experts anyway), and after (hook_resid_post: read ahead in a decode). A random model's residual stream hardly
changes direction within a layer, which flatters the guess, so the embedded model, which is trained but small, is
printed as well. Linux only.
"""

import argparse
import json
import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path

import numpy as np
import torch

from benchmarks.child import Child
from benchmarks.full_size import gb, log, tokens_of
from benchmarks.peers_full import clocks, disk_bytes_read, serve_jobs, since
from workbench.model.checkpoints.pages import READERS, Mapped, release_pages
from workbench.model.kernels.packed import Packed

WAYS = ("ahead", "reads", "faults")
ROWS = ("decode-warm", "prefill-warm", "start-warm", "decode-cold", "first-cold", "start-cold", "prefill-cold")
CONTEXT = 16  # tokens before those that are decoded
READ = 1 << 30  # bytes that are read to measure the speed of the disk
PIECE = 1 << 20  # bytes of each read
QUESTION = "Mod 10: a=3, b=a+4, c=b+2. Find c."  # for the embedded model, which can answer it


# -- the process that holds the model ---------------------------------------------------------------------------------


class Worker:
    def __init__(self, folder: str, way: str, threads: int):
        from workbench import Model

        self.folder = Path(folder).resolve()
        torch.set_num_threads(threads)
        torch.set_grad_enabled(False)
        self.model = Model(folder, memory="fast" if way == "faults" else "small")
        if way == "reads":
            self.model.weights.residency.prefetch = lambda layer, experts: None
        self.cache = None

    def about(self) -> dict:
        from workbench.model.kernels import native

        return {"text": f"{self.model!r}, {native.status()}", "d_vocab": self.model.config.d_vocab}

    def unmap(self, experts: bool = False) -> dict:
        """Drops the process's pages of the file, or only those of the experts."""
        if experts:
            matrices = [m for block in self.model.weights.blocks for m in (block.experts.up, block.experts.down)]
            pages = self.model.weights.residency
            assert isinstance(pages, Mapped)
            release_pages(pages._ranges(t for m in matrices if isinstance(m, Packed) for t in (m.blocks, m.scales)))
            return {}
        for line in Path("/proc/self/maps").read_text().splitlines():
            address_range, *_, name = line.split(maxsplit=5)
            if name.startswith(f"{self.folder}/"):
                start, stop = (int(x, 16) for x in address_range.split("-"))
                release_pages([(start, stop - start)])
        return {}

    def prefill(self, tokens: list[int]) -> dict:
        from workbench.model.cache import KVCache

        self.cache = KVCache(self.model.config)
        return self.decode(tokens)

    def decode(self, tokens: list[int]) -> dict:
        """Seconds [wall, CPU] of one pass over the tokens after those in the cache, and the bytes read from disk."""
        disk, before = disk_bytes_read(), clocks()
        self.model.forward(torch.tensor([tokens]), None, self.cache, slice(-1, None))
        return {"seconds": since(before), "disk": disk_bytes_read() - disk}

    def guessed(self, tokens: list[int]) -> dict:
        """By layer, from the second: the share of the chosen experts that were guessed in the layer before."""
        return {"share": _guessed(self.model, tokens)}


def _guessed(model, tokens: list[int]) -> dict[str, list[float]]:
    from workbench.model.gpt_oss import predicted_experts
    from workbench.recording.taps import Recorder

    c, shares = model.config, {"hook_resid_mid": [], "hook_resid_post": []}
    names = {f"blocks.{i}.{name}" for i in range(c.n_layers) for name in (*shares, "mlp.hook_expert_indices")}
    with torch.no_grad():
        model.forward(torch.tensor([tokens]), recorder := Recorder(names), None, slice(-1, None))
        for point, layer in product(shares, range(1, c.n_layers)):
            before, chosen = (
                recorder[f"blocks.{layer - 1}.{point}"],
                recorder[f"blocks.{layer}.mlp.hook_expert_indices"],
            )
            hits = [
                len(
                    set(predicted_experts(c, model.weights.blocks[layer], before[:, i : i + 1]))
                    & set(chosen[0, i].tolist())
                )
                for i in range(len(tokens))
            ]
            shares[point].append(sum(hits) / chosen.numel())
    return shares


def serve(args: argparse.Namespace) -> None:
    worker = Worker(args.model, args.serve, args.threads)
    serve_jobs({name: getattr(worker, name) for name in ("about", "unmap", "prefill", "decode", "guessed")})


# -- the files --------------------------------------------------------------------------------------------------------


class Files:
    """The shards of a checkpoint, and the positions of the experts in them."""

    def __init__(self, folder: Path):
        self.descriptors = {path: os.open(path, os.O_RDONLY) for path in sorted(folder.glob("*.safetensors"))}
        self.experts: list[tuple[int, int, int]] = []  # file, start, bytes
        for file in self.descriptors.values():
            size = int.from_bytes(os.pread(file, 8, 0), "little")
            header = json.loads(os.pread(file, size, 8))
            for name, info in header.items():
                if name.endswith(("_blocks", "_scales")):
                    start, stop = info["data_offsets"]
                    self.experts.append((file, 8 + size + start, stop - start))

    def drop(self, experts: bool = False) -> None:
        """Drops the experts, or everything, from the page cache. Pages that a process has mapped would stay."""
        for file, start, n in self.experts if experts else [(file, 0, 0) for file in self.descriptors.values()]:
            os.posix_fadvise(file, start, n, os.POSIX_FADV_DONTNEED)

    def warm(self) -> None:
        """Reads everything into the page cache."""
        for file in self.descriptors.values():
            self._read(file, 0, os.fstat(file).st_size)

    def speed(self) -> float:
        """The speed of the disk in bytes a second, from up to 1 GB of the experts, which must have been dropped."""
        file, start, n = max(self.experts, key=lambda expert: expert[2])
        return self._read(file, start, min(n, READ))

    def _read(self, file: int, first: int, n: int) -> float:
        before = time.perf_counter()
        with ThreadPoolExecutor(READERS) as readers:
            read = sum(readers.map(lambda at: len(os.pread(file, PIECE, at)), range(first, first + n, PIECE)))
        return read / (time.perf_counter() - before)


# -- measuring --------------------------------------------------------------------------------------------------------


class Measured:
    """One row: for each way and round the seconds, bytes from disk and peak memory; for each round the disk's speed."""

    def __init__(self):
        self.seconds: dict[str, list[float]] = {way: [] for way in WAYS}
        self.disk: dict[str, list[float]] = {way: [] for way in WAYS}
        self.peak: dict[str, list[float]] = {way: [] for way in WAYS}
        self.speed: list[float] = []


def measure(args: argparse.Namespace, row: str, n: int, children: dict[str, Child], files: Files, d_vocab: int):
    measured = Measured()
    task, state = row.split("-")

    def drop(cold: bool) -> None:
        for child in children.values():
            child("unmap", experts=task == "decode")
        if cold:
            files.drop(experts=task == "decode")

    if task == "decode":
        for child in children.values():
            child("prefill", tokens=tokens_of(CONTEXT, d_vocab, 0))
            child("decode", tokens=tokens_of(1, d_vocab, 0))
    for i in range(args.rounds):
        if state == "cold":
            drop(cold=True)
            measured.speed.append(files.speed())
        for way in (*WAYS[i % 3 :], *WAYS[: i % 3]):
            child = children[way]
            if task == "start":
                drop(cold=state == "cold")
                reply, peak = start(args, way, tokens_of(1, d_vocab, i)), {"peak": 0}
            else:
                tokens = tokens_of(n, d_vocab, i + 1)
                child("reset")
                replies = []
                for piece in [tokens] if task == "prefill" else [[token] for token in tokens]:
                    if state == "cold":
                        drop(cold=True)
                    replies.append(child("prefill" if task in ("prefill", "first") else "decode", tokens=piece))
                peak = child("memory")
                medians = np.median([[*r["seconds"], r["disk"]] for r in replies], 0).tolist()
                reply = {"seconds": medians[:2], "disk": medians[2]}
            measured.seconds[way].append(reply["seconds"][0])
            measured.disk[way].append(reply["disk"])
            measured.peak[way].append(peak["peak"])
        log(f"{row} {n}, round {i + 1}: " + ", ".join(f"{way} {measured.seconds[way][-1]:.2f} s" for way in WAYS))
    return measured


def start(args: argparse.Namespace, way: str, tokens: list[int]) -> dict:
    before = time.perf_counter()
    child = worker(args, way)
    reply = child("prefill", tokens=tokens)
    seconds = time.perf_counter() - before
    child.close()
    return {"seconds": [seconds, 0.0], "disk": reply["disk"]}


def worker(args: argparse.Namespace, way: str) -> Child:
    common = ("--model", args.model, "--threads", str(args.threads))
    return Child(sys.executable, "-m", "benchmarks.cold", "--serve", way, *common)


# -- the report -------------------------------------------------------------------------------------------------------


COLUMNS = ("", "seconds: " + ", ".join(WAYS), "reads / ahead", "faults / ahead", "GB read", "of the disk", "peak GB")


def line(row: str, m: Measured) -> str:
    """A row of the table, in markdown: medians by way, ratios with quartiles."""
    seconds, disk, peak = ({way: np.array(x[way]) for way in WAYS} for x in (m.seconds, m.disk, m.peak))
    cells = [row, ", ".join(f"{np.median(seconds[way]):.3g}" for way in WAYS)]
    for way in WAYS[1:]:
        q1, middle, q3 = np.percentile(seconds[way] / seconds["ahead"], (25, 50, 75))
        cells.append(f"{middle:.2f} ({q1:.2f}-{q3:.2f})")
    cells.append(", ".join(gb(np.median(disk[way])) for way in WAYS))
    speed = np.array(m.speed)
    cells.append(", ".join(f"{np.median(disk[way] / speed / seconds[way]):.2f}" for way in WAYS) if m.speed else "")
    cells.append(", ".join(gb(max(peak[way])) for way in WAYS) if peak["ahead"].all() else "")
    return f"| {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser("python -m benchmarks.cold", description="A model on the disk, cold and warm.")
    parser.add_argument("--model", required=True, help="folder of a gpt-oss in MXFP4, safetensors")
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS), help="default: all")
    parser.add_argument("--prefill", type=int, nargs="+", default=[64, 512], help="tokens (default: 64 512)")
    parser.add_argument("--decode", type=int, default=6, help="tokens a round (default: 6)")
    parser.add_argument("--rounds", type=int, default=3, help="default: 3")
    parser.add_argument("--threads", type=int, default=2, help="default: 2")
    parser.add_argument("--no-guess", action="store_true", help="skip the quality of the guess")
    parser.add_argument("--json", type=Path, help="file for every single measurement")
    parser.add_argument("--serve", choices=WAYS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        return serve(args)

    files = Files(Path(args.model))
    children = {way: worker(args, way) for way in WAYS}
    about = children["ahead"]("about")
    setting = f"{args.threads} threads, {args.rounds} rounds, {READERS} readers; {_device(args.model)}"
    print(f"{about['text']}\n{setting}", flush=True)
    if {"decode-cold", *(row for row in ROWS if row.endswith("warm"))} & set(args.rows):
        files.warm()
    print(f"\n| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}", flush=True)
    measured: dict[str, Measured] = {}
    for row in (row for row in ROWS if row in args.rows):
        sizes = {"decode": [args.decode], "prefill": args.prefill}.get(row.split("-")[0], [1])
        for n in sizes:
            name = row.replace("prefill", f"prefill-{n}")
            measured[name] = measure(args, row, n, children, files, about["d_vocab"])
            print(line(name, measured[name]), flush=True)
    if speeds := [speed for m in measured.values() for speed in m.speed]:
        q1, median, q3 = np.percentile(speeds, (25, 50, 75)) / 1e9
        print(f"\nthe disk reads {median:.2f} GB/s ({q1:.2f}-{q3:.2f}), {READERS} readers, {PIECE >> 10} kB at a time")
    if not args.no_guess:
        from workbench import Model

        for child in children.values():
            child("unmap")
        random = children["faults"]("guessed", tokens=tokens_of(64, about["d_vocab"], 0))["share"]
        pocket = Model("pocket")
        trained = _guessed(pocket, list(pocket.generate(QUESTION, max_tokens=64).tokens))
        for name, shares in ((Path(args.model).name, random), ("pocket", trained)):
            for point, by_layer in shares.items():
                print(f"guessed from {point}, {name}, by layer: " + " ".join(f"{share:.2f}" for share in by_layer))
    for child in children.values():
        child.close()
    if args.json:
        rows = {row: vars(m) for row, m in measured.items()}
        args.json.write_text(json.dumps({"about": about["text"], "setting": setting, "rows": rows}, indent=1))
    return None


def _device(folder: str) -> str:
    """The read-ahead of the device that a folder lies on."""
    n = Path(folder).stat().st_dev
    path = Path(f"/sys/dev/block/{os.major(n)}:{os.minor(n)}/queue/read_ahead_kb")
    return f"the device reads {path.read_text().strip()} kB ahead of a fault" if path.exists() else "no block device"


if __name__ == "__main__":
    main()
