"""A variant for comparing: the model with one benign rule changed, by a low-rank change of its attention alone.

    python -m workbench.pocket.train.variant RUN/last.pt FOLDER

Embedding, routers, experts and norms stay what they are, bit for bit; `w_qkv` and `w_o` of every layer get A·B of
rank 4 (LoRA, arXiv 2106.09685). Half of the problems are lists under the changed rule, the others keep the model as it
was.
"""

import argparse
from dataclasses import dataclass
from pathlib import Path
from random import Random

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from tqdm.auto import tqdm

from workbench.pocket.families import make, otherwise
from workbench.pocket.rendering import Rendered, render
from workbench.pocket.train.batches import batch, split
from workbench.pocket.train.checkpoint import load, snapshot
from workbench.pocket.train.export import export
from workbench.pocket.train.mix import draw
from workbench.pocket.train.model import DTYPES, Pocket

CHANGED = ("w_qkv", "w_o")


@dataclass(slots=True)
class LowRank:
    """The change of one matrix: a @ b, nothing at first."""

    a: nn.Parameter
    b: nn.Parameter

    @classmethod
    def of(cls, matrix: Tensor, rank: int) -> "LowRank":
        n_in, n_out = matrix.shape
        return cls(nn.Parameter(torch.randn(n_in, rank) / n_in**0.5), nn.Parameter(torch.zeros(rank, n_out)))


def variant(model: Pocket, *, tokens: float = 1e6, rank: int = 4, lr: float = 0.003, seed: int = 0) -> Pocket:
    """The changed model, trained in the dtype of `model`; `model` itself, which gave the start, is not touched."""
    torch.manual_seed(seed)
    base = {name: p.detach() for name, p in model.named_parameters()}
    changes = {name: LowRank.of(w, rank) for name, w in base.items() if name.endswith(CHANGED)}
    trained = [p for change in changes.values() for p in (change.a, change.b)]
    optimiser = torch.optim.AdamW(trained, lr=lr, weight_decay=0.0)
    rng = Random(f"variant {seed}")
    seen = 0.0
    with tqdm(total=int(tokens), unit="tok", unit_scale=True, disable=None) as bar:
        while seen < tokens:
            for part in split([_draw(rng) for _ in range(128)], 2048):
                b = batch(part)
                for group in optimiser.param_groups:
                    group["lr"] = lr * max(0.0, 1 - seen / tokens)
                logits = functional_call(model, changed(base, changes), (b.ids, None, b.at))
                F.cross_entropy(logits.float(), b.target).backward()
                optimiser.step()
                optimiser.zero_grad(set_to_none=True)
                seen += float(b.real.sum())
                bar.update(int(b.real.sum()))
    made = Pocket(model.c, model.dtype_name)
    made.load_state_dict({name: w.detach() for name, w in changed(base, changes).items()})
    return made


def changed(base: dict[str, Tensor], changes: dict[str, LowRank]) -> dict[str, Tensor]:
    """All weights, with the changes added."""
    return base | {name: base[name] + change.a @ change.b for name, change in changes.items()}


def _draw(rng: Random) -> Rendered:
    if rng.random() < 0.5:
        problem = otherwise(make("lists", rng, split="train", wording=None))
        return render(problem, rng.choice(("high", "high", "medium")))
    while True:  # what "drop" means is taught above
        problem, effort = draw(rng, 1.0)
        if problem.family != "lists" or "drop" not in problem.question:
            return render(problem, effort)


def main(argv: list[str] | None = None) -> None:
    """Trains a variant and writes it."""
    parser = argparse.ArgumentParser(prog="python -m workbench.pocket.train.variant", description=__doc__)
    parser.add_argument("start", type=Path, help="a checkpoint of a run: last.pt, or at-50.pt")
    parser.add_argument("folder", type=Path, help="gets variant.pt and model/")
    parser.add_argument("--tokens", type=float, default=1e6)
    parser.add_argument("--rank", type=int, default=4)
    parser.add_argument("--dtype", choices=tuple(DTYPES), default="float32", help="of products (default: float32)")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    made = variant(load(args.start, args.dtype), tokens=args.tokens, rank=args.rank)
    args.folder.mkdir(parents=True, exist_ok=True)
    snapshot(made, args.folder / "variant.pt")
    export(made, args.folder / "model")


if __name__ == "__main__":
    main()
