"""AUROC over the pairs of many problems, over all pairs or at equal distance, with paired bootstrap intervals.

The AUROC is the share of comparisons of a used with an unused pair in which the used one scores higher. Equal scores
count half, and so do comparisons with a pair without a score (NaN), as in `wb.reasoning.score_attribution`. That
function compares the pairs of one problem; here, pairs of all problems of the same length are compared. Problems of
different lengths are not: shorter chains use a larger share of their pairs, so the length alone would be a clue.

Comparisons are counted once for each two problems; a bootstrap resample of the problems then only weights the counts.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from benchmarks.ground_truth.cases import Matrix, pair_indices
from workbench.analysis.statistics import Interval, bootstrap_interval
from workbench.pocket.problems import Problem

DECIMALS = 7  # smaller differences are rounding errors, which depend on the processor


class Pairs(NamedTuple):
    """Pairs of steps of several problems."""

    scores: np.ndarray
    used: np.ndarray
    distances: np.ndarray  # in steps
    lengths: np.ndarray  # of their problems
    problems: np.ndarray  # the index of each pair's problem


class Comparisons(NamedTuple):
    """Comparisons of the used pairs of one problem with the unused pairs of another (problem problem)."""

    wins: np.ndarray
    n: np.ndarray


def pooled_pairs(problems: Sequence[Problem], matrices: Sequence[Matrix]) -> Pairs:
    """The pairs of all problems with their scores, rounded."""
    parts = []
    for number, (problem, matrix) in enumerate(zip(problems, matrices, strict=True)):
        later, earlier, used = pair_indices(problem)
        scores = np.asarray(matrix, float)[later, earlier].round(DECIMALS)
        parts.append((scores, used, later - earlier, np.full(len(used), problem.length), np.full(len(used), number)))
    return Pairs(*map(np.concatenate, zip(*parts)))


def compare(pairs: Pairs, n_problems: int, *, same_distance: bool = False) -> Comparisons:
    """Counts the comparisons; with `same_distance`, only between pairs that are equally many steps apart.

    The AUROC of the sums is then the mean over lengths and distances, weighted by their numbers of comparisons.
    """
    wins, n = np.zeros((2, n_problems, n_problems))
    distances = pairs.distances if same_distance else np.zeros_like(pairs.distances)
    _, strata = np.unique(np.stack([pairs.lengths, distances]), axis=1, return_inverse=True)
    for stratum in range(strata.max(initial=-1) + 1):
        used, unused = ((strata == stratum) & truth for truth in (pairs.used, ~pairs.used))
        others, of_problem = pairs.scores[unused], pairs.problems[unused]
        for number in np.unique(pairs.problems[used]):
            scores = pairs.scores[used & (pairs.problems == number), None]
            won = (0.5 + (0.0 + (scores > others) - (scores < others)) / 2).sum(0)
            wins[number] += np.bincount(of_problem, won, n_problems)
            n[number] += len(scores) * np.bincount(of_problem, minlength=n_problems)
    return Comparisons(wins, n)


def auroc(comparisons: Comparisons, weights: np.ndarray | None = None) -> float:
    """AUROC, with each problem counted `weights` times (once by default); NaN without comparisons."""
    w = np.ones(len(comparisons.n)) if weights is None else weights
    total = w @ comparisons.n @ w
    return float(w @ comparisons.wins @ w / total) if total else float("nan")


def auroc_within_problems(comparisons: Comparisons) -> float:
    """AUROC of the comparisons within one problem: the mean of `score_attribution`, weighted by comparisons."""
    return auroc(Comparisons(*map(np.diag, map(np.diag, comparisons))))


def intervals(
    methods: Mapping[str, Comparisons], baselines: Sequence[str], *, resamples: int = 2000
) -> dict[str, tuple[Interval, dict[str, Interval]]]:
    """For each method, its AUROC and its paired difference to each baseline, with 95 % intervals over problems.

    The resamples are the same for all methods, so the differences are paired. `baselines` are keys of `methods`.
    """
    names = list(methods)
    wins, n = (np.stack([comparisons[k] for comparisons in methods.values()]) for k in (0, 1))
    columns = [names.index(name) for name in baselines]

    def statistic(rows: np.ndarray) -> np.ndarray:
        weights = np.bincount(rows, minlength=wins.shape[1]).astype(float)
        totals = (n @ weights) @ weights
        won = (wins @ weights) @ weights
        areas = np.divide(won, totals, out=np.full(len(names), np.nan), where=totals > 0)
        return np.column_stack([areas, areas[:, None] - areas[columns]])

    if not n.any():
        nothing = Interval(np.nan, np.nan, np.nan, 0, 0, 0.95)
        return {name: (nothing, dict.fromkeys(baselines, nothing)) for name in names}
    both = bootstrap_interval(statistic, wins.shape[1], resamples=resamples)

    def cell(row: int, column: int) -> Interval:
        value, low, high = (float(np.asarray(part)[row, column]) for part in both[:3])
        return Interval(value, low, high, both.n, both.n_clusters, both.level)

    return {
        name: (cell(row, 0), {other: cell(row, 1 + k) for k, other in enumerate(baselines)})
        for row, name in enumerate(names)
    }
