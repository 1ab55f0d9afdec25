"""Tokens a second of several texts that are generated together: workbench, llama.cpp and transformers.

    python -m benchmarks.batching                                                   # pocket, and transformers
    python -m benchmarks.batching --model FOLDER --gguf FILE.gguf --llama PYTHON    # a cut of the 20b, and llama.cpp
    python -m benchmarks.batching … --rows 1 16 --rounds 5 --json out.json

FOLDER is made by `workbench synth --like 20b --layers 6`, FILE from it by benchmarks.gguf_of, so both hold the same
weights; PYTHON is an interpreter that has llama-cpp-python (docs/benchmarks.md).

Every text has a context of its own and gets the same number of tokens, each the most likely one. workbench generates as
`generate_many` does, with its live recording of routes (and predictions, where it has them) and without the replay;
llama.cpp's parallel decoding gives one batch with a token of each sequence to `llama_decode`, and takes the largest
logit; transformers runs `generate` on a batch without padding, for its rate between two numbers of tokens. Only passes
in which all texts decode are counted.

A round runs every candidate with every number of rows once. A figure is the median over the rounds; a ratio is the
median of the ratios of one round, with the smallest and the largest. Speeds of different runs cannot be compared.
"""

import argparse
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.child import Child
from benchmarks.full_size import log, tokens_of
from benchmarks.workbench_worker import WorkbenchWorker

Rate = Callable[[list[list[int]]], float]  # contexts -> tokens a second


def contexts(n_rows: int, length: int, d_vocab: int) -> list[list[int]]:
    return [tokens_of(length, d_vocab, seed) for seed in range(n_rows)]


def rate_of(child: Callable[..., dict], n_tokens: int) -> Rate:
    """Of a worker that has the request "batch"."""

    def rate(rows: list[list[int]]) -> float:
        seconds = child(do="batch", rows=rows, n=n_tokens)["seconds"]
        return len(rows) / float(np.median(np.array(seconds)[:, 0]))

    return rate


def transformers_rate(folder: str, n_tokens: int) -> Rate:
    """Of transformers in this process, in fp32."""
    import transformers

    model: Any = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)

    def seconds(rows: list[list[int]], n: int) -> float:
        started = time.perf_counter()
        model.generate(torch.tensor(rows), max_new_tokens=n, min_new_tokens=n, do_sample=False)
        return time.perf_counter() - started

    def rate(rows: list[list[int]]) -> float:
        return len(rows) * n_tokens / (seconds(rows, n_tokens + 1) - seconds(rows, 1))

    return rate


def measure(candidates: dict[str, Rate], sizes: Sequence[int], length: int, d_vocab: int, rounds: int) -> dict:
    """Candidate -> number of rows -> tokens a second in each round, after a warm-up round."""
    rates: dict[str, dict[int, list[float]]] = {name: {size: [] for size in sizes} for name in candidates}
    for i in range(-1, rounds):
        for size in sizes:
            rows = contexts(size, length, d_vocab)
            for name, rate in candidates.items():
                measured = rate(rows)
                if i >= 0:
                    rates[name][size].append(measured)
        log(f"round {i + 1} of {rounds} done")
    return rates


def table(rates: dict, sizes: Sequence[int]) -> str:
    """Tokens a second by number of rows, the ratio to workbench's single row, and to each other candidate."""
    mine, others = rates["workbench"], [name for name in rates if name != "workbench"]
    lines = [
        f"{'rows':>5}{'workbench':>11}{'/ one row':>24}" + "".join(f"{name:>14}{'ours / its':>24}" for name in others)
    ]
    for size in sizes:
        line = f"{size:5}{np.median(mine[size]):11.1f}{ratio(mine[size], mine[sizes[0]]):>24}"
        for name in others:
            line += f"{np.median(rates[name][size]):14.1f}{ratio(mine[size], rates[name][size]):>24}"
        lines.append(line)
    return "\n".join(lines)


def ratio(a: Sequence[float], b: Sequence[float]) -> str:
    """The median of the ratios of one round, with the smallest and the largest."""
    each = np.array(a) / np.array(b)
    return f"{np.median(each):.2f} ({each.min():.2f}-{each.max():.2f})"


def main() -> None:
    parser = argparse.ArgumentParser("python -m benchmarks.batching", description="Several texts at a time.")
    parser.add_argument("--model", default="data/pocket", help="folder of a gpt-oss (default: pocket)")
    parser.add_argument("--gguf", help="the same weights for llama.cpp")
    parser.add_argument("--llama", help="a python that has llama-cpp-python")
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 4, 16, 64], help="default: 1 4 16 64")
    parser.add_argument("--context", type=int, default=64, help="tokens before (default: 64)")
    parser.add_argument("--decode", type=int, default=12, help="tokens of each text (default: 12)")
    parser.add_argument("--rounds", type=int, default=3, help="default: 3")
    parser.add_argument("--threads", type=int, default=2, help="default: 2")
    parser.add_argument("--json", type=Path, help="file for every single measurement")
    args = parser.parse_args()
    worker = WorkbenchWorker(args.model, args.threads, "fast")
    jobs = {"batch": worker.batch}
    candidates = {"workbench": rate_of(lambda do, **request: jobs[do](**request), args.decode)}
    if args.gguf:
        script = str(Path(__file__).with_name("peers_full.py"))
        n_ctx = max(args.rows) * (args.context + args.decode + 64)
        options = ["--threads", str(args.threads), "--n-ctx", str(n_ctx), "--sequences", str(max(args.rows))]
        llama = Child(args.llama, "-I", script, args.gguf, *options)
        candidates["llama.cpp"] = rate_of(llama, args.decode)
    elif args.model == "data/pocket":
        candidates["transformers"] = transformers_rate(args.model, args.decode)
    rates = measure(candidates, args.rows, args.context, worker.config.d_vocab, args.rounds)
    print(f"{worker.about()['text']}\n{args.threads} threads, {args.rounds} rounds, {args.context} tokens before")
    print(table(rates, args.rows))
    if args.json:
        args.json.write_text(json.dumps({"about": worker.about()["text"], "rates": rates}, indent=1))


if __name__ == "__main__":
    main()
