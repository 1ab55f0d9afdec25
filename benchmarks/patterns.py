"""How long a pattern takes from queries, keys and sinks: what a reader waits for when a head is clicked.

    python -m benchmarks.patterns                # 7 rounds, fp32 and bf16: about a minute on 2 cores, 1 GB
    python -m benchmarks.patterns --rounds 15 --json out.json

The shape is gpt-oss-20b's: 64 heads of 64 on 8 kv heads, window 128; queries, keys and sinks are random. A trace of
bf16 rounds its scores as the model does. "First" is the first question about a layer of a trace in memory, which turns
and widens its keys; "again" is every later one. A trace on disk reads and verifies its bytes once more before that.

Every round runs every row once, in turn, so that other work on the machine meets them all; a figure is the median over
the rounds, with the fastest beside it. Before that, one head of each kind must equal the softmax of all its scores in
fp64 to 1e-6 (in fp32). OpenBLAS shares a product among all cores and its threads wait spinning: where a neighbour holds
one of the cores, single rounds are ten times slower, and OPENBLAS_NUM_THREADS=1 is the better choice.
"""

import argparse
import json
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path

import ml_dtypes
import numpy as np

from workbench.traces import Manifest, Trace, patterns

CONFIG = {
    "n_layers": 2,
    "d_model": 2880,
    "n_heads": 64,
    "n_kv_heads": 8,
    "d_head": 64,
    "window": 128,
    "layer_types": ["sliding_attention", "full_attention"],
}
LAYERS = {"sliding": 0, "full": 1}
ALL = slice(None)
ONE = [5]


def made(n: int, dtype) -> Trace:
    rng = np.random.default_rng(n)
    arrays = {"sinks": rng.normal(size=(2, 64)).astype(np.float32)}
    for layer in LAYERS.values():
        for name, heads in (("rot_q", 64), ("rot_k", 8)):
            arrays[f"blocks.{layer}.attn.hook_{name}"] = (
                rng.normal(size=(n, heads, 64)).astype(np.float32).astype(dtype)
            )
    model = {"name": "random", "format": "hf-bf16", "weights_digest": "w", "tokenizer_digest": None, "config": CONFIG}
    return Trace(Manifest(model=model, tokens=[0] * n, str_tokens=["a"] * n, prompt_length=n), arrays)


def agree(trace: Trace, layer: int) -> float:
    """The largest difference between one head and its definition in fp64."""
    q, k = (trace[name, layer].astype(np.float64) for name in ("rot_q", "rot_k"))
    s = q[:, ONE[0]] @ k[:, ONE[0] // 8].T / 8
    s[patterns.masked(CONFIG, layer, np.arange(len(q)), len(q))] = -np.inf
    e, e_sink = np.exp(s), np.exp(np.float64(trace["sinks"][layer, ONE[0]]))
    whole = e / (e.sum(-1, keepdims=True) + e_sink)
    return float(np.abs(patterns.rows(trace, layer, ONE)[0][0] - whole).max())


def questions(traces: dict[int, Trace]) -> dict[str, tuple[Trace, int, Callable[[Trace, int], object], float | None]]:
    """Name -> trace, layer, what is asked, and the goal in ms."""
    asked = {
        "4,096 tokens: one head": (4096, lambda t, at: patterns.rows(t, at, ONE), 50),
        "4,096 tokens: one head, view 512": (4096, lambda t, at: patterns.view(t, at, ONE), None),
        "16,384 tokens: last row of 64 heads": (16384, lambda t, at: patterns.rows(t, at, ALL, slice(-1, None)), 5),
        "16,384 tokens: one head, view 512": (16384, lambda t, at: patterns.view(t, at, ONE), 1500),
        "16,384 tokens: one head, view 512 sampled": (
            16384,
            lambda t, at: patterns.view(t, at, ONE, sampled=True),
            None,
        ),
        "16,384 tokens: tile 512 x 512 of one head": (
            16384,
            lambda t, at: patterns.tile(t, at, ONE, slice(-512, None), slice(-512, None)),
            None,
        ),
        "1,024 tokens: 64 thumbnails of 64 x 64": (1024, lambda t, at: patterns.view(t, at, ALL, 64), 1000),
    }
    rows = {}
    for name, (n, ask, goal) in asked.items():
        for kind, layer in LAYERS.items():
            rows[f"{name}, {kind}"] = traces[n], layer, ask, goal
    rows["16,384 tokens: band of one head, sliding"] = traces[16384], 0, lambda t, at: patterns.band(t, at, ONE), None
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    print(
        f"numpy {np.__version__}, {os.cpu_count()} cores, {platform.machine()}, {args.rounds} rounds, "
        f"OPENBLAS_NUM_THREADS={os.environ.get('OPENBLAS_NUM_THREADS', 'unset')}\n"
    )
    found = {}
    for dtype in (np.dtype(np.float32), np.dtype(ml_dtypes.bfloat16)):
        traces = {n: made(n, dtype) for n in (1024, 4096, 16384)}
        if dtype == np.float32:
            worst = max(agree(traces[1024], layer) for layer in LAYERS.values())
            assert worst < 1e-6, worst
            print(f"against the definition in fp64: {worst:.1e}\n")
        rows = questions(traces)
        times: dict[str, list[float]] = {name: [] for name in rows}
        first: dict[str, float] = {}
        for name, (trace, layer, ask, _) in rows.items():
            patterns._layers.clear()
            first[name] = _ms(ask, trace, layer)
        patterns.CACHE_BYTES = 4 << 30  # all of them at once: what is measured is one layer that stays
        for _ in range(args.rounds):
            for name, (trace, layer, ask, _) in rows.items():
                patterns._queries_and_keys(trace, layer)
                times[name].append(_ms(ask, trace, layer))
        print(f"{dtype.name:<55}{'first':>9}{'again':>9}{'fastest':>9}{'goal':>9}   ms")
        for name, (_, _, _, goal) in rows.items():
            again, best = float(np.median(times[name])), min(times[name])
            found[f"{dtype.name}, {name}"] = {"first": first[name], "again": again, "fastest": best, "goal": goal}
            met = "" if goal is None else f"{goal:>9}" + ("" if again <= goal else "   missed")
            print(f"{name:<55}{first[name]:>9.1f}{again:>9.1f}{best:>9.1f}{met}")
        print()
        patterns._layers.clear()
    if args.json:
        args.json.write_text(json.dumps(found, indent=1))


def _ms(ask: Callable[[Trace, int], object], trace: Trace, layer: int) -> float:
    start = time.perf_counter()
    ask(trace, layer)
    return 1e3 * (time.perf_counter() - start)


if __name__ == "__main__":
    main()
