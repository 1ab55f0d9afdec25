"""A long text is prefilled in chunks, chosen so that every position gets the same bits as in one pass."""

from collections.abc import Iterator

CHUNK_POSITIONS = 1024  # each expert of the 20b then runs for 128 of them, enough to amortize reading its weights
MIN_LAST_CHUNK = 32  # a shorter rest joins the chunk before it: alone it would cost as much as a long one
CHUNK_ALIGN = 128  # chunk boundaries are multiples of this


def chunks(n: int, size: int | None = None) -> Iterator[tuple[int, int]]:
    """Start and stop of each chunk of a text of `n` positions; chunks are about `size` long.

    Chunks end where blocks of attention end. Each position then has the same products in the same order as in one
    pass, and gets the same bits.

    >>> list(chunks(2100, size=1024)), list(chunks(2050, size=1024))
    ([(0, 1024), (1024, 2048), (2048, 2100)], [(0, 1024), (1024, 2050)])
    """
    start, size = 0, size or CHUNK_POSITIONS
    while start < n:
        stop = n if n - start <= size + MIN_LAST_CHUNK else start + size
        yield start, stop
        start = stop
