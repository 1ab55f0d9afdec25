"""The pattern of one head, or the mean or maximum over the heads of a layer, max-pooled to the cells of a picture."""

import numpy as np

from workbench.traces import Trace, patterns

OVER_HEADS: dict[str, np.ufunc] = {"mean": np.add, "max": np.maximum}
QUERY_CHUNK = 256  # queries that are in memory at once, with all their keys
HEAD_CHUNK = 8  # heads, likewise

Head = int | str  # the number of a head, or a name in OVER_HEADS


def rows(
    trace: Trace, layer: int, head: Head, queries: slice, keys: slice = slice(None)
) -> tuple[np.ndarray, np.ndarray]:
    """Pattern (query key) and sink (query) of a head, or of the mean or maximum over the heads of the layer.

    >>> pattern, sink = rows(trace, 1, "mean", slice(-1, None))
    >>> bool(abs(pattern.sum() + sink.sum() - 1) < 1e-6)
    True

    Raises NotRecorded as `patterns.rows` does.
    """
    if not isinstance(head, str):
        pattern, sink = patterns.tile(trace, layer, [head], queries, keys)
        return pattern[0], sink[0]
    combine, n_heads = OVER_HEADS[head], trace.config["n_heads"]
    parts = [
        [
            combine.reduce(part, axis=0)
            for part in patterns.tile(trace, layer, range(n_heads)[h : h + HEAD_CHUNK], queries, keys)
        ]
        for h in range(0, n_heads, HEAD_CHUNK)
    ]
    pattern, sink = (combine.reduce(np.stack(each), axis=0) for each in zip(*parts, strict=True))
    return (pattern / n_heads, sink / n_heads) if head == "mean" else (pattern, sink)


def pooled(
    trace: Trace, layer: int, head: Head, start: int, stop: int, size: int, *, sampled: bool = False
) -> tuple[np.ndarray, np.ndarray, int]:
    """Cells (query_cell key_cell) of the range start:stop, at most `size` a side, their sinks, and tokens in a cell.

    Each cell is the largest of its values. With `sampled`, only the last query of each cell is used.

    >>> cells, sinks, factor = pooled(trace, 1, "max", 0, len(trace), 32)
    >>> cells.shape == (len(sinks), len(sinks)), factor == -(-len(trace) // 32)
    (True, True)

    Raises NotRecorded as `patterns.rows` does.
    """
    factor = -(-(stop - start) // size)
    edges = np.arange(0, stop - start, factor)
    cells, sinks = np.zeros((len(edges), len(edges)), "f4"), np.zeros(len(edges), "f4")
    step = factor * max(1, QUERY_CHUNK // (1 if sampled else factor))
    for first in range(start, stop, step):
        last, at = min(first + step, stop), (first - start) // factor
        if sampled:
            whole = slice(first + factor - 1, last, factor)
            found = [rows(trace, layer, head, whole, slice(start, stop))] if whole.start < last else []
            if (last - first) % factor:  # the last cell has fewer queries
                found.append(rows(trace, layer, head, slice(last - 1, last), slice(start, stop)))
            pattern, sink = (np.concatenate(each) for each in zip(*found, strict=True))
        else:
            pattern, sink = rows(trace, layer, head, slice(first, last), slice(start, stop))
            cuts = np.arange(0, last - first, factor)
            pattern, sink = np.maximum.reduceat(pattern, cuts), np.maximum.reduceat(sink, cuts)
        here = slice(at, at + len(pattern))
        cells[here], sinks[here] = np.maximum.reduceat(pattern, edges, axis=1), sink
    return cells, sinks, factor
