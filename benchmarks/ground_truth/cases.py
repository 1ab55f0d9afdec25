"""The problems of a row of the benchmark, and what several methods compute from one problem.

A row is a family with spoken or terse wordings. The text of a case is the question with its correct solution, so the
figures do not depend on which problems the model solves.
"""

from dataclasses import dataclass
from functools import cached_property
from random import Random

import numpy as np
import xarray as xr

import workbench as wb
from benchmarks.ground_truth.values import with_another_value
from workbench.analysis.heads import step_attention
from workbench.experiments.cached_run import CachedRun
from workbench.experiments.suppression import suppression
from workbench.pocket.families import FAMILIES, make, of_row
from workbench.pocket.problems import Problem
from workbench.pocket.rendering import render

Matrix = np.ndarray  # scores (later step, earlier step)
SHORTEST = 4  # the smallest length: below, nearness is not at chance in the balanced families
DEVELOPMENT, CONFIRM = "development", "confirm"  # the seeds of the scored problems


@dataclass(frozen=True, eq=False)
class Case:
    """One problem with its solution as a text of the model, and runs that are shared by methods."""

    model: wb.Model
    problem: Problem

    @cached_property
    def _rendered(self):
        return render(self.problem, "high")

    @property
    def token_ids(self) -> list[int]:
        return list(self._rendered.ids)

    @property
    def segments(self) -> list[slice]:
        """The tokens of each step."""
        return list(self._rendered.steps)

    @cached_property
    def trace(self) -> wb.Trace:
        return self.model.trace(self.token_ids, record="attention")

    @cached_property
    def run(self) -> CachedRun:
        return CachedRun(self.model, self.token_ids)

    @cached_property
    def attention(self) -> xr.DataArray:
        """The attention between steps (layer head step key_step)."""
        return step_attention(self.trace, self.segments)

    @cached_property
    def changed_runs(self) -> list[CachedRun]:
        """For each step, a run of the text in which this step has another value."""
        steps = zip(self.segments, self.problem.steps)
        return [CachedRun(self.model, with_another_value(self.token_ids, *step)) for step in steps]

    @cached_property
    def hidden(self) -> xr.Dataset:
        """The effects of hiding each step from all later tokens."""
        return suppression(self.model, self.trace, self.segments)


def lengths(row: str) -> list[int]:
    """The lengths of the problems of a row: the trained ones of four steps and more.

    >>> lengths("dag terse"), lengths("lists")
    ([4, 5, 6, 7, 8], [4, 5, 6, 7])
    """
    longest = FAMILIES[of_row(row, trained=False)[0]].longest
    return list(range(min(SHORTEST, longest), longest + 1))


def scored_problems(row: str, n: int, seed: str) -> list[Problem]:
    """`n` problems of the test split in held-out wordings, with all lengths about equally often."""
    return _problems(row, n, f"ground truth {seed} {row}", split="test")


def fitting_problems(row: str, n: int) -> list[Problem]:
    """`n` problems of the training split, for rules and probes that are fitted; none of them is scored."""
    return _problems(row, n, f"ground truth fit {row}", split="train")


def _problems(row: str, n: int, seed: str, *, split: str) -> list[Problem]:
    rng = Random(seed)
    family, wordings = of_row(row, trained=split == "train")
    sizes = lengths(row)
    return [
        make(family, rng, length=sizes[i % len(sizes)], split=split, wording=rng.choice(wordings)) for i in range(n)
    ]


def pair_indices(problem: Problem) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The scored pairs of a problem: the later steps, the earlier steps, and whether the later one uses the earlier."""
    pairs = np.array(problem.pairs, dtype=int).reshape(-1, 3)
    return pairs[:, 0], pairs[:, 1], pairs[:, 2].astype(bool)
