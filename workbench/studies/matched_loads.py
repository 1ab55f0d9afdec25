"""Expert loads of two passages, weighted so that both have the same tokens."""

from collections.abc import Callable

import numpy as np

import workbench as wb

N_SHUFFLES = 30


def loads(
    first: wb.Trace, first_span: slice, second: wb.Trace, second_span: slice, *, match_tokens: bool = True
) -> np.ndarray:
    """Expert loads of two passages: the observed ones, then N_SHUFFLES with positions reassigned to sides at random.

    Args:
        first: The trace with the first passage.
        first_span: Positions of the first passage.
        second: The trace with the second passage; may be the same trace.
        second_span: Positions of the second passage.
        match_tokens: Give each token the same total weight on both sides: the smaller of its two counts, so that a
            token missing on one side has weight 0. Positions are then shuffled only among those with the same token.

    Returns:
        Summed expert choices (shuffle side layer expert); shuffle 0 is the observed assignment.
    """
    one_hot = np.eye(first.config["n_experts"])
    passages = ((first, first_span), (second, second_span))
    chosen = np.concatenate([one_hot[trace["expert_indices"]][:, span].sum(2) for trace, span in passages], 1)
    tokens = [np.array(trace.tokens)[span] for trace, span in passages]
    token = np.unique(np.concatenate(tokens), return_inverse=True)[1] * match_tokens
    in_second = np.arange(len(token)) >= len(tokens[0])
    rng, assignments = np.random.default_rng(0), [in_second]
    for _ in range(N_SHUFFLES):
        assignments.append(np.empty_like(in_second))
        assignments[-1][np.argsort(token, kind="stable")] = in_second[np.lexsort((rng.random(len(token)), token))]
    sides = np.stack([~np.array(assignments), assignments], 1)  # shuffle side pos
    n = np.array([[np.bincount(token, side) for side in pair] for pair in sides])  # shuffle side token
    weight = (n.min(1, keepdims=True) / np.maximum(n, 1))[:, :, token] * sides
    return np.tensordot(weight, chosen, ([2], [1]))


def drift(rows: np.ndarray) -> np.ndarray:
    """Jensen-Shannon divergence of two loads minus its mean over shuffles, in bits, and the null's 95th percentile.

    `rows` are loads (problem group shuffle side layer expert); they are summed over problems, and the divergence is
    averaged over groups. Returns (2 layer): the drift, and the 95th percentile of the shuffles minus their mean.
    """
    summed = rows.sum(0)
    jensen_shannon = wb.statistics.jensen_shannon(summed[:, :, 0], summed[:, :, 1]).mean(0)  # shuffle layer
    return np.stack([jensen_shannon[0], np.quantile(jensen_shannon[1:], 0.95, 0)]) - jensen_shannon[1:].mean(0)


def jackknife(statistic: Callable[[np.ndarray], np.ndarray], rows: np.ndarray) -> np.ndarray:
    """Jackknife pseudo-values of a statistic (row, …); their mean is the bias-corrected statistic (Tukey 1958)."""
    n = len(rows)
    leave_one_out = [statistic(np.delete(rows, i, 0)) for i in range(n)]
    return n * statistic(rows) - (n - 1) * np.array(leave_one_out)
