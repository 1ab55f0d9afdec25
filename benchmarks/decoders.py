"""A decoded token with every kind of kernel that runs here: C at each of its levels, numba, plain torch.

    python -m benchmarks.decoders --model FOLDER                 # made by `wb.synth`; 6 layers are enough
    python -m benchmarks.decoders --model FOLDER --kinds avx2 numba --rounds 15 --threads 1

All kinds run in one process, over the same mapped weights and one KV cache, which is cropped after every turn. In each
round every kind decodes the same few tokens one by one, in rotated order, after a warm-up round (numba compiles in it,
and pages come into memory). A figure is the median over the rounds of the ratio to the first kind in the same round,
with its quartiles; below 1 is faster. Wall clock and CPU time of all threads.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch

from benchmarks.full_size import log, ratio, tokens_of
from benchmarks.workbench_worker import WorkbenchWorker
from workbench.model.kernels import native


def measure(
    worker: WorkbenchWorker, kinds: list[str], context: list[int], tokens: list[int], rounds: int
) -> dict[str, np.ndarray]:
    """For each kind the rounds of [wall, CPU] seconds of the median token."""
    measured: dict[str, list] = {kind: [] for kind in kinds}
    native.use(kinds[0])
    worker.prefill(context)
    assert worker.cache is not None
    for i in range(-1, rounds):
        turn = max(i, 0) % len(kinds)
        for kind in (*kinds[turn:], *kinds[:turn]):
            native.use(kind)
            seconds = worker.decode(tokens)["seconds"]
            worker.cache.crop(len(context))
            if i >= 0:
                measured[kind].append(np.median(seconds, 0))
        log(f"round {i + 1} of {rounds} done")
    native.use(None)
    return {kind: np.array(rows) for kind, rows in measured.items()}


def main() -> None:
    kinds = native.available()
    parser = argparse.ArgumentParser("python -m benchmarks.decoders", description="C, numba and torch, by the token.")
    parser.add_argument("--model", required=True, help="folder of a gpt-oss in MXFP4")
    parser.add_argument("--kinds", nargs="+", choices=kinds, default=kinds, help="default: all that run here")
    parser.add_argument("--context", type=int, default=64, help="tokens before (default: 64)")
    parser.add_argument("--decode", type=int, default=4, help="tokens a turn (default: 4)")
    parser.add_argument("--rounds", type=int, default=9, help="default: 9")
    parser.add_argument("--threads", type=int, default=2, help="default: 2")
    parser.add_argument("--json", type=Path, help="file for every single measurement")
    args = parser.parse_args()
    worker = WorkbenchWorker(args.model, args.threads, "fast")
    d_vocab = worker.config.d_vocab
    context, tokens = tokens_of(args.context, d_vocab, 0), tokens_of(args.decode, d_vocab, 1)
    measured = measure(worker, args.kinds, context, tokens, args.rounds)
    print(f"{worker.about()['text']}\n{args.threads} threads, {args.rounds} rounds, {args.context} tokens before")
    print(f"{'':16}{'tok/s':>8}{f'time / {args.kinds[0]}: wall':>26}{'CPU':>7}")
    for kind in args.kinds:
        rows = measured[kind]
        print(f"{kind:16}{1 / np.median(rows[:, 0]):8.2f}{ratio(rows, measured[args.kinds[0]]):>33}")
    if args.json:
        setting = {"about": worker.about()["text"], "threads": torch.get_num_threads()}
        args.json.write_text(json.dumps(setting | {"seconds": {k: v.tolist() for k, v in measured.items()}}, indent=1))


if __name__ == "__main__":
    main()
