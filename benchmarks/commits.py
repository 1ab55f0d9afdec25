"""The same work at two commits, by turns: python -m benchmarks.commits BEFORE [--model FOLDER].

    git worktree add --detach /tmp/before COMMIT && (cd /tmp/before && python -I workbench/model/kernels/build.py)
    workbench synth --like 20b --layers 2 /tmp/cut
    python -m benchmarks.commits /tmp/before --model /tmp/cut
    python -m benchmarks.commits /tmp/before --model /tmp/cut --kernels avx2

Each turn is a process of its own in one of the two trees. A figure is how many times as fast this tree is: the ratio of
the shortest times of all rounds, by CPU time of one thread, which other work on the machine disturbs least. With
--kernels avx2, MKL, oneDNN and torch are held to AVX2 too.
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
HELD = {"ATEN_CPU_CAPABILITY": "avx2", "MKL_ENABLE_INSTRUCTIONS": "AVX2", "ONEDNN_MAX_CPU_ISA": "AVX2"}
QUESTION = "Mod 10: a=3, b=a+4, c=b+2, d=c*3, e=d+a. Find e."


def shortest(work, times: int) -> float:
    """CPU seconds of the quickest of some calls, after one that does not count."""
    work()
    found = []
    for _ in range(times):
        start = time.process_time()
        work()
        found.append(time.process_time() - start)
    return min(found)


def products() -> dict[str, float]:
    """Dense products of a 20b layer and of pocket's size."""
    from workbench.model.kernels.linear import linear

    generator, found = torch.Generator().manual_seed(0), {}
    for dtype, n_in, n_out, rows in [
        *((torch.float32, 2880, 5120, rows) for rows in (1, 16, 512)),
        *((torch.bfloat16, 2880, 5120, rows) for rows in (1, 16, 512)),
    ]:
        x, w = (torch.randn(n, n_in, generator=generator).to(dtype) for n in (rows, n_out))
        name = f"{str(dtype).removeprefix('torch.')} {n_in} x {n_out}, {rows} rows"
        found[name] = shortest(lambda x=x, w=w: linear(x, w), 5)
    return found


def pocket() -> dict[str, float]:
    """Reading, writing and a trace of the embedded model in fp32."""
    import workbench as wb
    from workbench.model.cache import KVCache

    model = wb.Model("pocket", dtype="float32")
    ids = torch.randint(0, 150, (1, 256), generator=torch.Generator().manual_seed(0))
    found = {"pocket, prefill of 64": shortest(lambda: model.forward(ids[:, :64]), 15)}
    found["pocket, prefill of 256"] = shortest(lambda: model.forward(ids), 9)
    cache = KVCache(model.config)
    model.forward(ids[:, :64], cache=cache)

    def decode() -> None:
        for i in range(16):
            model.forward(ids[:, 64 + i : 65 + i], cache=cache)
        cache.crop(64)

    found["pocket, 16 tokens decoded"] = shortest(decode, 9)
    found["pocket, wb.trace"] = shortest(lambda: wb.trace(QUESTION, model=model, max_tokens=64), 5)
    return found


def cut(folder: str) -> dict[str, float]:
    """Reading and writing of a few layers of the 20b in bf16, experts in MXFP4."""
    import workbench as wb
    from workbench.model.cache import KVCache

    model, nothing = wb.Model(folder), slice(0, 0)
    ids = torch.randint(0, model.config.d_vocab, (1, 512), generator=torch.Generator().manual_seed(0))
    found = {}
    for n in (64, 512):
        found[f"20b cut, prefill of {n}"] = shortest(lambda n=n: model.forward(ids[:, :n], logits_at=nothing), 2)
    cache = KVCache(model.config)
    model.forward(ids, cache=cache, logits_at=nothing)

    def decode() -> None:
        for i in range(4):
            model.forward(ids[:, i : i + 1], cache=cache)
        cache.crop(512)

    found["20b cut, 4 tokens decoded"] = shortest(decode, 6)
    return found


def measured(folder: str | None, kernels: str | None) -> dict[str, float]:
    from workbench.model.kernels import native

    torch.set_num_threads(1)
    native.use(kernels)
    with torch.no_grad():
        return products() | pocket() | (cut(folder) if folder else {})


def turn(tree: Path, args: argparse.Namespace) -> dict[str, float]:
    """One process in that tree: this very file measures, with that tree's workbench."""
    command = [sys.executable, str(Path(__file__).resolve()), "--measure"]
    command += ["--model", args.model] if args.model else []
    command += ["--kernels", args.kernels] if args.kernels else []
    environment = os.environ | {"PYTHONPATH": str(tree)} | (HELD if args.kernels == "avx2" else {})
    done = subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"in {tree}:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser("python -m benchmarks.commits", description="Two commits, by turns.")
    parser.add_argument("before", nargs="?", type=Path, help="a checkout of the commit before, its kernels built")
    parser.add_argument("--model", help="a cut of gpt-oss-20b, see above")
    parser.add_argument("--kernels", help="the level of native kernels (default: the best)")
    parser.add_argument("--rounds", type=int, default=3, help="default: 3")
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        print(json.dumps(measured(args.model, args.kernels)))
        return
    if args.before is None or not (args.before / "workbench").is_dir():
        parser.error("give the folder of a checkout of the commit before")
    rounds = [(turn(args.before, args), turn(HERE, args)) for _ in range(args.rounds)]
    print(f"{'times as fast as before':34}{'ratio':>7}{'before':>12}{'now':>12}")
    for name in rounds[0][1]:
        before, now = (min(one[name] for one in side) for side in zip(*rounds))
        print(f"{name:34}{before / now:7.2f}{1e3 * before:9.2f} ms{1e3 * now:9.2f} ms")


if __name__ == "__main__":
    main()
