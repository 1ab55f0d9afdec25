"""A share with its interval."""

from collections.abc import Sequence
from math import sqrt

Z = 1.959964  # 95 %


def share(hits: Sequence[bool]) -> dict[str, float | int]:
    """How many of how many, the share, and Wilson's 95 % interval.

    >>> share([True] * 95 + [False] * 5)
    {'n': 100, 'share': 0.95, 'low': 0.888, 'high': 0.978}
    >>> share([])
    {'n': 0, 'share': nan, 'low': nan, 'high': nan}
    """
    n = len(hits)
    if not n:
        return {"n": 0, "share": float("nan"), "low": float("nan"), "high": float("nan")}
    p = sum(hits) / n
    middle = (p + Z**2 / (2 * n)) / (1 + Z**2 / n)
    half = Z / (1 + Z**2 / n) * sqrt(p * (1 - p) / n + Z**2 / (4 * n**2))
    return {"n": n, "share": round(p, 4), "low": round(middle - half, 3), "high": round(middle + half, 3)}
