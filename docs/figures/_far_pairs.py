"""Pairs of steps that are not neighbours, used and not, and how each method tells them apart by distance."""

from functools import cache, partial
from random import Random
from typing import NamedTuple

import numpy as np
from _methods import METHODS
from _runs import Read, pocket

import workbench as wb
from workbench.analysis.statistics import Interval
from workbench.pocket.families import make, slips
from workbench.pocket.problems import Problem
from workbench.pocket.rendering import render

SETS, LENGTH = {"variables": 24, "lists": 16}, 5  # family -> how many problems


class Measured(NamedTuple):
    auroc: dict[tuple[str, str], Interval]  # method, family
    medians: dict[tuple[str, str], tuple[float, float]]  # of true pairs, of the others that are as far apart
    pairs: dict[str, tuple[int, int]]  # family -> how many of both
    traces: list[wb.Trace]


@cache
def read(family: str, n: int, seed: str = "fresh") -> list[Read]:
    """Held-out problems with such pairs, as the model reads them: a second operand, or a step that is put right."""
    rng, found = Random(f"{seed} far {family}"), []
    while len(found) < n:
        problem = make(family, rng, length=LENGTH, split="test", wording=None)
        if family != "variables":  # only what puts a step right reaches further back, to what it was made of
            problem = problem.slipped(rng.choice([slip for slip in slips(problem, rng) if slip.number > 1]))
        if any(true(problem)):
            rendered = render(problem, "high")
            trace = pocket().trace(list(rendered.ids), record="attention")
            found.append(Read(problem, [rendered.steps[i] for i in worked(problem)], trace))
    return found


def worked(problem: Problem) -> list[int]:
    """The steps that work something out: the last ones, one after another."""
    return [i for i, step in enumerate(problem.steps) if step.kind in ("compute", "wrong", "correction")]


def apart(problem: Problem) -> list[tuple[int, int]]:
    """Pairs of them that are not neighbours, a later and an earlier one, as numbers among those that work."""
    return [(i, j) for i in range(len(worked(problem))) for j in range(i - 1)]


def true(problem: Problem) -> list[bool]:
    """Whether the later one uses the earlier one, for each such pair."""
    steps = worked(problem)
    return [steps[j] in problem.edges[steps[i]] for i, j in apart(problem)]


def by_distance(score: np.ndarray, truth: np.ndarray, distance: np.ndarray, rows: np.ndarray) -> float:
    """AUROC among pairs that are equally far apart, a mean over the true ones; of the pairs in `rows`."""
    score, truth, distance = score[rows], truth[rows], distance[rows]
    found, weights = [0.5], [0]
    for each in np.unique(distance):
        s, t = score[distance == each], truth[distance == each]
        if 0 < t.sum() < len(t):
            found.append(wb.statistics.auroc(s, t))
            weights.append(t.sum())
    return float(np.average(found, weights=weights)) if any(weights) else np.nan


@cache
def measure(seed: str = "fresh") -> Measured:
    made = Measured({}, {}, {}, [])
    for family, n in SETS.items():
        problems = read(family, n, seed)
        pairs = [(number, i, j) for number, one in enumerate(problems) for i, j in apart(one.problem)]
        number, later, earlier = np.array(pairs).T
        truth = np.array([uses for one in problems for uses in true(one.problem)])
        other = np.isin(later - earlier, (later - earlier)[truth]) & ~truth
        made.pairs[family] = int(truth.sum()), int(other.sum())
        for name, method in METHODS.items():
            matrices = [method(one.trace, one.parts) for one in problems]
            s = np.array([matrices[k][i, j] for k, i, j in pairs])
            made.medians[name, family] = float(np.median(s[truth])), float(np.median(s[other]))
            area = partial(by_distance, s, truth, later - earlier)
            made.auroc[name, family] = wb.statistics.bootstrap(area, len(s), number, resamples=500)
        made.traces.extend(one.trace for one in problems)
    return made
