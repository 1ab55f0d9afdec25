"""Statistics: intervals over prompts, tests that account for their number, entropies corrected for bias.

The unit of replication is the prompt, not the token. Tokens of one text are alike, and counting them as independent
makes anything significant. Resampling therefore resamples clusters. The same seed gives the same numbers.

Where scipy has a function, it is used: Wilson's interval, quantiles, ranks, false discovery rates, entropies. This
module has what scipy lacks or defines differently: cluster resampling, Westfall and Young's adjustment, bias
corrections, `_t` and `jensen_shannon`.
"""

from collections.abc import Callable, Sequence
from math import log, sqrt
from typing import Any, NamedTuple

import numpy as np
from scipy import special

from workbench.checks import (
    check_callable,
    check_count,
    check_flag,
    check_labels,
    check_number,
    check_numbers,
    check_outcomes,
    check_seed,
    check_whole,
)
from workbench.errors import ArgumentError

RESAMPLES = 2000  # bootstrap resamples and sign flips, by default
BITS = 1 / log(2)  # nats to bits
MAX_CELLS = 10_000_000  # of a table of counts


class Interval(NamedTuple):
    """An estimate with its confidence interval at `level`, and the numbers of observations and clusters behind it.

    >>> interval = mean_interval(np.array([1.0, 0.0, 1.0, 0.0]))
    >>> float(interval.value), interval.n, interval.level
    (0.5, 4, 0.95)
    """

    value: np.ndarray | float
    low: np.ndarray | float
    high: np.ndarray | float
    n: int  # observations
    n_clusters: int  # independent groups among them
    level: float


# -- intervals --------------------------------------------------------------------------------------------------------


def wilson_interval(hits: int, n: int, level: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval for a proportion: (low, high) at confidence `level` (Wilson 1927).

    >>> [round(bound, 3) for bound in wilson_interval(95, 100)]
    [0.888, 0.978]

    Raises ArgumentError unless 0 <= hits <= n and n > 0.
    """
    n, level = check_whole("n", n, 1), check_number("level", level, above=0, below=1)
    hits = check_whole("hits", hits, 0)
    if hits > n:
        raise ArgumentError(f"hits must be between 0 and n, which is {n}, got {hits}.")
    from scipy.stats import binomtest  # here, because scipy.stats takes more than a second to import

    interval = binomtest(hits, n).proportion_ci(level, method="wilson")
    return min(float(interval.low), hits / n), max(float(interval.high), hits / n)  # rounding crosses p at 0 and 1


def mean_interval(
    values: np.ndarray,
    clusters: Sequence | np.ndarray | None = None,
    *,
    level: float = 0.95,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> Interval:
    """The mean over the first axis with a cluster bootstrap interval, for each cell of the other axes.

    Clusters are drawn with replacement, together with all their observations. For few clusters the percentiles are
    widened as Student's t is compared with the normal distribution, because plain percentiles are too narrow then
    (Hesterberg 2015, doi 10.1080/00031305.2015.1089789).

    Args:
        values: observations along the first axis.
        clusters: which observations belong together (the prompt of each); None: each is independent.
        level: the confidence level.
        seed: of the resampling.
        resamples: number of bootstrap resamples.

    Returns:
        Interval with `value`, `low` and `high` in the shape of one observation.

    >>> interval = mean_interval(np.array([1.0, 1.0, 0.0, 0.0]), ["a", "a", "b", "b"])
    >>> float(interval.value), interval.n, interval.n_clusters
    (0.5, 4, 2)

    Raises:
        ArgumentError: there are no observations, or `clusters` has another length.
    """
    values = check_outcomes("values", values)
    level, seed, resamples = _settings(level, seed, resamples)
    number, n_clusters = _clusters(len(values), clusters)
    sums = np.zeros((n_clusters, *values.shape[1:]))
    np.add.at(sums, number, values)
    sizes = np.bincount(number, minlength=n_clusters).astype(np.float64)
    drawn = _draws(n_clusters, resamples, seed)
    totals = np.tensordot(drawn, sums, 1)
    means = totals / (drawn @ sizes).reshape(-1, *(1 for _ in values.shape[1:]))
    low, high = np.quantile(means, _tails(level, n_clusters), axis=0)
    return Interval(values.mean(0), low, high, len(values), n_clusters, level)


def bootstrap_interval(
    statistic: Callable[[np.ndarray], np.ndarray | float],
    n: int,
    clusters: Sequence | np.ndarray | None = None,
    *,
    level: float = 0.95,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> Interval:
    """A cluster bootstrap interval for any statistic.

    Args:
        statistic: a function from the row numbers of a resample (some repeated) to the estimate.
        n: number of observations.
        clusters: which observations belong together (the prompt of each); None: each is independent.
        level: the confidence level.
        seed: of the resampling.
        resamples: number of bootstrap resamples.

    Returns:
        Interval with the statistic of all rows and its bounds, widened for few clusters as in `mean_interval`.

    >>> x, y = np.arange(20.0), np.arange(20.0) ** 2
    >>> interval = bootstrap_interval(lambda rows: np.corrcoef(x[rows], y[rows])[0, 1], len(x))
    >>> bool(interval.low < interval.value < interval.high)
    True

    Raises:
        ArgumentError: there are no observations, or `clusters` has another length.
    """
    statistic, n = check_callable("statistic", statistic), check_whole("n", n, 0)
    level, seed, resamples = _settings(level, seed, resamples)
    number, n_clusters = _clusters(n, clusters)
    members = [np.flatnonzero(number == cluster) for cluster in range(n_clusters)]
    rng = np.random.default_rng(seed)
    resampled = []
    for _ in range(resamples):
        drawn = rng.integers(0, n_clusters, n_clusters)
        resampled.append(statistic(np.concatenate([members[cluster] for cluster in drawn])))
    low, high = np.nanquantile(check_numbers("the values of statistic", resampled), _tails(level, n_clusters), axis=0)
    return Interval(statistic(np.arange(n)), low, high, n, n_clusters, level)


def _settings(level: float, seed: int, resamples: int) -> tuple[float, int, int]:
    """The checked settings of a bootstrap."""
    return check_number("level", level, above=0, below=1), check_seed(seed), check_count("resamples", resamples)


def _clusters(n: int, clusters: Sequence | np.ndarray | None) -> tuple[np.ndarray, int]:
    """The number of each observation's cluster, and how many clusters there are."""
    if n == 0:
        raise ArgumentError("there are no observations; give at least one")
    if clusters is None:
        return np.arange(n), n
    names, number = np.unique(check_labels("clusters", clusters, n), return_inverse=True)
    return number, len(names)


def _draws(n_clusters: int, resamples: int, seed: int) -> np.ndarray:
    """How often each cluster is in each resample: (resample cluster)."""
    rng = np.random.default_rng(seed)
    return rng.multinomial(n_clusters, np.full(n_clusters, 1 / n_clusters), size=resamples).astype(np.float64)


def _tails(level: float, n_clusters: int) -> tuple[float, float]:
    """The quantiles of the bootstrap distribution that bound the interval, wider for few clusters."""
    if n_clusters < 2:
        return 0.0, 1.0
    wide = sqrt(n_clusters / (n_clusters - 1)) * _t(level, n_clusters - 1)
    tail = float(special.ndtr(-wide))
    return tail, 1 - tail


def _z(level: float) -> float:
    return float(special.ndtri(0.5 + level / 2))


def _t(level: float, freedom: int) -> float:
    """Student's t, by its expansion around the normal (Abramowitz and Stegun 26.7.5).

    `scipy.special.stdtrit` is exact. From 15 clusters on the two agree to 5 digits, but switching would change the last
    digits of every published interval.
    """
    z, v = _z(level), freedom
    return (
        z
        + (z**3 + z) / (4 * v)
        + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * v**2)
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * v**3)
    )


# -- tests ------------------------------------------------------------------------------------------------------------


def sign_flip_test(differences: np.ndarray, *, seed: int = 0, resamples: int = RESAMPLES) -> np.ndarray:
    """Two-sided p-values of paired differences (unit, test…) by random sign flips, each test on its own.

    Under the null, each unit's difference could equally have the opposite sign. The statistic is |t|. The smallest
    possible p is 1 / (resamples + 1). Units are prompts; for many tests at once use `westfall_young`.

    >>> float(sign_flip_test(np.array([1.0, 2.0, 1.5, 1.0, 2.5, 1.2, 0.8, 1.1]))) < 0.02
    True

    Raises ArgumentError for fewer than 2 units.
    """
    resamples = check_count("resamples", resamples)
    observed, flipped = _flips(differences, check_seed(seed), resamples)
    return (1 + (flipped >= observed - 1e-12).sum(0)) / (resamples + 1)


def westfall_young(differences: np.ndarray, *, seed: int = 0, resamples: int = RESAMPLES) -> np.ndarray:
    """p-values of many tests at once (unit, test…), adjusted for the family-wise error rate (Westfall and Young 1993).

    Each |t| is compared with the largest |t| of all tests under random sign flips of whole units, which accounts for
    the dependence between tests. The probability of one or more false positives among all tests is at most the
    threshold. A test without any difference has p = 1.

    >>> rng = np.random.default_rng(0)
    >>> differences = rng.normal(size=(20, 50)) + 3 * (np.arange(50) == 7)
    >>> np.flatnonzero(westfall_young(differences) < 0.05).tolist()
    [7]

    Raises ArgumentError for fewer than 2 units.
    """
    resamples = check_count("resamples", resamples)
    observed, flipped = _flips(differences, check_seed(seed), resamples)
    maximum = flipped.reshape(resamples, -1).max(1)
    return (1 + (maximum.reshape(-1, *(1 for _ in observed.shape)) >= observed - 1e-12).sum(0)) / (resamples + 1)


def _flips(differences: np.ndarray, seed: int, resamples: int) -> tuple[np.ndarray, np.ndarray]:
    """|t| as observed (test…), and with random signs of whole units (resample test…)."""
    differences = check_numbers("differences", differences)
    n = len(differences)
    if not np.isfinite(differences).all():  # comparisons with NaN are false, which would make every p small
        raise ArgumentError("differences must be finite; leave out units and tests without a result")
    if n < 2:
        raise ArgumentError(f"a test needs at least 2 units along the first axis, got {n}.")
    square = (differences**2).sum(0)
    signs = np.random.default_rng(seed).choice((-1.0, 1.0), (resamples, n))

    def t(total: np.ndarray) -> np.ndarray:
        spread = np.sqrt(np.maximum(square - total**2 / n, 0) / (n - 1) * n)
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where(total == 0, 0.0, np.abs(total) / spread)

    return t(differences.sum(0)), t(np.tensordot(signs, differences, 1))


def benjamini_hochberg(p: np.ndarray) -> np.ndarray:
    """q-values of Benjamini and Hochberg (1995), in the shape of `p`: they control the false discovery rate.

    If all tests with q below 0.05 are called significant, at most 5 % of them are false positives on average.

    >>> benjamini_hochberg(np.array([0.01, 0.04, 0.03, 0.5])).round(3).tolist()
    [0.04, 0.053, 0.053, 0.5]

    Raises ArgumentError if a p-value is not between 0 and 1.
    """
    from scipy.stats import false_discovery_control

    p = check_numbers("p", p)
    if not ((p >= 0) & (p <= 1)).all():
        raise ArgumentError("p-values must be between 0 and 1 and not NaN; leave out tests without a result")
    return false_discovery_control(p.ravel()).reshape(p.shape)


def auroc(scores: np.ndarray, truth: np.ndarray) -> float:
    """Area under the ROC curve: the probability that a true item has a larger score than a false one; ties count half.

    0.5 is chance.

    >>> auroc(np.array([0.1, 0.4, 0.35, 0.8]), np.array([False, False, True, True]))
    0.75

    NaN if a score is NaN. Raises ArgumentError unless `truth` has both true and false items.
    """
    from scipy.stats import rankdata

    scores, truth = check_numbers("scores", scores).ravel(), check_outcomes("truth", truth).ravel()
    if len(scores) != len(truth):
        raise ArgumentError(f"truth must have one entry for each of the {len(scores)} scores, got {len(truth)}.")
    if not np.isin(truth, (0, 1)).all():
        raise ArgumentError("truth must be true or false for each score (or 1 or 0).")
    truth = truth.astype(bool)
    n_true, n_rest = int(truth.sum()), int((~truth).sum())
    if not n_true or not n_rest:
        raise ArgumentError(f"truth must have both true and false items, got {n_true} true and {n_rest} false")
    ranks = rankdata(scores)
    return float((ranks[truth].sum() - n_true * (n_true + 1) / 2) / (n_true * n_rest))


def minimum_detectable_effect(n: int, proportion: float = 0.5, *, power: float = 0.8, level: float = 0.95) -> float:
    """The smallest difference between two proportions of `n` trials each that a test detects with probability `power`.

    Args:
        n: trials of each proportion.
        proportion: the normal approximation is made near this proportion; the default 0.5 is the hardest case.
        power: the probability with which the test detects the difference.
        level: one minus the significance level of the two-sided test.

    >>> [round(minimum_detectable_effect(n), 2) for n in (20, 50, 100, 400)]
    [0.44, 0.28, 0.2, 0.1]
    """
    n, level = check_whole("n", n, 1), check_number("level", level, above=0, below=1)
    proportion, power = (
        check_number("proportion", proportion, low=0, high=1),
        check_number("power", power, above=0, below=1),
    )
    return (_z(level) + float(special.ndtri(power))) * sqrt(2 * proportion * (1 - proportion) / n)


# -- information ------------------------------------------------------------------------------------------------------


def entropy(counts: np.ndarray, axis: int = -1, *, correct: bool = True) -> np.ndarray:
    """Entropy in nats of counts along an axis, by default with the Miller-Madow bias correction (k - 1) / 2n.

    k is the number of categories seen and n the total count. Without `correct`, small samples look less even than they
    are: 100 draws from 32 equal values lose 0.15 nats. NaN where the total is 0.

    >>> float(entropy(np.array([5, 5]), correct=False).round(4)), float(entropy(np.array([5, 5])).round(4))
    (0.6931, 0.7431)
    """
    counts, correct = check_numbers("counts", counts), check_flag("correct", correct)
    axis = _axis(axis, counts)
    _check_counts("counts", counts)
    return _entropy(counts, axis, correct)


def _entropy(counts: np.ndarray, axis: int, correct: bool) -> np.ndarray:
    n = counts.sum(axis, keepdims=True)
    with np.errstate(divide="ignore", invalid="ignore"):
        plain = special.entr(counts / n).sum(axis)
        bias = ((counts > 0).sum(axis) - 1) / (2 * n.squeeze(axis))
    return np.where(n.squeeze(axis) > 0, plain + bias * correct, np.nan)


def mutual_information(x: np.ndarray, y: np.ndarray, condition: np.ndarray | None = None) -> float:
    """Mutual information I(x; y) in bits, or I(x; y | condition), estimated from counts.

    The estimate is biased upward for few observations. `shuffled_mutual_information` gives the bias and the null.

    >>> x = np.array([0, 0, 1, 1])
    >>> mutual_information(x, x), mutual_information(x, np.array([0, 1, 0, 1])), mutual_information(x, x, condition=x)
    (1.0, 0.0, 0.0)
    """
    return _mutual_information(*_observations(x, y, condition))


def _mutual_information(x: np.ndarray, y: np.ndarray, condition: np.ndarray | None) -> float:
    nats = 0.0
    for stratum in _strata(len(x), condition):
        parts = _counts(x[stratum], y[stratum])
        a, b, both = (float(_entropy(part, -1, False)) for part in parts)
        nats += len(stratum) / len(x) * (a + b - both)
    return max(nats, 0.0) * BITS


def shuffled_mutual_information(
    x: np.ndarray,
    y: np.ndarray,
    condition: np.ndarray | None = None,
    *,
    clusters: Sequence | np.ndarray | None = None,
    n_shuffles: int = 100,
    seed: int = 0,
) -> np.ndarray:
    """The null of `mutual_information`: I(x; y | condition) in bits, for each of `n_shuffles` shuffles of y.

    Its mean is the bias of the plain estimate. The share of shuffles that reach the estimate is its p-value if
    observations are independent. If they are not, give `clusters`: then whole clusters exchange their values of y. The
    values keep their order, start at a random place, and are repeated as often as needed. The null then also contains
    what neighbors share and what a whole cluster shares.

    Args:
        x: one value for each observation.
        y: the same; shuffled.
        condition: the same; y is shuffled within each of its values.
        clusters: the cluster of each observation (its prompt); None: each observation is independent.
        n_shuffles: number of shuffles.
        seed: of the shuffles.

    Returns:
        Array (n_shuffles) of mutual informations in bits.

    >>> x = np.arange(200) % 4
    >>> bool(mutual_information(x, x) > shuffled_mutual_information(x, x).max())
    True
    >>> prompts = np.repeat(np.arange(4), 50)  # one value per prompt, so n is 4 and nothing is significant
    >>> null = shuffled_mutual_information(prompts, prompts % 2, clusters=prompts)
    >>> float((null >= mutual_information(prompts, prompts % 2)).mean())
    1.0

    Raises:
        ArgumentError: `clusters` has another length than the observations.
    """
    x, y, condition = _observations(x, y, condition)
    n_shuffles, rng = check_count("n_shuffles", n_shuffles), np.random.default_rng(check_seed(seed))
    strata = _strata(len(x), condition)
    number, n_clusters = _clusters(len(y), clusters)
    members = [[stratum[number[stratum] == c] for c in np.unique(number[stratum])] for stratum in strata]
    nulls = []
    for _ in range(n_shuffles):
        shuffled = y.copy()
        if clusters is None:
            for stratum in strata:
                shuffled[stratum] = y[rng.permutation(stratum)]
        else:
            rank = rng.permutation(n_clusters)  # one order for all strata: a cluster's values move together
            for groups in members:
                order = sorted(range(len(groups)), key=lambda i: rank[number[groups[i][0]]])
                for group, source in zip(groups, (groups[i] for i in order)):
                    offset = rng.integers(len(source))
                    shuffled[group] = y[source[(offset + np.arange(len(group))) % len(source)]]
        nulls.append(_mutual_information(x, shuffled, condition))
    return np.array(nulls)


def jensen_shannon(a: np.ndarray, b: np.ndarray, axis: int = -1) -> np.ndarray:
    """Jensen-Shannon divergence of two distributions (or counts) along an axis, in bits: 0 equal, 1 disjoint.

    `scipy.spatial.distance.jensenshannon` is its square root and takes rows of one length along one axis only.

    >>> float(jensen_shannon(np.array([1, 0]), np.array([0, 1])))
    1.0
    >>> float(jensen_shannon(np.array([2, 2]), np.array([1, 1])))
    0.0
    """
    a, b = check_numbers("a", a), check_numbers("b", b)
    axis = _axis(axis, a)
    if a.shape != b.shape:
        raise ArgumentError(f"a and b must have the same shape, got {list(a.shape)} and {list(b.shape)}.")
    _check_counts("a", a)
    _check_counts("b", b)
    with np.errstate(divide="ignore", invalid="ignore"):
        a, b = (x / x.sum(axis, keepdims=True) for x in (a, b))
    h = [_entropy(x, axis, False) for x in ((a + b) / 2, a, b)]
    return np.maximum(h[0] - (h[1] + h[2]) / 2, 0) * BITS


def _check_counts(name: str, counts: np.ndarray) -> None:
    if not ((counts >= 0) & (counts < np.inf)).all():
        raise ArgumentError(f"{name} must have finite numbers of at least 0 only, no NaN.")


def _axis(axis: int, array: np.ndarray) -> int:
    axis = check_whole("axis", axis)
    if not -array.ndim <= axis < array.ndim:
        raise ArgumentError(f"axis must be between {-array.ndim} and {array.ndim - 1}, got {axis}.")
    return axis


def _observations(x: Any, y: Any, condition: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """The labels of each observation, checked: as many in each list, and at least one."""
    x = check_labels("x", x)
    if not len(x):
        raise ArgumentError("there are no observations; give at least one")
    return x, check_labels("y", y, len(x)), None if condition is None else check_labels("condition", condition, len(x))


def _strata(n: int, condition: np.ndarray | None) -> list[np.ndarray]:
    if condition is None:
        return [np.arange(n)]
    condition = np.asarray(condition)
    return [np.flatnonzero(condition == value) for value in np.unique(condition)]


def _counts(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """How often each value of x, each value of y, and each pair of them occurs."""
    _, i, n_i = np.unique(x, return_inverse=True, return_counts=True)
    _, j, n_j = np.unique(y, return_inverse=True, return_counts=True)
    pairs = i * len(n_j) + j
    if len(n_i) * len(n_j) > MAX_CELLS:  # values that hardly repeat: only the pairs that occur
        return n_i.astype(float), n_j.astype(float), np.unique(pairs, return_counts=True)[1].astype(float)
    both = np.bincount(pairs, minlength=len(n_i) * len(n_j))
    return n_i.astype(float), n_j.astype(float), both.astype(float)
