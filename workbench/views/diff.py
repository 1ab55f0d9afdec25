"""An exact diff of two texts: their longest common subsequence, token by token."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from math import isqrt


def common(first: Sequence[str], second: Sequence[str]) -> list[tuple[int, int]]:
    """The longest common subsequence as pairs of positions (in first, in second), both increasing.

    >>> common(["a", "b", "c", "a"], ["b", "a"])
    [(1, 0), (3, 1)]

    The algorithm is bit-parallel (Hyyrö 2004): each token of `second` has one integer with one bit per token of
    `first`; a bit is 0 where the longest common subsequence grows. Two texts of 5,000 tokens take a fraction of a
    second, whatever their content. Memory grows with the square root of one length times the other.
    """
    start, stop = 0, 0
    while start < min(len(first), len(second)) and first[start] == second[start]:
        start += 1
    while stop < min(len(first), len(second)) - start and first[-1 - stop] == second[-1 - stop]:
        stop += 1
    middle = _common(first[start : len(first) - stop], second[start : len(second) - stop])
    end = ((len(first) - stop + k, len(second) - stop + k) for k in range(stop))
    return [*((k, k) for k in range(start)), *((start + i, start + j) for i, j in middle), *end]


def _common(first: Sequence[str], second: Sequence[str]) -> list[tuple[int, int]]:
    width, height = len(first), len(second)
    if not width or not height:
        return []
    position_bits: dict[str, int] = {}  # text -> one bit for each of its positions in first
    for position, text in enumerate(first):
        position_bits[text] = position_bits.get(text, 0) | 1 << position
    all_bits = (1 << width) - 1
    step = isqrt(height) + 1  # one row per step is stored; the rows between are recomputed
    stored_rows = list(islice(_rows(all_bits, all_bits, position_bits, second), 0, None, step))

    pairs: list[tuple[int, int]] = []
    column = width
    for block in range(len(stored_rows) - 1, -1, -1):
        rows = list(_rows(stored_rows[block], all_bits, position_bits, second[block * step : (block + 1) * step]))
        for at in range(len(rows) - 1, 0, -1):
            while column and rows[at] >> (column - 1) & 1:
                column -= 1  # without this token of first the subsequence is as long
            if column and rows[at - 1] >> (column - 1) & 1:  # but without this token of second it is shorter
                column -= 1
                pairs.append((column, block * step + at - 1))
    return pairs[::-1]


def _rows(row: int, all_bits: int, position_bits: Mapping[str, int], second: Sequence[str]) -> Iterator[int]:
    """The bit rows of the alignment table: `row` itself, then the row after each token of `second`."""
    yield row
    for text in second:
        matches = position_bits.get(text, 0)
        row = ((row + (row & matches)) | (row & ~matches)) & all_bits
        yield row
