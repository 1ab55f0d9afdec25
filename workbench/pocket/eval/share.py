"""A share with its 95 % interval."""

from collections.abc import Sequence

from workbench.analysis.statistics import wilson_interval


def share(hits: Sequence[bool]) -> dict[str, float | int]:
    """The count `n`, the share of hits, and its 95 % Wilson interval (`low`, `high`); NaN if there are none.

    >>> share([True] * 95 + [False] * 5)
    {'n': 100, 'share': 0.95, 'low': 0.888, 'high': 0.978}
    >>> share([])
    {'n': 0, 'share': nan, 'low': nan, 'high': nan}
    """
    n = len(hits)
    if not n:
        return {"n": 0, "share": float("nan"), "low": float("nan"), "high": float("nan")}
    low, high = wilson_interval(sum(hits), n)
    return {"n": n, "share": round(sum(hits) / n, 4), "low": round(low, 3), "high": round(high, 3)}
