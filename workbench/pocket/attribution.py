"""Scores a method that says how much each step depends on each earlier step, against a problem's true graph."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr

from workbench.checks import check_flag, check_numbers, check_type
from workbench.errors import ArgumentError
from workbench.pocket.problems import Problem


def score_attribution(
    problem: Problem, matrix: np.ndarray | xr.DataArray | Sequence[Sequence[float]], *, same_distance: bool = False
) -> float:
    """AUROC of a method on one problem: the probability that a used pair of steps scores higher than an unused pair.

    The pairs are a later and an earlier step (`problem.pairs`); a pair is used if the later step is computed from the
    earlier one's value. 0.5 is chance, and equal scores count half. So does each comparison with a pair whose score is
    NaN: a method that leaves out pairs is at chance on them. NaN is returned if the problem has no pair to compare.

    Args:
        problem: A problem with its graph, from `workbench.pocket.families.make`.
        matrix: The method's scores (later step, earlier step), one row and one column for each step of
            `problem.steps`, as of `wb.reasoning.suppression(…)["effect"]`; entries on and above the diagonal are not
            used.
        same_distance: Compare only pairs that are equally many steps apart, so that nearness has no effect.

    >>> import numpy as np
    >>> from random import Random
    >>> from workbench.pocket.families import make
    >>> problem = make("dag", Random(2), length=6)
    >>> truth = np.zeros((6, 6))
    >>> for later, earlier, used in problem.pairs:
    ...     truth[later, earlier] = used
    >>> nearness = -np.abs(np.subtract.outer(np.arange(6), np.arange(6)))
    >>> wb.reasoning.score_attribution(problem, truth), wb.reasoning.score_attribution(problem, nearness)
    (1.0, 0.21)
    >>> wb.reasoning.score_attribution(problem, nearness, same_distance=True)
    0.5

    Raises ArgumentError if `matrix` has another shape.
    """
    check_type("score_attribution", problem, Problem, "workbench.pocket.families.make")
    if isinstance(matrix, xr.DataArray) and {*matrix.dims} == {"step", "key_step"}:
        matrix = matrix.transpose("step", "key_step")
    scores, n = check_numbers("matrix", matrix, ndim=2), len(problem.steps)
    check_flag("same_distance", same_distance)
    if scores.shape != (n, n):
        raise ArgumentError(
            f"matrix must have one row and one column for each of the {n} steps of the problem, got shape "
            f"{list(scores.shape)}."
        )
    pairs = np.array(problem.pairs, dtype=int).reshape(-1, 3)
    later, earlier, used = pairs[:, 0], pairs[:, 1], pairs[:, 2].astype(bool)
    values, distances = scores[later, earlier], later - earlier
    compared = _outer(distances, used, np.equal) if same_distance else np.ones((used.sum(), (~used).sum()), bool)
    higher, lower = _outer(values, used, np.greater), _outer(values, used, np.less)
    wins = 0.5 + (higher.astype(float) - lower) / 2  # NaN is neither higher nor lower
    return float(wins[compared].mean()) if compared.any() else float("nan")


def _outer(values: np.ndarray, used: np.ndarray, compare: Any) -> np.ndarray:
    """A comparison of every used pair with every unused pair (used unused)."""
    return compare.outer(values[used], values[~used])
