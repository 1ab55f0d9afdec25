"""A model that lies on the disk: what explicit reads of the chosen experts give, and what reading ahead gives.

    python -m benchmarks.cold --model FOLDER                                   # every row, 3 rounds
    python -m benchmarks.cold --model FOLDER --rows decode-warm decode-cold --json out.json
    python -m benchmarks.cold --model FOLDER --rows prefill-cold --prefill 512 --rounds 2

FOLDER is a cut of gpt-oss-120b, `workbench synth --like 120b --layers 8 FOLDER` (16.3 GB), which the memory can hold:
the whole has 65 GB and would never be warm here. Three ways to its bytes, each in a process of its own:

    ahead     memory="small": several readers fetch the chosen experts at once, and meanwhile or after them what the
              next layer will need: its other weights, and the experts that its router would choose already now
    reads     the same without reading ahead
    faults    memory="fast": the kernel reads a page when it is touched, and as many around it as the read-ahead of the
              device says (printed: Linux has 128 kB, some clouds megabytes)

Each row takes the three in turns, and every round turns their order:

    decode-warm     token by token, all of it in the page cache (of which "ahead" and "reads" map experts anew)
    decode-cold     token by token, the experts dropped before each, the rest in the page cache: what a model comes to
                    that is larger than the memory, if no token chooses what one of the last had chosen
    first-cold      one token, nothing of the file in memory
    prefill-warm    n tokens at once from an empty cache, logits of the last position
    prefill-cold    the same, nothing of the file in memory
    start-cold      the same as first-cold, but from the start of the process: imports, loading, first token
    start-warm      the same, all of it in the page cache

"Dropped" is madvise in all processes and posix_fadvise on the files; GB is what the process then had the disk read, by
/proc/self/io. Before each cold round as many readers as ours read 1 GB as fast as it comes: "of the disk" is the time
in which that speed would have read those GB, as a share of the time taken. Peak is VmHWM, set back before, so it
counts mapped pages of files. Times are medians of the rounds (decode: of their median tokens); ratios are of the
same round, with quartiles.

Then, how good the guess is: the share of the chosen experts that the router would have chosen from the residual stream
before the experts of the layer before have written (hook_resid_mid: what a pass over a text reads ahead, which chooses
most experts anyway), and after (hook_resid_post: what a single token does). A random model's residual hardly turns
within a layer, which flatters it; so the embedded model, which was trained, but is small, is told beside. Linux only.
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

from benchmarks.full_size import Child, gb, say, tokens_of
from benchmarks.peers_full import answer, clocks, from_disk, since
from workbench.model.checkpoints.pages import READERS, Mapped, release_pages
from workbench.model.kernels.packed import Packed

WAYS = ("ahead", "reads", "faults")
ROWS = ("decode-warm", "prefill-warm", "start-warm", "decode-cold", "first-cold", "start-cold", "prefill-cold")
CONTEXT = 16  # tokens before those that are decoded
READ = 1 << 30  # bytes that tell the speed of the disk
PIECE = 1 << 20  # of them at a time
QUESTION = "Mod 10: a=3, b=a+4, c=b+2. Find c."  # for the embedded model, which can answer it


# -- the process that has the model -----------------------------------------------------------------------------------


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

        return {"text": f"{self.model!r}, {native.why()}", "d_vocab": self.model.config.d_vocab}

    def unmap(self, experts: bool = False) -> dict:
        """The process holds no page of the file any more, or none of the experts."""
        if experts:
            both = [m for block in self.model.weights.blocks for m in (block.experts.up, block.experts.down)]
            pages = self.model.weights.residency
            assert isinstance(pages, Mapped)
            release_pages(pages._ranges(t for m in both if isinstance(m, Packed) for t in (m.blocks, m.scales)))
            return {}
        for line in Path("/proc/self/maps").read_text().splitlines():
            place, *_, name = line.split(maxsplit=5)
            if name.startswith(f"{self.folder}/"):
                start, stop = (int(x, 16) for x in place.split("-"))
                release_pages([(start, stop - start)])
        return {}

    def prefill(self, tokens: list[int]) -> dict:
        from workbench.model.cache import KVCache

        self.cache = KVCache(self.model.config)
        return self.decode(tokens)

    def decode(self, tokens: list[int]) -> dict:
        """Seconds [wall, CPU] of the tokens at once, after what was read; and the bytes that came from the disk."""
        disk, before = from_disk(), clocks()
        self.model.forward(torch.tensor([tokens]), None, self.cache, slice(-1, None))
        return {"seconds": since(before), "disk": from_disk() - disk}

    def guessed(self, tokens: list[int]) -> dict:
        """By layer, from the second: the share of the chosen experts that a guess in the layer before holds."""
        return {"share": _guessed(self.model, tokens)}


def _guessed(model, tokens: list[int]) -> dict[str, list[float]]:
    from workbench.model.gpt_oss import likely
    from workbench.recording.taps import Recorder

    c, shares = model.config, {"hook_resid_mid": [], "hook_resid_post": []}
    wanted = {f"blocks.{i}.{name}" for i in range(c.n_layers) for name in (*shares, "mlp.hook_expert_indices")}
    with torch.no_grad():
        model.forward(torch.tensor([tokens]), seen := Recorder(wanted), None, slice(-1, None))
        for point, layer in product(shares, range(1, c.n_layers)):
            before, chosen = seen[f"blocks.{layer - 1}.{point}"], seen[f"blocks.{layer}.mlp.hook_expert_indices"]
            found = [
                len(set(likely(c, model.weights.blocks[layer], before[:, i : i + 1])) & set(chosen[0, i].tolist()))
                for i in range(len(tokens))
            ]
            shares[point].append(sum(found) / chosen.numel())
    return shares


def serve(args: argparse.Namespace) -> None:
    worker = Worker(args.model, args.serve, args.threads)
    answer({name: getattr(worker, name) for name in ("about", "unmap", "prefill", "decode", "guessed")})


# -- the file ---------------------------------------------------------------------------------------------------------


class Files:
    """The shards of a checkpoint, and where the experts lie in them."""

    def __init__(self, folder: Path):
        self.open = {path: os.open(path, os.O_RDONLY) for path in sorted(folder.glob("*.safetensors"))}
        self.experts: list[tuple[int, int, int]] = []  # file, start, bytes
        for file in self.open.values():
            size = int.from_bytes(os.pread(file, 8, 0), "little")
            header = json.loads(os.pread(file, size, 8))
            for name, info in header.items():
                if name.endswith(("_blocks", "_scales")):
                    start, stop = info["data_offsets"]
                    self.experts.append((file, 8 + size + start, stop - start))

    def drop(self, experts: bool = False) -> None:
        """Out of the page cache: the experts, or everything. Pages that a process has mapped would stay."""
        for file, start, n in self.experts if experts else [(file, 0, 0) for file in self.open.values()]:
            os.posix_fadvise(file, start, n, os.POSIX_FADV_DONTNEED)

    def warm(self) -> None:
        """Reads everything into the page cache."""
        for file in self.open.values():
            self._read(file, 0, os.fstat(file).st_size)

    def speed(self) -> float:
        """Bytes a second of the disk: up to 1 GB of the experts, which must have been dropped."""
        file, start, n = max(self.experts, key=lambda place: place[2])
        return self._read(file, start, min(n, READ))

    def _read(self, file: int, first: int, n: int) -> float:
        before = time.perf_counter()
        with ThreadPoolExecutor(READERS) as readers:
            read = sum(readers.map(lambda at: len(os.pread(file, PIECE, at)), range(first, first + n, PIECE)))
        return read / (time.perf_counter() - before)


# -- measuring --------------------------------------------------------------------------------------------------------


class Measured:
    """One row: by way, a round each of seconds, bytes from the disk, peak; and the disk's speed in each round."""

    def __init__(self):
        self.seconds: dict[str, list[float]] = {way: [] for way in WAYS}
        self.disk: dict[str, list[float]] = {way: [] for way in WAYS}
        self.peak: dict[str, list[float]] = {way: [] for way in WAYS}
        self.speed: list[float] = []


def measure(args: argparse.Namespace, row: str, n: int, children: dict[str, Child], files: Files, d_vocab: int):
    found = Measured()
    what, state = row.split("-")

    def make(cold: bool) -> None:
        for child in children.values():
            child("unmap", experts=what == "decode")
        if cold:
            files.drop(experts=what == "decode")

    if what == "decode":
        for child in children.values():
            child("prefill", tokens=tokens_of(CONTEXT, d_vocab, 0))
            child("decode", tokens=tokens_of(1, d_vocab, 0))
    for i in range(args.rounds):
        if state == "cold":
            make(cold=True)
            found.speed.append(files.speed())
        for way in (*WAYS[i % 3 :], *WAYS[: i % 3]):
            child = children[way]
            if what == "start":
                make(cold=state == "cold")
                reply, peak = start(args, way, tokens_of(1, d_vocab, i)), {"peak": 0}
            else:
                tokens = tokens_of(n, d_vocab, i + 1)
                child("reset")
                replies = []
                for piece in [tokens] if what == "prefill" else [[token] for token in tokens]:
                    if state == "cold":
                        make(cold=True)
                    replies.append(child("prefill" if what in ("prefill", "first") else "decode", tokens=piece))
                peak = child("memory")
                middle = np.median([[*r["seconds"], r["disk"]] for r in replies], 0).tolist()
                reply = {"seconds": middle[:2], "disk": middle[2]}
            found.seconds[way].append(reply["seconds"][0])
            found.disk[way].append(reply["disk"])
            found.peak[way].append(peak["peak"])
        say(f"{row} {n}, round {i + 1}: " + ", ".join(f"{way} {found.seconds[way][-1]:.2f} s" for way in WAYS))
    return found


def start(args: argparse.Namespace, way: str, tokens: list[int]) -> dict:
    before = time.perf_counter()
    child = worker(args, way)
    reply = child("prefill", tokens=tokens)
    took = time.perf_counter() - before
    child.close()
    return {"seconds": [took, 0.0], "disk": reply["disk"]}


def worker(args: argparse.Namespace, way: str) -> Child:
    common = ("--model", args.model, "--threads", str(args.threads))
    return Child(sys.executable, "-m", "benchmarks.cold", "--serve", way, *common)


# -- saying it --------------------------------------------------------------------------------------------------------


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
    parser.add_argument("--no-guess", action="store_true", help="leave the quality of the guess out")
    parser.add_argument("--json", type=Path, help="write every single measurement there")
    parser.add_argument("--serve", choices=WAYS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        return serve(args)

    files = Files(Path(args.model))
    children = {way: worker(args, way) for way in WAYS}
    about = children["ahead"]("about")
    how = f"{args.threads} threads, {args.rounds} rounds, {READERS} readers; {_device(args.model)}"
    print(f"{about['text']}\n{how}", flush=True)
    if {"decode-cold", *(row for row in ROWS if row.endswith("warm"))} & set(args.rows):
        files.warm()
    print(f"\n| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}", flush=True)
    found: dict[str, Measured] = {}
    for row in (row for row in ROWS if row in args.rows):
        sizes = {"decode": [args.decode], "prefill": args.prefill}.get(row.split("-")[0], [1])
        for n in sizes:
            name = row.replace("prefill", f"prefill-{n}")
            found[name] = measure(args, row, n, children, files, about["d_vocab"])
            print(line(name, found[name]), flush=True)
    if speeds := [speed for m in found.values() for speed in m.speed]:
        q1, middle, q3 = np.percentile(speeds, (25, 50, 75)) / 1e9
        print(f"\nthe disk reads {middle:.2f} GB/s ({q1:.2f}-{q3:.2f}), {READERS} readers, {PIECE >> 10} kB at a time")
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
        rows = {row: vars(m) for row, m in found.items()}
        args.json.write_text(json.dumps({"about": about["text"], "how": how, "rows": rows}, indent=1))
    return None


def _device(folder: str) -> str:
    """The read-ahead of the device that a folder lies on."""
    n = Path(folder).stat().st_dev
    path = Path(f"/sys/dev/block/{os.major(n)}:{os.minor(n)}/queue/read_ahead_kb")
    return f"the device reads {path.read_text().strip()} kB ahead of a fault" if path.exists() else "no block device"


if __name__ == "__main__":
    main()
