"""Time to recompute a pattern from queries, keys and sinks: the wait of a user who clicks on a head.

    python -m benchmarks.patterns                # 7 rounds, fp32 and bf16: about a minute on 2 cores, 1 GB
    python -m benchmarks.patterns --rounds 15 --json out.json

The shape is gpt-oss-20b's: 64 heads of 64 on 8 kv heads, window 128; queries, keys and sinks are random. A trace of
bf16 rounds its scores as the model does. "First" is the first request for a layer of a trace in memory, which prepares
its keys (transposes and widens them); "repeated" is every later one. A trace on disk also reads and verifies its bytes
once before that.

Every round runs every row once, in turn, so that other work on the machine affects all rows. A figure is the median
over the rounds, with the fastest beside it. Before that, one head of each kind must equal the softmax of all its scores
in fp64 to 1e-6 (in fp32). OpenBLAS shares a product among all cores, and its threads spin while they wait: where a
neighbor occupies one of the cores, single rounds are ten times slower, and OPENBLAS_NUM_THREADS=1 is the better choice.
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

from workbench.traces import Manifest, Stretch, Trace, patterns

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


def random_trace(n: int, dtype) -> Trace:
    rng = np.random.default_rng(n)
    arrays = {"sinks": rng.normal(size=(2, 64)).astype(np.float32)}
    for layer in LAYERS.values():
        for name, heads in (("rot_q", 64), ("rot_k", 8)):
            arrays[f"blocks.{layer}.attn.hook_{name}"] = (
                rng.normal(size=(n, heads, 64)).astype(np.float32).astype(dtype)
            )
    model = {"name": "random", "format": "hf-bf16", "weights_digest": "w", "tokenizer_digest": None, "config": CONFIG}
    return Trace(Manifest(model=model, tokens=[0] * n, str_tokens=["a"] * n, written=[Stretch(0, n, "prompt")]), arrays)


def max_error(trace: Trace, layer: int) -> float:
    """The largest difference between one head and its definition in fp64."""
    q, k = (trace[name, layer].astype(np.float64) for name in ("rot_q", "rot_k"))
    scores = q[:, ONE[0]] @ k[:, ONE[0] // 8].T / 8
    scores[patterns.masked(CONFIG, layer, np.arange(len(q)), len(q))] = -np.inf
    exp_scores, exp_sink = np.exp(scores), np.exp(np.float64(trace["sinks"][layer, ONE[0]]))
    expected = exp_scores / (exp_scores.sum(-1, keepdims=True) + exp_sink)
    return float(np.abs(patterns.rows(trace, layer, ONE)[0][0] - expected).max())


def requests(traces: dict[int, Trace]) -> dict[str, tuple[Trace, int, Callable[[Trace, int], object], float | None]]:
    """Name -> trace, layer, request, and the goal in ms."""
    kinds = {
        "4,096 tokens: one head": (4096, lambda t, layer: patterns.rows(t, layer, ONE), 50),
        "4,096 tokens: one head, view 512": (4096, lambda t, layer: patterns.view(t, layer, ONE), None),
        "16,384 tokens: last row of 64 heads": (
            16384,
            lambda t, layer: patterns.rows(t, layer, ALL, slice(-1, None)),
            5,
        ),
        "16,384 tokens: one head, view 512": (16384, lambda t, layer: patterns.view(t, layer, ONE), 1500),
        "16,384 tokens: one head, view 512 sampled": (
            16384,
            lambda t, layer: patterns.view(t, layer, ONE, sampled=True),
            None,
        ),
        "16,384 tokens: tile 512 x 512 of one head": (
            16384,
            lambda t, layer: patterns.tile(t, layer, ONE, slice(-512, None), slice(-512, None)),
            None,
        ),
        "1,024 tokens: 64 thumbnails of 64 x 64": (1024, lambda t, layer: patterns.view(t, layer, ALL, 64), 1000),
    }
    rows = {}
    for name, (n, request, goal) in kinds.items():
        for kind, layer in LAYERS.items():
            rows[f"{name}, {kind}"] = traces[n], layer, request, goal
    rows["16,384 tokens: band of one head, sliding"] = (
        traces[16384],
        0,
        lambda t, layer: patterns.band(t, layer, ONE),
        None,
    )
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
    results = {}
    for dtype in (np.dtype(np.float32), np.dtype(ml_dtypes.bfloat16)):
        traces = {n: random_trace(n, dtype) for n in (1024, 4096, 16384)}
        if dtype == np.float32:
            error = max(max_error(traces[1024], layer) for layer in LAYERS.values())
            assert error < 1e-6, error
            print(f"against the definition in fp64: {error:.1e}\n")
        rows = requests(traces)
        times: dict[str, list[float]] = {name: [] for name in rows}
        first: dict[str, float] = {}
        for name, (trace, layer, request, _) in rows.items():
            patterns._layers.clear()
            first[name] = _ms(request, trace, layer)
        patterns.CACHE_BYTES = 4 << 30  # room for all of them, because a layer that stays in the cache is measured
        for _ in range(args.rounds):
            for name, (trace, layer, request, _) in rows.items():
                patterns._queries_and_keys(trace, layer)
                times[name].append(_ms(request, trace, layer))
        print(f"{dtype.name:<55}{'first':>9}{'repeated':>9}{'fastest':>9}{'goal':>9}   ms")
        for name, (_, _, _, goal) in rows.items():
            repeated, fastest = float(np.median(times[name])), min(times[name])
            results[f"{dtype.name}, {name}"] = {
                "first": first[name],
                "repeated": repeated,
                "fastest": fastest,
                "goal": goal,
            }
            verdict = "" if goal is None else f"{goal:>9}" + ("" if repeated <= goal else "   missed")
            print(f"{name:<55}{first[name]:>9.1f}{repeated:>9.1f}{fastest:>9.1f}{verdict}")
        print()
        patterns._layers.clear()
    if args.json:
        args.json.write_text(json.dumps(results, indent=1))


def _ms(request: Callable[[Trace, int], object], trace: Trace, layer: int) -> float:
    start = time.perf_counter()
    request(trace, layer)
    return 1e3 * (time.perf_counter() - start)


if __name__ == "__main__":
    main()
