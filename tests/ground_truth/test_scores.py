"""The AUROC of benchmarks.ground_truth, at equal distance and resampled, on pairs whose answers are known."""

from random import Random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.ground_truth.scores import (
    Comparisons,
    Pairs,
    auroc,
    auroc_within_problems,
    compare,
    intervals,
    pooled_pairs,
)
from workbench.analysis import statistics
from workbench.pocket.attribution import score_attribution
from workbench.pocket.families import make


def pairs(*rows: tuple[float, bool, int, int, int]) -> Pairs:
    """Pairs from rows of score, used, distance, length, problem."""
    return Pairs(*(np.array(column) for column in zip(*rows)))


def test_pairs_of_all_problems_of_one_length_are_compared():
    some = pairs((3, True, 1, 4, 0), (1, False, 1, 4, 0), (2, False, 2, 4, 1), (9, False, 1, 4, 1))
    counted = compare(some, 2)
    assert counted.wins.tolist() == [[1, 1], [0, 0]] and counted.n.tolist() == [[1, 2], [0, 0]]
    assert auroc(counted) == 2 / 3 and auroc_within_problems(counted) == 1


def test_problems_of_different_lengths_are_not_compared():
    some = pairs((3, True, 1, 4, 0), (1, False, 1, 4, 0), (5, False, 1, 5, 1), (0, True, 1, 5, 1))
    assert compare(some, 2).n.tolist() == [[1, 0], [0, 1]] and auroc(compare(some, 2)) == 0.5


def test_at_equal_distance_each_distance_is_weighted_by_its_comparisons():
    near = [(5, True, 1, 4, 0), (1, False, 1, 4, 0), (2, False, 1, 4, 0), (3, False, 1, 4, 0)]  # 3 of 3 won
    far = [(0, True, 2, 4, 0), (4, False, 2, 4, 0)]  # 0 of 1 won
    assert auroc(compare(pairs(*near, *far), 1, same_distance=True)) == 3 / 4
    assert auroc(compare(pairs(*near, *far), 1)) == 4 / 8, "across distances, 5 beats 4 too, and 0 loses all"


def test_nearness_is_at_chance_at_equal_distance_and_finds_everything_if_neighbors_are_used():
    near = pairs(*((-d, d == 1, d, 4, 0) for d in (1, 1, 2, 3)), (-1, False, 1, 4, 0))
    assert auroc(compare(near, 1, same_distance=True)) == 0.5 and auroc(compare(near, 1)) == 5 / 6


def test_ties_and_pairs_without_a_score_count_half():
    assert auroc(compare(pairs((1, True, 1, 4, 0), (1, False, 1, 4, 0), (np.nan, False, 1, 4, 0)), 1)) == 0.5
    assert auroc(compare(pairs((np.nan, True, 1, 4, 0), (1, False, 1, 4, 0), (7, False, 1, 4, 0)), 1)) == 0.5


def test_without_comparisons_there_is_no_area():
    alone = compare(pairs((1, True, 1, 4, 0), (1, False, 2, 4, 0)), 1, same_distance=True)
    assert np.isnan(auroc(alone))
    area, differences = intervals({"rule": alone}, ["rule"])["rule"]
    assert all(np.isnan(x) for x in (*area[:3], *differences["rule"][:3]))


some_pairs = st.lists(
    st.tuples(st.integers(0, 4), st.booleans(), st.integers(1, 2), st.just(5), st.integers(0, 3)), min_size=4
)


@given(some_pairs)
def test_over_all_pairs_it_is_the_usual_auroc(rows):
    some = pairs(*rows)
    if 0 < some.used.sum() < len(some.used):
        assert auroc(compare(some, 4)) == pytest.approx(statistics.auroc(some.scores, some.used))


@given(some_pairs, st.lists(st.integers(0, 3), min_size=4, max_size=4))
def test_weights_of_problems_are_the_same_as_repeating_their_pairs(rows, weights):
    some = pairs(*rows)
    chosen = np.repeat(np.arange(len(rows)), [weights[row[4]] for row in rows])
    used = some.used[chosen]
    if 0 < used.sum() < len(used):
        repeated = statistics.auroc(some.scores[chosen], used)
        assert auroc(compare(some, 4), np.array(weights, float)) == pytest.approx(repeated)


def test_within_one_problem_it_is_score_attribution_also_at_equal_distance():
    rng = np.random.default_rng(0)
    for seed in range(30):
        problem = make("dag", Random(seed), length=6)
        matrix = rng.integers(0, 5, (6, 6)).astype(float)
        matrix[rng.random((6, 6)) < 0.1] = np.nan
        for same_distance in (False, True):
            counted = compare(pooled_pairs([problem], [matrix]), 1, same_distance=same_distance)
            expected = score_attribution(problem, matrix, same_distance=same_distance)
            assert auroc(counted) == pytest.approx(expected, nan_ok=True)


def test_within_problems_it_is_the_mean_of_score_attribution_weighted_by_comparisons():
    problems = [make("dag", Random(seed), length=length) for seed, length in enumerate((4, 6, 8))]
    matrices = [np.random.default_rng(k).random((len(p.steps), len(p.steps))) for k, p in enumerate(problems)]
    counted = compare(pooled_pairs(problems, matrices), 3)
    areas = [score_attribution(problem, matrix) for problem, matrix in zip(problems, matrices)]
    assert auroc_within_problems(counted) == pytest.approx(np.average(areas, weights=np.diag(counted.n)))


def test_differences_smaller_than_rounding_errors_are_ties():
    problem = make("dag", Random(2), length=4)
    matrix = np.arange(16.0).reshape(4, 4) * 1e-9
    assert auroc(compare(pooled_pairs([problem], [matrix]), 1)) == 0.5


def test_a_difference_that_is_the_same_in_every_problem_has_no_width():
    better, worse = np.full((9, 9), 0.75), np.full((9, 9), 0.5)
    of_name = intervals({n: Comparisons(w, np.ones((9, 9))) for n, w in (("a", better), ("b", worse))}, ["b"])
    area, differences = of_name["a"]
    assert (area.value, area.low, area.high) == (0.75, 0.75, 0.75) and area.n_clusters == 9
    assert differences["b"][:3] == (0.25, 0.25, 0.25) and of_name["b"][1]["b"][:3] == (0, 0, 0)


def test_the_difference_is_paired_so_variation_between_problems_cancels():
    rng = np.random.default_rng(1)
    base = rng.random((60, 60)) * np.linspace(0.2, 0.8, 60)[:, None]
    of_name = intervals(
        {"a": Comparisons(base + 0.05, np.ones((60, 60))), "b": Comparisons(base, np.ones((60, 60)))}, ["b"]
    )
    area, differences = of_name["a"]
    assert area.high - area.low > 0.04
    assert differences["b"][:3] == pytest.approx((0.05, 0.05, 0.05))


def test_the_interval_covers_the_truth_in_about_95_of_100_samples():
    """Normal scores, used ones shifted by 1: the AUROC is the normal distribution function at 1 / sqrt(2)."""
    rng, hits, truth = np.random.default_rng(3), 0, 0.7602
    for _ in range(100):
        scores, used = rng.normal(size=(40, 4)), np.array([True, True, False, False])
        rows = [(x + u, u, 1, 4, k) for k in range(40) for x, u in zip(scores[k], used)]
        area, _ = intervals({"method": compare(pairs(*rows), 40)}, ["method"], resamples=300)["method"]
        hits += area.low <= truth <= area.high
    assert 88 <= hits <= 100
