"""The same work at two commits, in turn: python -m benchmarks.commits BEFORE [--model FOLDER].

    git worktree add --detach /tmp/before COMMIT && (cd /tmp/before && python -I workbench/model/kernels/build.py)
    workbench synth --like 20b --layers 2 /tmp/cut
    python -m benchmarks.commits /tmp/before --model /tmp/cut
    python -m benchmarks.commits /tmp/before --model /tmp/cut --kernels avx2

Each turn is its own process in one of the two trees. A figure is how many times as fast this tree is: the ratio of the
shortest times of all rounds, by CPU time of one thread, which is the least disturbed by other work on the machine. With
--kernels avx2, MKL, oneDNN and torch are restricted to AVX2 too.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import torch

HERE = Path(__file__).resolve().parents[1]
AVX2_ONLY = {"ATEN_CPU_CAPABILITY": "avx2", "MKL_ENABLE_INSTRUCTIONS": "AVX2", "ONEDNN_MAX_CPU_ISA": "AVX2"}
QUESTION = "Mod 10: a=3, b=a+4, c=b+2, d=c*3, e=d+a. Find e."


def shortest(work, times: int) -> float:
    """CPU seconds of the shortest of `times` calls, after a warm-up call."""
    work()
    seconds = []
    for _ in range(times):
        start = time.process_time()
        work()
        seconds.append(time.process_time() - start)
    return min(seconds)


def products() -> dict[str, float]:
    """Dense products of a 20b layer and of pocket's size."""
    from workbench.model.kernels.linear import linear

    generator, seconds = torch.Generator().manual_seed(0), {}
    for dtype, n_in, n_out, rows in [
        *((torch.float32, 2880, 5120, rows) for rows in (1, 16, 512)),
        *((torch.bfloat16, 2880, 5120, rows) for rows in (1, 16, 512)),
    ]:
        x, w = (torch.randn(n, n_in, generator=generator).to(dtype) for n in (rows, n_out))
        name = f"{str(dtype).removeprefix('torch.')} {n_in} x {n_out}, {rows} rows"
        seconds[name] = shortest(lambda x=x, w=w: linear(x, w), 5)
    return seconds


def pocket() -> dict[str, float]:
    """Prefill, decode and a trace of the embedded model in fp32."""
    import workbench as wb
    from workbench.model.cache import KVCache

    model = wb.Model("pocket", dtype="float32")
    ids = torch.randint(0, 150, (1, 256), generator=torch.Generator().manual_seed(0))
    seconds = {"pocket, prefill of 64": shortest(lambda: model.forward(ids[:, :64]), 15)}
    seconds["pocket, prefill of 256"] = shortest(lambda: model.forward(ids), 9)
    cache = KVCache(model.config)
    model.forward(ids[:, :64], cache=cache)

    def decode() -> None:
        for i in range(16):
            model.forward(ids[:, 64 + i : 65 + i], cache=cache)
        cache.crop(64)

    seconds["pocket, 16 tokens decoded"] = shortest(decode, 9)
    seconds["pocket, wb.trace"] = shortest(lambda: wb.trace(QUESTION, model=model, max_tokens=64), 5)
    return seconds


def cut(folder: str) -> dict[str, float]:
    """Prefill and decode of a few layers of the 20b in bf16, experts in MXFP4."""
    import workbench as wb
    from workbench.model.cache import KVCache

    model, no_logits = wb.Model(folder), slice(0, 0)
    ids = torch.randint(0, model.config.d_vocab, (1, 512), generator=torch.Generator().manual_seed(0))
    seconds = {}
    for n in (64, 512):
        seconds[f"20b cut, prefill of {n}"] = shortest(lambda n=n: model.forward(ids[:, :n], logits_at=no_logits), 2)
    cache = KVCache(model.config)
    model.forward(ids, cache=cache, logits_at=no_logits)

    def decode() -> None:
        for i in range(4):
            model.forward(ids[:, i : i + 1], cache=cache)
        cache.crop(512)

    seconds["20b cut, 4 tokens decoded"] = shortest(decode, 6)
    return seconds


def measured(folder: str | None, kernels: str | None) -> dict[str, float]:
    from workbench.model.kernels import native

    torch.set_num_threads(1)
    native.use(kernels)
    with torch.no_grad():
        return products() | pocket() | (cut(folder) if folder else {})


def turn(tree: Path, args: argparse.Namespace) -> dict[str, float]:
    """Measures one tree: this file runs in a new process with that tree's workbench."""
    command = [sys.executable, str(Path(__file__).resolve()), "--measure"]
    command += ["--model", args.model] if args.model else []
    command += ["--kernels", args.kernels] if args.kernels else []
    environment = os.environ | {"PYTHONPATH": str(tree)} | (AVX2_ONLY if args.kernels == "avx2" else {})
    done = subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"in {tree}:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser("python -m benchmarks.commits", description="Two commits, in turn.")
    parser.add_argument("before", nargs="?", type=Path, help="a checkout of the earlier commit, with built kernels")
    parser.add_argument("--model", help="a cut of gpt-oss-20b, see the docstring")
    parser.add_argument("--kernels", help="the level of native kernels (default: the best)")
    parser.add_argument("--rounds", type=int, default=3, help="default: 3")
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        print(json.dumps(measured(args.model, args.kernels)))
        return
    if args.before is None or not (args.before / "workbench").is_dir():
        parser.error("give the folder of a checkout of the earlier commit")
    rounds = [(turn(args.before, args), turn(HERE, args)) for _ in range(args.rounds)]
    print(f"{'times as fast as before':34}{'ratio':>7}{'before':>12}{'now':>12}")
    for name in rounds[0][1]:
        before, now = (min(seconds[name] for seconds in side) for side in zip(*rounds))
        print(f"{name:34}{before / now:7.2f}{1e3 * before:9.2f} ms{1e3 * now:9.2f} ms")


if __name__ == "__main__":
    main()
