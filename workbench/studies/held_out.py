"""What the studies share: held-out problems with their true graphs, and the traces of reading them; made once a model.

The texts are read as they should be solved, not written by the model: a figure does not depend on what it gets right.
Seeds are fixed and pocket runs on one thread: the same versions on one kind of processor give the same bits. Another
kind adds up in another order; what is drawn is rounded to a hundred-thousandth of the largest, which hides nearly all.
"""

from functools import cache
from random import Random
from typing import Any, NamedTuple

import numpy as np

import workbench as wb
from workbench.analysis.statistics import Interval
from workbench.conversation.tokenizer import Tokenizer
from workbench.pocket.families import CHAINS, make
from workbench.pocket.problems import Problem
from workbench.pocket.rendering import render


class Read(NamedTuple):
    """A held-out problem, as the model reads its solution."""

    problem: Problem
    parts: list[slice]  # its steps, as positions
    trace: wb.Trace


@cache
def pocket() -> wb.Model:
    """The embedded model, loaded once."""
    return wb.Model("pocket")


def tokenizer_of(model: wb.Model) -> Tokenizer:
    """The model's tokenizer; the problems are texts, so it needs one."""
    assert model.tokenizer is not None
    return model.tokenizer


@cache
def read(
    model: wb.Model, family: str, n: int, length: int, record: str = "attention", seed: str = "figures"
) -> list[Read]:
    """The first `n` held-out problems of a family, of that length, as the model reads them; another seed, others."""
    rng = Random(f"{seed} {family}")
    found = []
    for _ in range(n):
        problem = make(family, rng, length=length, split="test", wording=None)
        rendered = render(problem, "high")
        found.append(Read(problem, list(rendered.steps), model.trace(list(rendered.ids), record=record)))
    return found


def texts(model: wb.Model, n: int, length: int, seed: str, record: str = "attention") -> list[wb.Trace]:
    """The traces of `n` such problems of each family that needs a chain of thought."""
    return [one.trace for family in CHAINS for one in read(model, family, n, length, record, seed)]


def bounds(sure: Any) -> list[np.ndarray]:
    """The values, the lower and the upper bounds of intervals in lists, or in lists of lists."""

    def part(of: Any, name: str) -> Any:
        return getattr(of, name) if isinstance(of, Interval) else [part(each, name) for each in of]

    return [np.array(part(sure, name)) for name in ("value", "low", "high")]
