"""How sure a figure is: intervals over prompts, tests that know how many there are, entropies without their bias.

The unit of replication is the prompt, not the token: tokens of one text say much the same, and counting them as if they
did not makes anything significant. So what resamples here resamples clusters. The same seed gives the same numbers.

What scipy has is scipy's: Wilson's interval, quantiles, ranks, false discovery rates, entropies. Ours are what it lacks
or defines otherwise: resampling of clusters, Westfall and Young's adjustment, corrections of bias, and `_t` and
`jensen_shannon`.
"""

from collections.abc import Callable, Sequence
from math import log, sqrt
from typing import NamedTuple

import numpy as np
from scipy import special

from workbench.errors import ArgumentError

RESAMPLES = 2000
BITS = 1 / log(2)  # nats to bits


class Interval(NamedTuple):
    """A figure, the bounds between which it lies with probability `level`, and what that rests on."""

    value: np.ndarray | float
    low: np.ndarray | float
    high: np.ndarray | float
    n: int  # observations
    n_clusters: int  # of them, how many are independent
    level: float


# -- intervals --------------------------------------------------------------------------------------------------------


def wilson_interval(hits: int, n: int, level: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval of a share: between which bounds the true one lies (Wilson 1927).

    >>> [round(bound, 3) for bound in wilson_interval(95, 100)]
    [0.888, 0.978]

    Raises ArgumentError unless 0 <= hits <= n and n > 0.
    """
    if not 0 <= hits <= n or n == 0 or (int(hits), int(n)) != (hits, n):
        raise ArgumentError(f"hits must be a whole number between 0 and n, and n at least 1, got {hits} of {n}.")
    from scipy.stats import binomtest  # here, because scipy.stats takes more than a second to import

    interval = binomtest(int(hits), int(n)).proportion_ci(level, method="wilson")
    return min(float(interval.low), hits / n), max(float(interval.high), hits / n)  # rounding crosses p at 0 and 1


def mean_interval(
    values: np.ndarray,
    clusters: Sequence | np.ndarray | None = None,
    *,
    level: float = 0.95,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> Interval:
    """The mean over the first axis, with a cluster bootstrap interval for each cell of the others.

    `clusters` says which observations belong together (the prompt of each); without it each stands alone. Clusters are
    drawn with replacement, all their observations with them. The percentiles are widened for few clusters as Student's
    t is against the normal (Hesterberg 2015, doi 10.1080/00031305.2015.1089789), which plain percentiles are not.

    >>> interval = mean_interval(np.array([1.0, 1.0, 0.0, 0.0]), ["a", "a", "b", "b"])
    >>> float(interval.value), interval.n, interval.n_clusters
    (0.5, 4, 2)

    Raises ArgumentError without observations, or if `clusters` are not as many as they are.
    """
    values = np.asarray(values, np.float64)
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
    """The same for any statistic: a function from the numbers of the observations, some of them repeated, to a figure.

    >>> x, y = np.arange(20.0), np.arange(20.0) ** 2
    >>> interval = bootstrap_interval(lambda rows: np.corrcoef(x[rows], y[rows])[0, 1], len(x))
    >>> bool(interval.low < interval.value < interval.high)
    True

    Raises ArgumentError as `mean` does.
    """
    number, n_clusters = _clusters(n, clusters)
    members = [np.flatnonzero(number == cluster) for cluster in range(n_clusters)]
    rng = np.random.default_rng(seed)
    again = []
    for _ in range(resamples):
        drawn = rng.integers(0, n_clusters, n_clusters)
        again.append(statistic(np.concatenate([members[cluster] for cluster in drawn])))
    low, high = np.nanquantile(np.asarray(again, np.float64), _tails(level, n_clusters), axis=0)
    return Interval(statistic(np.arange(n)), low, high, n, n_clusters, level)


def _clusters(n: int, clusters: Sequence | np.ndarray | None) -> tuple[np.ndarray, int]:
    """The number of each observation's cluster, and how many clusters there are."""
    if n == 0:
        raise ArgumentError("there are no observations: give at least one.")
    if clusters is None:
        return np.arange(n), n
    if len(clusters) != n:
        raise ArgumentError(f"clusters must be one for each of the {n} observations, got {len(clusters)}.")
    names, number = np.unique(np.asarray(clusters), return_inverse=True)
    return number, len(names)


def _draws(n_clusters: int, resamples: int, seed: int) -> np.ndarray:
    """How often each cluster is in each resample, resample cluster."""
    rng = np.random.default_rng(seed)
    return rng.multinomial(n_clusters, np.full(n_clusters, 1 / n_clusters), size=resamples).astype(np.float64)


def _tails(level: float, n_clusters: int) -> tuple[float, float]:
    """The percentiles to read, wider for few clusters."""
    if n_clusters < 2:
        return 0.0, 1.0
    wide = sqrt(n_clusters / (n_clusters - 1)) * _t(level, n_clusters - 1)
    tail = float(special.ndtr(-wide))
    return tail, 1 - tail


def _z(level: float) -> float:
    return float(special.ndtri(0.5 + level / 2))


def _t(level: float, freedom: int) -> float:
    """Student's t, by its expansion around the normal (Abramowitz and Stegun 26.7.5).

    Not `scipy.special.stdtrit`, which is exact: from 15 clusters on they agree to 5 digits, but the bounds of every
    interval that was published would change in the last ones.
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
    """p-values of paired differences (unit, test…), each test for itself: were the signs by chance?

    Under the null a unit's difference may as well have the other sign. Two-sided; the smallest that can come out is
    1 / (resamples + 1).

    >>> float(sign_flip_test(np.array([1.0, 2.0, 1.5, 1.0, 2.5, 1.2, 0.8, 1.1]))) < 0.02
    True
    """
    observed, flipped = _flips(differences, seed, resamples)
    return (1 + (flipped >= observed - 1e-12).sum(0)) / (resamples + 1)


def westfall_young(differences: np.ndarray, *, seed: int = 0, resamples: int = RESAMPLES) -> np.ndarray:
    """p-values of many tests at once (unit, test…), adjusted so that one false alarm in all has that probability.

    Each is compared with the largest |t| of all tests under flipped signs (Westfall and Young 1993), which knows how
    the tests hang together; a test without any difference has p = 1.

    >>> rng = np.random.default_rng(0)
    >>> differences = rng.normal(size=(20, 50)) + 3 * (np.arange(50) == 7)
    >>> np.flatnonzero(westfall_young(differences) < 0.05).tolist()
    [7]
    """
    observed, flipped = _flips(differences, seed, resamples)
    most = flipped.reshape(resamples, -1).max(1)
    return (1 + (most.reshape(-1, *(1 for _ in observed.shape)) >= observed - 1e-12).sum(0)) / (resamples + 1)


def _flips(differences: np.ndarray, seed: int, resamples: int) -> tuple[np.ndarray, np.ndarray]:
    """|t| as observed (test…), and with the signs of whole units at random (resample test…)."""
    differences = np.asarray(differences, np.float64)
    n = len(differences)
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
    """q-values of Benjamini and Hochberg (1995): call all below 0.05, and 5 % of those are false at most, on average.

    >>> benjamini_hochberg(np.array([0.01, 0.04, 0.03, 0.5])).round(3).tolist()
    [0.04, 0.053, 0.053, 0.5]

    Raises ArgumentError for what is no p-value.
    """
    from scipy.stats import false_discovery_control

    p = np.asarray(p, np.float64)
    if not ((p >= 0) & (p <= 1)).all():
        raise ArgumentError("p-values must be between 0 and 1, and none may be NaN: leave out tests without a result.")
    return false_discovery_control(p.ravel()).reshape(p.shape)


def auroc(scores: np.ndarray, truth: np.ndarray) -> float:
    """How well scores tell the true from the rest: the probability that a true one has the larger score; ties half.

    >>> auroc(np.array([0.1, 0.4, 0.35, 0.8]), np.array([False, False, True, True]))
    0.75

    NaN if a score is NaN. Raises ArgumentError unless there are both true ones and others.
    """
    from scipy.stats import rankdata

    scores, truth = np.asarray(scores, np.float64).ravel(), np.asarray(truth, bool).ravel()
    n_true, n_rest = int(truth.sum()), int((~truth).sum())
    if not n_true or not n_rest:
        raise ArgumentError(f"truth must hold some of both, true and false, got {n_true} true and {n_rest} false.")
    ranks = rankdata(scores)
    return float((ranks[truth].sum() - n_true * (n_true + 1) / 2) / (n_true * n_rest))


def minimum_detectable_effect(n: int, proportion: float = 0.5, *, power: float = 0.8, level: float = 0.95) -> float:
    """The smallest difference between two shares, of `n` trials each, that is found with that power.

    >>> [round(minimum_detectable_effect(n), 2) for n in (20, 50, 100, 400)]
    [0.44, 0.28, 0.2, 0.1]
    """
    return (_z(level) + float(special.ndtri(power))) * sqrt(2 * proportion * (1 - proportion) / n)


# -- information ------------------------------------------------------------------------------------------------------


def entropy(counts: np.ndarray, axis: int = -1, *, correct: bool = True) -> np.ndarray:
    """Entropy of what was counted, in nats; `correct` adds Miller and Madow's (k - 1) / 2n for the k seen.

    What is counted seldom looks less even than it is: 100 draws from 32 equal values lose 0.15 nats.

    >>> float(entropy(np.array([5, 5]), correct=False).round(4)), float(entropy(np.array([5, 5])).round(4))
    (0.6931, 0.7431)
    """
    counts = np.asarray(counts, np.float64)
    n = counts.sum(axis, keepdims=True)
    with np.errstate(divide="ignore", invalid="ignore"):
        plain = special.entr(counts / n).sum(axis)
        bias = ((counts > 0).sum(axis) - 1) / (2 * n.squeeze(axis))
    return np.where(n.squeeze(axis) > 0, plain + bias * correct, np.nan)


def mutual_information(x: np.ndarray, y: np.ndarray, condition: np.ndarray | None = None) -> float:
    """I(x; y), or I(x; y | condition), in bits, from counts, uncorrected for bias: see `shuffled_mutual_information`.

    >>> x = np.array([0, 0, 1, 1])
    >>> mutual_information(x, x), mutual_information(x, np.array([0, 1, 0, 1])), mutual_information(x, x, condition=x)
    (1.0, 0.0, 0.0)
    """
    x, y = np.asarray(x), np.asarray(y)
    told = 0.0
    for stratum in _strata(len(x), condition):
        table = _table(x[stratum], y[stratum])
        parts = (table.sum(1), table.sum(0), table.ravel())
        a, b, both = (float(entropy(part, correct=False)) for part in parts)
        told += len(stratum) / len(x) * (a + b - both)
    return max(told, 0.0) * BITS


def shuffled_mutual_information(
    x: np.ndarray,
    y: np.ndarray,
    condition: np.ndarray | None = None,
    *,
    clusters: Sequence | np.ndarray | None = None,
    n_shuffles: int = 100,
    seed: int = 0,
) -> np.ndarray:
    """I(x; y | condition) in bits, as often as said, with y in random order (within each value of `condition`): the null.

    Its mean is the bias of the plain figure; the share of it that reaches the figure is the p-value, if observations
    are independent. Where they are not, `clusters` says which belong together (the prompt of each): then whole clusters
    exchange their values of y, in the order in which they stand, each begun at a random place and repeated as far as
    needed. So what neighbors share, and what a whole cluster shares, is in the null too.

    >>> x = np.arange(200) % 4
    >>> bool(mutual_information(x, x) > shuffled_mutual_information(x, x).max())
    True
    >>> prompts = np.repeat(np.arange(4), 50)  # one value a prompt: of four prompts nothing can be said
    >>> null = shuffled_mutual_information(prompts, prompts % 2, clusters=prompts)
    >>> float((null >= mutual_information(prompts, prompts % 2)).mean())
    1.0

    Raises ArgumentError if `clusters` are not as many as the observations.
    """
    rng = np.random.default_rng(seed)
    y, strata = np.asarray(y), _strata(len(x), condition)
    number, n_clusters = _clusters(len(y), clusters)
    members = [[stratum[number[stratum] == c] for c in np.unique(number[stratum])] for stratum in strata]
    nulls = []
    for _ in range(n_shuffles):
        mixed = y.copy()
        if clusters is None:
            for stratum in strata:
                mixed[stratum] = y[rng.permutation(stratum)]
        else:
            rank = rng.permutation(n_clusters)  # one order for all strata: a cluster's values move together
            for groups in members:
                order = sorted(range(len(groups)), key=lambda i: rank[number[groups[i][0]]])
                for group, source in zip(groups, (groups[i] for i in order)):
                    begin = rng.integers(len(source))
                    mixed[group] = y[source[(begin + np.arange(len(group))) % len(source)]]
        nulls.append(mutual_information(x, mixed, condition))
    return np.array(nulls)


def jensen_shannon(a: np.ndarray, b: np.ndarray, axis: int = -1) -> np.ndarray:
    """Jensen-Shannon divergence of two distributions (or counts) in bits: 0 for equal, 1 for disjoint.

    (`scipy.spatial.distance.jensenshannon` is its square root, and takes rows of one length along one axis only.)

    >>> float(jensen_shannon(np.array([1, 0]), np.array([0, 1])))
    1.0
    >>> float(jensen_shannon(np.array([2, 2]), np.array([1, 1])))
    0.0
    """
    a, b = (np.asarray(x, np.float64) / np.sum(x, axis, keepdims=True) for x in (a, b))
    h = [entropy(x, axis, correct=False) for x in ((a + b) / 2, a, b)]
    return np.maximum(h[0] - (h[1] + h[2]) / 2, 0) * BITS


def _strata(n: int, condition: np.ndarray | None) -> list[np.ndarray]:
    if condition is None:
        return [np.arange(n)]
    condition = np.asarray(condition)
    return [np.flatnonzero(condition == value) for value in np.unique(condition)]


def _table(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    _, i = np.unique(x, return_inverse=True)
    _, j = np.unique(y, return_inverse=True)
    table = np.zeros((i.max() + 1, j.max() + 1))
    np.add.at(table, (i, j), 1)
    return table
