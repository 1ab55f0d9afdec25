"""`score_attribution` has the values that are counted by hand, and those of `statistics.auroc` where both apply."""

from random import Random

import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

import workbench as wb
from workbench.errors import ArgumentError
from workbench.pocket.attribution import score_attribution
from workbench.pocket.balance import BASELINES, rule_auroc
from workbench.pocket.families import CHAINS, DAGS, make
from workbench.pocket.families.dag import Dag
from workbench.pocket.problems import Problem

# Steps a, b, c, d. Used: b←a (distance 1), d←a (3). Unused: c←a (2), c←b (1), d←b (2), d←c (1).
PROBLEM = Problem(Dag(("1+2", "a+3", "4-1", "a-5"), "dcba", "d"))


def matrix(**scores: float) -> np.ndarray:
    """The matrix with these scores: `ba=1` is step b on step a."""
    out = np.zeros((4, 4))
    for (later, earlier), score in scores.items():
        out["abcd".index(later), "abcd".index(earlier)] = score
    return out


def test_it_counts_the_comparisons_that_a_used_pair_wins():
    assert score_attribution(PROBLEM, matrix(ba=1, da=1)) == 1
    assert score_attribution(PROBLEM, matrix(ba=1)) == pytest.approx((4 + 2) / 8), "da ties with all four"
    assert score_attribution(PROBLEM, matrix(ba=1, da=1, cb=2)) == pytest.approx(6 / 8)
    assert score_attribution(PROBLEM, matrix(ba=-1, da=-1)) == 0
    assert score_attribution(PROBLEM, np.zeros((4, 4))) == 0.5


def test_at_the_same_distance_only_pairs_equally_far_apart_are_compared():
    assert score_attribution(PROBLEM, matrix(ba=1, ca=9, db=9), same_distance=True) == 1, "ba against cb and dc"
    assert score_attribution(PROBLEM, matrix(ba=1, cb=2), same_distance=True) == 0.5
    nearness = -np.abs(np.subtract.outer(np.arange(4), np.arange(4)))
    assert score_attribution(PROBLEM, nearness, same_distance=True) == 0.5
    assert score_attribution(PROBLEM, nearness) == pytest.approx((2 + 0.5 + 0.5) / 8)


def test_a_pair_without_a_score_is_at_chance():
    assert score_attribution(PROBLEM, np.full((4, 4), np.nan)) == 0.5
    assert score_attribution(PROBLEM, matrix(ba=1, da=np.nan)) == pytest.approx((4 + 2) / 8)
    assert score_attribution(PROBLEM, matrix(ba=1, da=1, cb=np.nan, dc=np.nan)) == pytest.approx((3 + 3) / 8)
    assert score_attribution(PROBLEM, matrix(ba=np.inf, da=1, cb=-np.inf)) == 1


def test_entries_on_and_above_the_diagonal_are_not_used():
    scores = matrix(ba=1, da=1)
    scores[np.triu_indices(4)] = 99
    assert score_attribution(PROBLEM, scores) == 1


def test_labeled_arrays_and_lists_are_scored_as_arrays_are():
    scores = matrix(ba=1, cb=3)
    labeled = xr.DataArray(scores, dims=("step", "key_step"))
    assert score_attribution(PROBLEM, labeled) == score_attribution(PROBLEM, scores.tolist()) == 4.5 / 8
    assert score_attribution(PROBLEM, labeled.T) == 4.5 / 8, "axes are found by their names"


def test_a_problem_without_used_or_unused_pairs_has_no_score():
    assert np.isnan(score_attribution(make("dag", Random(0), length=1), [[0.0]]))
    two = Problem(Dag(("1+2", "a+3"), "ab", "b"))
    assert np.isnan(score_attribution(two, np.zeros((2, 2)))), "its only pair is used"
    # b←a and c←b are used, and c←a is the only pair at distance 2
    assert np.isnan(
        score_attribution(Problem(Dag(("1+2", "a+3", "b+4"), "abc", "c")), np.zeros((3, 3)), same_distance=True)
    )


@given(st.sampled_from([*CHAINS, *DAGS]), st.integers(0, 10**6), st.integers(4, 7))
@settings(max_examples=100, deadline=None)
def test_without_nan_it_is_the_auroc_over_the_pairs(family, seed, length):
    problem = make(family, Random(seed), length=length)
    n = len(problem.steps)
    scores = np.random.default_rng(seed).integers(0, 4, (n, n)).astype(float)
    values = np.array([scores[i, j] for i, j, _ in problem.pairs])
    truth = np.array([used for *_, used in problem.pairs])
    if truth.any() and not truth.all():
        expected = wb.statistics.auroc(values, truth)
        assert score_attribution(problem, scores) == pytest.approx(expected)
        assert score_attribution(problem, -scores) == pytest.approx(1 - expected)
        n = np.arange(n)
        nearness = -np.abs(np.subtract.outer(n, n))
        assert score_attribution(problem, nearness) == pytest.approx(rule_auroc([problem], BASELINES["nearness"]))


def test_another_shape_is_refused():
    with pytest.raises(ArgumentError, match=r"one column for each of the 4 steps of the problem, got shape \[3, 4\]"):
        score_attribution(PROBLEM, np.zeros((3, 4)))
