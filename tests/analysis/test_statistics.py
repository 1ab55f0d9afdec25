"""Statistics: coverage, uniform p-values, false discovery rates and exact information."""

from statistics import NormalDist

import numpy as np
import pytest
import scipy.stats  # noqa: F401  the functions import it, and its second counts for no example's deadline
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from workbench.analysis.statistics import (
    auroc,
    benjamini_hochberg,
    bootstrap_interval,
    entropy,
    jensen_shannon,
    mean_interval,
    minimum_detectable_effect,
    mutual_information,
    shuffled_mutual_information,
    sign_flip_test,
    westfall_young,
    wilson_interval,
)
from workbench.errors import ArgumentError


def clustered(rng: np.random.Generator, n_clusters: int) -> tuple[np.ndarray, np.ndarray]:
    """Observations around 0 that share their cluster's own offset; clusters of 1 to 9."""
    sizes = rng.integers(1, 10, n_clusters)
    clusters = np.repeat(np.arange(n_clusters), sizes)
    return rng.normal(size=len(clusters)) + rng.normal(size=n_clusters)[clusters], clusters


@pytest.mark.parametrize("n_clusters", [15, 40])
def test_interval_coverage_matches_its_level(n_clusters, measured):
    rng = np.random.default_rng(0)
    hits = naive = 0
    rounds = 1500
    for seed in range(rounds):
        values, clusters = clustered(rng, n_clusters)
        a = mean_interval(values, clusters, seed=seed, resamples=600)
        b = mean_interval(values, seed=seed, resamples=100)
        hits += a.low <= 0 <= a.high
        naive += b.low <= 0 <= b.high
    measured(
        f"95 % intervals over {n_clusters} clusters cover the truth in {hits / rounds:.3f}; "
        f"tokens as if independent: {naive / rounds:.3f}"
    )
    assert 0.93 <= hits / rounds <= 0.97
    assert naive / rounds < 0.85  # tokens counted as independent


def test_bootstrap_interval_of_the_mean_equals_mean_interval():
    rng = np.random.default_rng(3)
    values, clusters = clustered(rng, 25)
    plain = mean_interval(values, clusters, resamples=4000)
    general = bootstrap_interval(lambda rows: values[rows].mean(), len(values), clusters, resamples=4000)
    assert plain.value == general.value and (plain.n, plain.n_clusters) == (general.n, general.n_clusters)
    assert abs(plain.low - general.low) < 0.05 and abs(plain.high - general.high) < 0.05


def test_intervals_are_per_cell_and_independent_of_cluster_order():
    rng = np.random.default_rng(1)
    values, clusters = rng.normal(size=(60, 2, 3)), np.repeat(np.arange(12), 5)
    whole = mean_interval(values, clusters)
    assert np.asarray(whole.low).shape == (2, 3) and (np.asarray(whole.low) < np.asarray(whole.high)).all()
    one = mean_interval(values[:, 1, 2], [f"prompt {c:02d}" for c in clusters])
    assert np.allclose(np.asarray([one.low, one.high]), [np.asarray(whole.low)[1, 2], np.asarray(whole.high)[1, 2]])


def test_invalid_statistics_inputs_are_refused():
    with pytest.raises(ValueError, match="no observations"):
        mean_interval(np.zeros(0))
    with pytest.raises(ValueError, match="clusters must have one entry for each of the 3 observations, got 2"):
        mean_interval(np.zeros(3), ["a", "b"])
    with pytest.raises(ValueError, match=r"hits must be between 0 and n, which is 4, got 5"):
        wilson_interval(5, 4)
    with pytest.raises(ValueError, match="at least 2 units along the first axis, got 1"):
        sign_flip_test(np.ones((1, 4)))


def test_a_single_cluster_gives_a_degenerate_interval():
    interval = mean_interval(np.array([1.0, 2.0, 3.0]), ["a"] * 3)
    assert interval.n_clusters == 1 and interval.low == interval.high == interval.value == 2.0


@given(st.integers(1, 400).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_interval_contains_the_proportion_and_is_symmetric(pair):
    hits, n = pair
    low, high = wilson_interval(hits, n)
    assert 0 <= low <= hits / n <= high <= 1
    assert wilson_interval(n - hits, n) == pytest.approx((1 - high, 1 - low))


@given(st.integers(1, 5000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))), st.sampled_from([0.9, 0.95]))
def test_wilson_interval_matches_its_formula_to_twelve_digits(pair, level):
    hits, n = pair
    z, p = NormalDist().inv_cdf(0.5 + level / 2), hits / n
    middle = (p + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * np.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    low, high = wilson_interval(hits, n, level)
    assert low == (0 if hits == 0 else pytest.approx(middle - half, rel=1e-12, abs=0))
    assert high == (1 if hits == n else pytest.approx(middle + half, rel=1e-12, abs=0))


def test_q_values_match_the_benjamini_hochberg_formula_to_twelve_digits():
    p = np.random.default_rng(4).random((5, 8)) ** 2
    ranked = np.sort(p, axis=None)
    q = [min(1.0, min(ranked[j] * p.size / (j + 1) for j in range(i, p.size))) for i in range(p.size)]
    assert benjamini_hochberg(p).shape == p.shape
    assert np.allclose(np.sort(benjamini_hochberg(p), axis=None), q, rtol=1e-12, atol=0)
    for wrong in ([0.1, np.nan], [1.5], [-0.1]):
        with pytest.raises(ArgumentError, match="between 0 and 1"):
            benjamini_hochberg(np.array(wrong))


def test_p_values_are_uniform_under_the_null(measured):
    rng = np.random.default_rng(5)
    p = sign_flip_test(rng.standard_t(4, size=(30, 2000)), resamples=999)
    steps = np.sort(p)
    max_deviation = np.abs(steps - (np.arange(len(p)) + 0.5) / len(p)).max()
    measured(f"2,000 p-values under the null lie within {max_deviation:.3f} of uniform")
    assert max_deviation < 1.63 / np.sqrt(len(p))  # Kolmogorov's bound at 1 %


def test_westfall_young_controls_the_family_wise_error_rate(measured):
    rng = np.random.default_rng(6)
    alarms = [westfall_young(rng.normal(size=(15, 40)), seed=seed, resamples=300).min() <= 0.05 for seed in range(400)]
    measured(f"max-T over 40 tests: a false alarm in {np.mean(alarms):.3f} of 400 null experiments, at 0.05")
    assert np.mean(alarms) < 0.08


@given(hnp.arrays(float, (6, 5), elements=st.floats(-3, 3)), st.randoms(use_true_random=False))
@settings(max_examples=60, deadline=None)
def test_p_values_follow_their_columns_and_adjusted_ones_are_never_smaller(differences, rng):
    p, adjusted = sign_flip_test(differences, resamples=99), westfall_young(differences, resamples=99)
    assert (adjusted >= p - 1e-12).all()
    order = list(range(5))
    rng.shuffle(order)
    assert np.array_equal(westfall_young(differences[:, order], resamples=99), adjusted[order])
    assert (adjusted[(differences == 0).all(0)] == 1).all()


def test_benjamini_hochberg_controls_the_false_discovery_rate(measured):
    rng = np.random.default_rng(7)
    shares = []
    for seed in range(200):
        differences = rng.normal(size=(20, 100)) + 1.2 * (np.arange(100) < 20)
        called = benjamini_hochberg(sign_flip_test(differences, seed=seed, resamples=999)) < 0.1
        shares.append(called[20:].sum() / max(called.sum(), 1))
    measured(f"Benjamini-Hochberg at 0.1, 80 of 100 null: {np.mean(shares):.3f} of the discoveries are false")
    assert np.mean(shares) < 0.1


@given(hnp.arrays(float, (12,), elements=st.floats(0, 1)))
def test_q_values_keep_the_order_of_p_values_and_lie_above_them(p):
    q = benjamini_hochberg(p)
    assert (q >= p - 1e-12).all() and (q <= 1).all()
    assert (np.diff(q[np.argsort(p, kind="stable")]) >= -1e-12).all()


def test_the_minimum_detectable_effect_is_detected_with_its_power():
    rng = np.random.default_rng(8)
    n, gap = 100, minimum_detectable_effect(100)
    a, b = rng.binomial(n, 0.5 - gap / 2, 4000), rng.binomial(n, 0.5 + gap / 2, 4000)
    pooled = (a + b) / (2 * n)
    z = np.abs(a - b) / n / np.sqrt(2 * pooled * (1 - pooled) / n)
    assert 0.77 < (z > 1.96).mean() < 0.84


@pytest.mark.parametrize("n", [25, 50, 300])
def test_the_corrected_entropy_of_an_even_router_is_nearly_right(n):
    rng = np.random.default_rng(9)
    counts = rng.multinomial(4 * n, np.full(32, 1 / 32), size=400)
    plain, corrected = (entropy(counts, correct=c).mean() for c in (False, True))
    assert abs(corrected - np.log(32)) < 0.2 * abs(plain - np.log(32))
    assert plain < corrected


def test_entropy_is_exact_on_known_counts():
    counts = np.array([[1, 1, 1, 1], [4, 0, 0, 0], [2, 2, 0, 0]])
    assert np.allclose(entropy(counts, correct=False), [np.log(4), 0, np.log(2)])
    assert np.allclose(entropy(counts) - entropy(counts, correct=False), [3 / 8, 0, 1 / 8])
    assert np.isnan(entropy(np.zeros(4)))


def test_information_is_exact_and_conditioning_removes_the_token():
    classes = np.arange(320) % 8
    assert mutual_information(classes, classes) == pytest.approx(3)
    assert mutual_information(classes, classes // 2) == pytest.approx(2)
    token = classes // 2
    assert mutual_information(token, token, condition=token) == 0
    assert mutual_information(classes, classes, condition=token) == pytest.approx(1)


@given(st.integers(0, 2**32))
@settings(max_examples=40, deadline=None)
def test_information_has_its_bounds_and_its_chain_rule(seed):
    rng = np.random.default_rng(seed)
    x, y, z = rng.integers(0, 5, 80), rng.integers(0, 3, 80), rng.integers(0, 2, 80)
    own = [mutual_information(v, v) for v in (x, y)]
    information = mutual_information(x, y)
    assert 0 <= information <= min(own) + 1e-9 and information == pytest.approx(mutual_information(y, x))
    assert mutual_information(x, 2 * y + z) == pytest.approx(
        mutual_information(x, z) + mutual_information(x, y, condition=z)
    )
    names = rng.permutation(5)
    assert mutual_information(names[x], y) == pytest.approx(information)


def test_the_null_of_mutual_information_equals_its_bias():
    rng = np.random.default_rng(2)
    x, y = rng.integers(0, 32, 500), rng.integers(0, 4, 500)
    null = shuffled_mutual_information(x, y)
    assert abs(mutual_information(x, y) - null.mean()) < 4 * null.std()
    assert 0.5 < null.mean() / (31 * 3 / (2 * 500 * np.log(2))) < 1.5  # Miller and Madow's bias


def test_divergence_is_exact_and_symmetric():
    a, b = np.array([[1, 0, 0, 0], [1, 1, 0, 0]]), np.array([[0, 1, 1, 0], [0, 1, 1, 0]])
    assert np.allclose(jensen_shannon(a, b), [1, 0.5]) and np.allclose(jensen_shannon(a, b), jensen_shannon(b, a))
    assert np.allclose(jensen_shannon(10 * a, a), 0)


@given(st.lists(st.tuples(st.integers(0, 5), st.booleans()), min_size=2, max_size=30))
def test_auroc_is_the_share_of_correctly_ordered_pairs(pairs):
    scores, truth = np.array([s for s, _ in pairs]), np.array([t for _, t in pairs])
    if truth.all() or not truth.any():
        with pytest.raises(ValueError, match="both true and false"):
            auroc(scores, truth)
        return
    order = [np.sign(a - b) / 2 + 0.5 for a in scores[truth] for b in scores[~truth]]
    assert auroc(scores, truth) == pytest.approx(np.mean(order))
    assert auroc(-scores, truth) == pytest.approx(1 - auroc(scores, truth))
