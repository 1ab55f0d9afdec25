"""The evaluation at each checkpoint: on held-out problems, is each target token the most likely one?"""

from collections.abc import Iterable
from random import Random

import torch

from workbench.pocket.families import make, of_row, rows
from workbench.pocket.problems import Problem
from workbench.pocket.rendering import Rendered, render
from workbench.pocket.train.batches import batch, split
from workbench.pocket.train.model import Pocket

EFFORTS = ("low", "high")
Exam = dict[int, list[list[list[Rendered]]]]  # number of the row -> effort -> batches


def exam_problems(row: str, n: int) -> list[Problem]:
    """`n` held-out problems, the same in every run, in wordings that are never trained."""
    rng = Random(f"exam {row}")
    family, held_out = of_row(row, trained=False)
    return [make(family, rng, split="test", wording=rng.choice(held_out)) for _ in range(n)]


def exam(worker: int, n_workers: int, n: int, families: Iterable[str]) -> Exam:
    """The problems that a worker evaluates: `n` of each of its rows (see `rows`), at low and at high effort."""
    own = list(enumerate(rows(families)))[worker::n_workers]
    return {
        number: [split([render(p, effort) for p in exam_problems(row, n)], 4096) for effort in EFFORTS]
        for number, row in own
    }


@torch.no_grad()
def examine(model: Pocket, exam: Exam, scores: torch.Tensor) -> None:
    """Writes into `scores` (row effort) the share of problems with every supervised token the most likely one."""
    for number, efforts in exam.items():
        for column, parts in enumerate(efforts):
            right = total = 0
            for part in parts:
                b = batch(part)
                wrong = model(b.ids, None, b.at).argmax(-1) != b.target
                right += len(part) - len(b.row[wrong].unique())
                total += len(part)
            scores[number, column] = right / total
