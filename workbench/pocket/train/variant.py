"""A variant for model comparisons: one benign rule is changed by a low-rank update of the attention weights.

    python -m workbench.pocket.train.variant RUN/last.pt FOLDER

Embedding, routers, experts and norms are unchanged, bit for bit; A·B of rank 4 is added to `w_qkv` and `w_o` of every
layer (LoRA, arXiv 2106.09685). Half of the training problems are lists under the changed rule; the others preserve the
model's other behavior.
"""

import argparse
from dataclasses import dataclass
from pathlib import Path
from random import Random

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from workbench.pocket.families import make, with_changed_rule
from workbench.pocket.rendering import Rendered, render
from workbench.pocket.train.batches import batch, split
from workbench.pocket.train.checkpoint import load, snapshot
from workbench.pocket.train.export import export
from workbench.pocket.train.mix import draw
from workbench.pocket.train.model import DTYPES, Pocket
from workbench.progress import progress_bar

CHANGED = ("w_qkv", "w_o")


@dataclass(slots=True)
class LowRank:
    """The update of one matrix: a @ b, initially zero."""

    a: nn.Parameter
    b: nn.Parameter

    @classmethod
    def of(cls, matrix: Tensor, rank: int) -> "LowRank":
        n_in, n_out = matrix.shape
        return cls(nn.Parameter(torch.randn(n_in, rank) / n_in**0.5), nn.Parameter(torch.zeros(rank, n_out)))


def variant(model: Pocket, *, tokens: float = 1e6, rank: int = 4, lr: float = 0.003, seed: int = 0) -> Pocket:
    """The changed model, trained from `model` in its dtype; `model` itself is not modified.

    Args:
        model: The model to start from.
        tokens: Training tokens.
        rank: The rank of the updates.
        lr: The initial learning rate of AdamW; it falls linearly to 0.
        seed: The seed of the problems and the updates.
    """
    torch.manual_seed(seed)
    base = {name: p.detach() for name, p in model.named_parameters()}
    changes = {name: LowRank.of(w, rank) for name, w in base.items() if name.endswith(CHANGED)}
    trained = [p for change in changes.values() for p in (change.a, change.b)]
    optimizer = torch.optim.AdamW(trained, lr=lr, weight_decay=0.0)
    rng = Random(f"variant {seed}")
    done = 0.0
    with progress_bar(total=int(tokens), unit="tok", unit_scale=True, disable=None) as bar:
        while done < tokens:
            for part in split([_draw(rng) for _ in range(128)], 2048):
                b = batch(part)
                for group in optimizer.param_groups:
                    group["lr"] = lr * max(0.0, 1 - done / tokens)
                logits = functional_call(model, changed(base, changes), (b.ids, None, b.at))
                F.cross_entropy(logits.float(), b.target).backward()
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
                done += float(b.real.sum())
                bar.update(int(b.real.sum()))
    result = Pocket(model.c, model.dtype_name)
    result.load_state_dict({name: w.detach() for name, w in changed(base, changes).items()})
    return result


def changed(base: dict[str, Tensor], changes: dict[str, LowRank]) -> dict[str, Tensor]:
    """All weights, with the low-rank updates added."""
    return base | {name: base[name] + change.a @ change.b for name, change in changes.items()}


def _draw(rng: Random) -> Rendered:
    if rng.random() < 0.5:
        problem = with_changed_rule(make("lists", rng, split="train", wording=None))
        return render(problem, rng.choice(("high", "high", "medium")))
    while True:  # problems with "drop" under the old rule would contradict the changed one
        problem, effort = draw(rng, 1.0)
        if problem.family != "lists" or "drop" not in problem.question:
            return render(problem, effort)


def main(argv: list[str] | None = None) -> None:
    """Trains and exports a variant."""
    parser = argparse.ArgumentParser(prog="python -m workbench.pocket.train.variant", description=__doc__)
    parser.add_argument("start", type=Path, help="checkpoint of a run: last.pt, or at-50.pt")
    parser.add_argument("folder", type=Path, help="output folder, for variant.pt and model/")
    parser.add_argument("--tokens", type=float, default=1e6)
    parser.add_argument("--rank", type=int, default=4)
    parser.add_argument(
        "--dtype", choices=tuple(DTYPES), default="float32", help="dtype of matrix products (default: float32)"
    )
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    model = variant(load(args.start, args.dtype), tokens=args.tokens, rank=args.rank)
    args.folder.mkdir(parents=True, exist_ok=True)
    snapshot(model, args.folder / "variant.pt")
    export(model, args.folder / "model")


if __name__ == "__main__":
    main()
