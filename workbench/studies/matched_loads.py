"""Two passages compared word by word: which experts run, counted so that both sides have the same tokens."""

from collections.abc import Callable

import numpy as np

import workbench as wb

DEALT = 30


def loads(a: wb.Trace, here: slice, b: wb.Trace, there: slice, *, by_word: bool = True) -> np.ndarray:
    """Expert loads of two passages (dealt side layer expert): first as they are, then DEALT times dealt out anew.

    With `by_word` a position is dealt among those with the same token, and each token counts on one side as much as on
    the other: as often as the side has it that has it less. A token that one side lacks does not count.
    """
    each = np.eye(a.config["n_experts"])
    ran = np.concatenate([each[t["expert_indices"]][:, at].sum(2) for t, at in ((a, here), (b, there))], 1)
    tokens = [np.array(t.tokens)[at] for t, at in ((a, here), (b, there))]
    word = np.unique(np.concatenate(tokens), return_inverse=True)[1] * by_word
    second = np.arange(len(word)) >= len(tokens[0])
    rng, dealt = np.random.default_rng(0), [second]
    for _ in range(DEALT):
        dealt.append(np.empty_like(second))
        dealt[-1][np.argsort(word, kind="stable")] = second[np.lexsort((rng.random(len(word)), word))]
    sides = np.stack([~np.array(dealt), dealt], 1)  # dealt side pos
    n = np.array([[np.bincount(word, side) for side in pair] for pair in sides])  # dealt side word
    weight = (n.min(1, keepdims=True) / np.maximum(n, 1))[:, :, word] * sides
    return np.tensordot(weight, ran, ([2], [1]))


def drift(rows: np.ndarray) -> np.ndarray:
    """Divergence of two loads less what dealing gives, in bits, and the 95th percentile of that (2, layer).

    `rows` are loads (problem group dealt side layer expert): problems are added up, groups averaged.
    """
    both = rows.sum(0)
    jensen_shannon = wb.statistics.jensen_shannon(both[:, :, 0], both[:, :, 1]).mean(0)  # dealt layer
    return np.stack([jensen_shannon[0], np.quantile(jensen_shannon[1:], 0.95, 0)]) - jensen_shannon[1:].mean(0)


def jackknife(statistic: Callable[[np.ndarray], np.ndarray], rows: np.ndarray) -> np.ndarray:
    """What each row adds to a statistic of all (row, …): its mean is the statistic, less its bias; Tukey 1958."""
    n = len(rows)
    without = [statistic(np.delete(rows, i, 0)) for i in range(n)]
    return n * statistic(rows) - (n - 1) * np.array(without)
