"""Which method finds a used step that is not the neighbour? True pairs against others that are as far apart.

Pairs of steps that are not neighbours, used and not, and how each method tells them apart by distance.
What is claimed was seen on the problems of the seed "figures"; what is drawn are others.
"""

from collections.abc import Sequence
from functools import cache, partial
from random import Random
from typing import NamedTuple

import numpy as np
import xarray as xr

import workbench as wb
from workbench.analysis.statistics import Interval
from workbench.figures import Figure, bars
from workbench.pocket.families import make, slips
from workbench.pocket.problems import Problem
from workbench.pocket.rendering import render
from workbench.studies.dependency_methods import METHODS
from workbench.studies.held_out import Read, bounds

SETS, LENGTH = {"variables": 24, "lists": 16}, 5  # family -> how many problems


class Measured(NamedTuple):
    """How each method tells used pairs of steps from others."""

    auroc: dict[tuple[str, str], Interval]  # method, family
    medians: dict[tuple[str, str], tuple[float, float]]  # of true pairs, of the others that are as far apart
    pairs: dict[str, tuple[int, int]]  # family -> how many of both
    traces: list[wb.Trace]


@cache
def read(model: wb.Model, family: str, n: int, seed: str = "fresh") -> list[Read]:
    """Held-out problems with such pairs, as the model reads them: a second operand, or a step that is put right."""
    rng, found = Random(f"{seed} far {family}"), []
    while len(found) < n:
        problem = make(family, rng, length=LENGTH, split="test", wording=None)
        if family != "variables":  # only what puts a step right reaches further back, to what it was made of
            problem = problem.slipped(rng.choice([slip for slip in slips(problem, rng) if slip.number > 1]))
        if any(true(problem)):
            rendered = render(problem, "high")
            trace = model.trace(list(rendered.ids), record="attention")
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
def measure(model: wb.Model, seed: str = "fresh") -> Measured:
    """Each method on all pairs of steps that are not neighbors, by family."""
    made = Measured({}, {}, {}, [])
    for family, n in SETS.items():
        problems = read(model, family, n, seed)
        pairs = [(number, i, j) for number, one in enumerate(problems) for i, j in apart(one.problem)]
        number, later, earlier = np.array(pairs).T
        truth = np.array([uses for one in problems for uses in true(one.problem)])
        other = np.isin(later - earlier, (later - earlier)[truth]) & ~truth
        made.pairs[family] = int(truth.sum()), int(other.sum())
        for name, method in METHODS.items():
            matrices = [method(model, one.trace, one.parts) for one in problems]
            s = np.array([matrices[k][i, j] for k, i, j in pairs])
            made.medians[name, family] = float(np.median(s[truth])), float(np.median(s[other]))
            area = partial(by_distance, s, truth, later - earlier)
            made.auroc[name, family] = wb.statistics.bootstrap_interval(area, len(s), number, resamples=500)
        made.traces.extend(one.trace for one in problems)
    return made


def draw(model: wb.Model) -> tuple[Figure, Sequence[wb.Trace]]:
    """The figure, and the traces behind it."""
    made = measure(model)
    value, low, high = bounds([[made.auroc[m, f] for f in SETS] for m in METHODS])
    coords = {"method": list(METHODS), "family": list(SETS)}
    counts = "; ".join(f"{f}: {t} true pairs, {o} others, {SETS[f]} problems" for f, (t, o) in made.pairs.items())
    figure = bars(
        xr.DataArray(value, coords, ("method", "family"), attrs={"long_name": "AUROC among pairs as far apart"}),
        by="method",
        low=low,
        high=high,
        null=0.5,
        title="Attention and hiding find what is used and not near; receiver heads are not shown to",
        note=f"Steps that work something out, two and more apart. {counts}; held-out, of length {LENGTH}. 95 % "
        "intervals, cluster bootstrap over problems. In lists only a step that puts another right reaches so far back.",
    )
    return figure, made.traces
