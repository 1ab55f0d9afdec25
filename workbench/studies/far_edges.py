"""Which method finds a dependency on a step that is not adjacent? True pairs against others at the same distance.

Pairs of steps that are not adjacent, with and without a true dependency, and each method's AUROC at equal distance.
The title was chosen on the problems of the seed "figures"; the figure shows other problems.
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
from workbench.studies.dependency_methods import METHODS, score_steps
from workbench.studies.held_out import TracedProblem, bounds

SETS, LENGTH = {"variables": 24, "lists": 16}, 5  # family -> how many problems


class Measured(NamedTuple):
    """How well each method separates pairs with a true dependency from other pairs."""

    auroc: dict[tuple[str, str], Interval]  # method, family
    medians: dict[tuple[str, str], tuple[float, float]]  # of true pairs, of other pairs at the same distances
    pairs: dict[str, tuple[int, int]]  # family -> number of true pairs, of the others
    traces: list[wb.Trace]


@cache
def far_edge_problems(model: wb.Model, family: str, n: int, seed: str = "fresh") -> list[TracedProblem]:
    """Held-out problems with a non-adjacent dependency, and traces: a second operand, or a step that is corrected."""
    rng, traced = Random(f"{seed} far {family}"), []
    while len(traced) < n:
        problem = make(family, rng, length=LENGTH, split="test", wording=None)
        if family != "variables":  # only a correction depends on a step further back, the source of the wrong one
            problem = problem.slipped(rng.choice([slip for slip in slips(problem, rng) if slip.number > 1]))
        if any(dependencies(problem)):
            rendered = render(problem, "high")
            trace = model.trace(list(rendered.ids), record="attention")
            traced.append(TracedProblem(problem, [rendered.steps[i] for i in computed_steps(problem)], trace))
    return traced


def computed_steps(problem: Problem) -> list[int]:
    """Indices of the steps that compute a value: the last steps of the problem, without gaps."""
    return [i for i, step in enumerate(problem.steps) if step.kind in ("compute", "wrong", "correction")]


def distant_pairs(problem: Problem) -> list[tuple[int, int]]:
    """Pairs of computed steps that are not adjacent: (later, earlier), as indices into `computed_steps`."""
    return [(i, j) for i in range(len(computed_steps(problem))) for j in range(i - 1)]


def dependencies(problem: Problem) -> list[bool]:
    """For each of `distant_pairs`, whether the later step uses the earlier one."""
    steps = computed_steps(problem)
    return [steps[j] in problem.edges[steps[i]] for i, j in distant_pairs(problem)]


def by_distance(score: np.ndarray, truth: np.ndarray, distance: np.ndarray, rows: np.ndarray) -> float:
    """AUROC among pairs at the same distance, averaged over distances by their number of true pairs.

    Only the pairs in `rows` count; NaN if no distance has both true and other pairs.
    """
    score, truth, distance = score[rows], truth[rows], distance[rows]
    areas, weights = [0.5], [0]
    for value in np.unique(distance):
        s, t = score[distance == value], truth[distance == value]
        if 0 < t.sum() < len(t):
            areas.append(wb.statistics.auroc(s, t))
            weights.append(t.sum())
    return float(np.average(areas, weights=weights)) if any(weights) else np.nan


@cache
def measure(model: wb.Model, seed: str = "fresh") -> Measured:
    """Each method on all pairs of steps that are not adjacent, by family."""
    measured = Measured({}, {}, {}, [])
    for family, n in SETS.items():
        problems = far_edge_problems(model, family, n, seed)
        pairs = [(number, i, j) for number, one in enumerate(problems) for i, j in distant_pairs(one.problem)]
        number, later, earlier = np.array(pairs).T
        truth = np.array([uses for one in problems for uses in dependencies(one.problem)])
        other = np.isin(later - earlier, (later - earlier)[truth]) & ~truth
        measured.pairs[family] = int(truth.sum()), int(other.sum())
        for name in METHODS:
            matrices = [score_steps(name, model, one.trace, one.steps) for one in problems]
            s = np.array([matrices[k][i, j] for k, i, j in pairs])
            measured.medians[name, family] = float(np.median(s[truth])), float(np.median(s[other]))
            area = partial(by_distance, s, truth, later - earlier)
            measured.auroc[name, family] = wb.statistics.bootstrap_interval(area, len(s), number, resamples=500)
        measured.traces.extend(one.trace for one in problems)
    return measured


def draw(model: wb.Model) -> tuple[Figure, Sequence[wb.Trace]]:
    """The figure, and the traces behind it."""
    measured = measure(model)
    value, low, high = bounds([[measured.auroc[m, f] for f in SETS] for m in METHODS])
    coords = {"method": list(METHODS), "family": list(SETS)}
    counts = "; ".join(f"{f}: {t} true pairs, {o} others, {SETS[f]} problems" for f, (t, o) in measured.pairs.items())
    figure = bars(
        xr.DataArray(value, coords, ("method", "family"), attrs={"long_name": "AUROC among pairs at equal distance"}),
        by="method",
        low=low,
        high=high,
        null=0.5,
        title="Attention and suppression find distant dependencies; receiver heads do not do so significantly",
        note=f"Computed steps at a distance of two or more. {counts}; held-out, length {LENGTH}. 95 % intervals, "
        "cluster bootstrap over problems. In lists only a correction depends on a step that far back.",
    )
    return figure, measured.traces
