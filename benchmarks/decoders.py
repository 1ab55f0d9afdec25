"""A decoded token by every kind of kernel that runs here: C at each of its levels, numba, plain torch.

    python -m benchmarks.decoders --model FOLDER                 # what `wb.synth` made; 6 layers are enough
    python -m benchmarks.decoders --model FOLDER --kinds avx2 numba --rounds 15 --threads 1

All in one process, over the same mapped weights and one cache of keys and values, cut back after every turn. In each
round every kind reads the same few tokens one by one, in turned order, after a round that does not count (numba
compiles in it, and pages come into memory). A figure is the median over the rounds of the ratio to the first kind in
the same round, with its quartiles; below 1 is faster. Wall clock and CPU time of all threads.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch

from benchmarks.full_size import Ours, ratio, say, tokens_of
from workbench.model.kernels import native


def measure(ours: Ours, kinds: list[str], context: list[int], tokens: list[int], rounds: int) -> dict[str, np.ndarray]:
    """kind -> rounds of [wall, CPU] seconds of the median token."""
    found: dict[str, list] = {kind: [] for kind in kinds}
    native.use(kinds[0])
    ours.prefill(context)
    assert ours.cache is not None
    for i in range(-1, rounds):
        turn = max(i, 0) % len(kinds)
        for kind in (*kinds[turn:], *kinds[:turn]):
            native.use(kind)
            seconds = ours.decode(tokens)["seconds"]
            ours.cache.crop(len(context))
            if i >= 0:
                found[kind].append(np.median(seconds, 0))
        say(f"round {i + 1} of {rounds} done")
    native.use(None)
    return {kind: np.array(rows) for kind, rows in found.items()}


def main() -> None:
    kinds = native.available()
    parser = argparse.ArgumentParser("python -m benchmarks.decoders", description="C, numba and torch, by the token.")
    parser.add_argument("--model", required=True, help="folder of a gpt-oss in MXFP4")
    parser.add_argument("--kinds", nargs="+", choices=kinds, default=kinds, help="default: all that run here")
    parser.add_argument("--context", type=int, default=64, help="tokens before (default: 64)")
    parser.add_argument("--decode", type=int, default=4, help="tokens a turn (default: 4)")
    parser.add_argument("--rounds", type=int, default=9, help="default: 9")
    parser.add_argument("--threads", type=int, default=2, help="default: 2")
    parser.add_argument("--json", type=Path, help="write every single measurement there")
    args = parser.parse_args()
    ours = Ours(args.model, args.threads, "fast")
    vocabulary = ours.config.d_vocab
    context, tokens = tokens_of(args.context, vocabulary, 0), tokens_of(args.decode, vocabulary, 1)
    found = measure(ours, args.kinds, context, tokens, args.rounds)
    print(f"{ours.about()['text']}\n{args.threads} threads, {args.rounds} rounds, {args.context} tokens before")
    print(f"{'':16}{'tok/s':>8}{f'time / {args.kinds[0]}: wall':>26}{'CPU':>7}")
    for kind in args.kinds:
        rows = found[kind]
        print(f"{kind:16}{1 / np.median(rows[:, 0]):8.2f}{ratio(rows, found[args.kinds[0]]):>33}")
    if args.json:
        said = {"about": ours.about()["text"], "threads": torch.get_num_threads()}
        args.json.write_text(json.dumps(said | {"seconds": {k: v.tolist() for k, v in found.items()}}, indent=1))


if __name__ == "__main__":
    main()
