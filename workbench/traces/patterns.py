"""Any attention pattern, exactly, from the queries, keys and sinks that a trace keeps. Numpy only.

A pattern is computed in blocks of queries that meet only the keys that they may see, so a sliding layer costs what its
window costs, and nothing of size query x key is held but the answer. Four questions, one computation:

    rows, tile      some heads, some queries, all or some keys, as they are
    band            a sliding layer without its zeros
    view            a whole head, or all, pooled to a picture: the largest value of each cell

A pattern that was recorded is taken as it is, by all of them. Keys are kept in fp32, a few layers of them, because
reading, verifying and widening them takes longer than the product does. All may be called from several threads.
"""

import operator
import weakref
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from itertools import pairwise
from threading import Lock
from typing import NamedTuple

import ml_dtypes
import numpy as np

from workbench.checks import resolve_head, resolve_layer
from workbench.errors import ArgumentError, NotRecorded
from workbench.traces import Trace

CACHE = 512 << 20  # bytes of queries and keys that are kept; the layer that was asked last always is
QUERIES = 128  # in a block, at most
PIECE = 1 << 17  # scores that become a pattern at a time: 512 KB, which a core's own cache holds
UNSHIFTED = 40  # rows whose largest score is closer to 0 need no shift: e**40 is far from too large or too small
CELLS = 1 << 20  # scores in a block, at most (but one query's always fit): 4 MB, which a cache holds

Heads = slice | Sequence[int]


# -- the questions ----------------------------------------------------------------------------------------------------


def rows(trace: Trace, layer: int, heads: Heads, queries: slice = slice(None)) -> tuple[np.ndarray, np.ndarray]:
    """Pattern (head query key) and sink (head query) of some rows of one layer: recorded ones, or recomputed.

    Recomputed ones follow the model's own steps: scores rounded to the model's dtype, softmax over keys and sink in
    fp32 or better. Rows sum to 1 - sink.

    >>> pattern, sink = rows(trace, 1, [2], slice(-1, None))
    >>> pattern.shape == (1, 1, len(trace)), bool(abs(pattern.sum() + sink.sum() - 1) < 1e-6)
    (True, True)

    Raises NotRecorded if the trace holds neither the pattern nor queries, keys and sinks, or if the run was edited
    where it matters; SelectionError if there is no such layer or head.
    """
    return tile(trace, layer, heads, queries, slice(None))


def tile(
    trace: Trace, layer: int, heads: Heads, queries: slice, keys: slice = slice(None)
) -> tuple[np.ndarray, np.ndarray]:
    """Pattern (head query key) of those queries and keys only, and the queries' sinks (head query).

    It is that piece of the whole pattern: each row was divided by its sum over all keys, also those not asked for.

    >>> tile(trace, 1, [2, 3], slice(10, 14), slice(0, 8))[0].shape
    (2, 4, 8)

    Raises NotRecorded as `rows` does.
    """
    source = _source(trace, layer)
    return _tile(source, _chosen(source, heads), queries, keys)


class Band(NamedTuple):
    """What a sliding layer may see: `pattern[h, i, j]` is the mass on key `first[i] + j`, 0 where that is below 0."""

    pattern: np.ndarray  # head query window
    first: np.ndarray  # query: the first key of the row's window, which begins before the text for early queries
    sink: np.ndarray  # head query


def band(trace: Trace, layer: int, heads: Heads, queries: slice = slice(None)) -> Band:
    """The pattern of a sliding layer without its zeros: each row's last `window` keys, the query itself at the end.

    At 16,384 tokens a head is 8 MB instead of 1 GB.

    >>> b = band(trace, 0, [2], slice(20, 24))
    >>> b.pattern.shape == (1, 4, trace.config["window"]), bool(b.first[0] == 20 - trace.config["window"] + 1)
    (True, True)

    Raises NotRecorded as `rows` does, if the layer has no window, and if an edit may have opened keys outside of it.
    """
    source = _source(trace, layer)
    width = trace.config["window"] if trace.config["layer_types"][layer] == "sliding_attention" else None
    if width is None:
        sliding = [i for i, kind in enumerate(trace.config["layer_types"]) if kind == "sliding_attention"]
        raise NotRecorded(f"layer {layer} attends to all keys, so it has no band; the layers with one are {sliding}")
    if edited := _edited(trace, layer, "attn_scores", "pattern"):
        raise NotRecorded(f"this run was edited at {edited}, which may reach outside the window: ask for rows or tiles")
    chosen, at = _chosen(source, heads), np.arange(source.n)[queries]
    out = np.zeros((len(chosen), len(at), width), source.dtype)
    sink = np.zeros(out.shape[:2], source.dtype)
    first = at - width + 1
    for block in source.blocks(chosen, at):
        place = first[block.rows, None] + np.arange(width)
        inside = np.take_along_axis(block.values, np.maximum(place - block.first, 0)[None], -1)
        np.multiply(inside, block.scale, out=out[block.heads, block.rows], where=place >= 0)
        sink[block.heads, block.rows] = block.sink
    return Band(out, first, sink)


class View(NamedTuple):
    """A pattern as a picture: cell (i, j) is the largest value of queries and keys from `factor * i`, `factor * j`."""

    cells: np.ndarray  # head query_cell key_cell
    factor: int  # queries, and keys, in a cell; the last cell may have fewer
    sink: np.ndarray  # head: mean over the queries that were looked at


def view(trace: Trace, layer: int, heads: Heads = slice(None), size: int = 512, *, sampled: bool = False) -> View:
    """Whole heads in at most size x size cells, each the exact maximum of what it covers.

    A mean would hide the one token that one looks for. `sampled` looks at the last query of each cell only: a preview
    that takes 1 / factor of the time, exact along keys. The whole pattern is never held.

    >>> cells, factor, sink = view(trace, 1, size=32)
    >>> cells.shape[0] == trace.config["n_heads"], factor == -(-len(trace) // 32)
    (True, True)

    Raises NotRecorded as `rows` does, ArgumentError for a size below 1.
    """
    source = _source(trace, layer)
    chosen, n = _chosen(source, heads), source.n
    if (size := operator.index(size)) < 1:
        raise ArgumentError(f"size must be at least 1, got {size}.")
    factor = max(1, -(-n // size))
    if factor == 1:
        whole, sink = _tile(source, chosen, slice(None), slice(None))
        return View(whole, 1, sink.mean(-1))
    count = -(-n // factor)
    at = np.minimum(np.arange(1, count + 1) * factor, n) - 1 if sampled else np.arange(n)
    out = np.zeros((len(chosen), count, count), source.dtype)
    sink = np.zeros(len(chosen), np.float64)
    for block in source.blocks(chosen, at):
        if not isinstance(block.scale, float):
            np.multiply(block.values, block.scale, out=block.values)
        row = at[block.rows] // factor
        last = block.first + block.values.shape[-1]
        left, right = block.first // factor, (last - 1) // factor + 1
        edges = np.maximum(np.arange(left, right) * factor - block.first, 0)
        cuts = [0, *(np.flatnonzero(np.diff(row)) + 1), len(row)]
        for start, stop in pairwise(cuts):
            top = np.maximum.reduceat(block.values[:, start:stop].max(1), edges, axis=-1)
            cells = out[block.heads, row[start], left:right]
            np.maximum(cells, top, out=cells)
        sink[block.heads] += block.sink.sum(-1, dtype=np.float64)
    return View(out, factor, sink / max(1, len(at)))


def recompute(
    config: dict,
    layer: int,
    q: np.ndarray,
    k: np.ndarray,
    sinks: np.ndarray,
    dtype: np.dtype,
    heads: Heads = slice(None),
    queries: slice = slice(None),
) -> tuple[np.ndarray, np.ndarray]:
    """Pattern and sink from q (pos head d_head), k (pos kv_head d_head), both after RoPE, and sinks (head).

    `dtype` is the model's: it tells whether scores were rounded to bfloat16 before the softmax.
    """
    source = _Computed(q, _turned(k), sinks, np.dtype(dtype) == ml_dtypes.bfloat16, _window(config, layer))
    return _tile(source, np.arange(q.shape[1])[heads], queries, slice(None))


def no_sinks(config: dict) -> np.ndarray:
    """head: the sink logits of a model that has none; their exponentials are 0."""
    return np.full(config["n_heads"], -np.inf, np.float32)


def edited_points(trace: Trace) -> frozenset[str]:
    """The hook points that the trace's edits touched."""
    return frozenset(point for edit in trace.edits for point in edit.get("points", ()))


def hidden(config: dict, layer: int, at: np.ndarray, n_keys: int) -> np.ndarray:
    """query key: True where the key lies after the query, or outside the window of a sliding layer."""
    key = np.arange(n_keys)
    late = key > at[:, None]
    if config["layer_types"][layer] == "sliding_attention":
        late |= key <= at[:, None] - config["window"]
    return late


# -- where the rows come from -----------------------------------------------------------------------------------------


class _Block(NamedTuple):
    """Some rows: `values * scale` is the pattern on the keys from `first` on; on all others it is zero.

    `values` belongs to whoever holds the block, until the next one is made in the same memory.
    """

    heads: slice  # of those asked for
    rows: slice  # of the queries asked for
    first: int
    values: np.ndarray  # head query key
    scale: np.ndarray | float  # head query 1
    sink: np.ndarray  # head query


class _Recorded:
    """The pattern that the run itself left."""

    def __init__(self, pattern: np.ndarray, sink: np.ndarray):
        self.pattern, self.sink = pattern, sink
        self.n_heads, self.n = pattern.shape[0], pattern.shape[-1]
        self.dtype = _wide(pattern.dtype)

    def blocks(self, heads: np.ndarray, at: np.ndarray) -> Iterator[_Block]:
        step = max(1, min(QUERIES, CELLS // max(1, self.n)))
        for h, head in enumerate(heads):
            for start in range(0, len(at), step):
                here = slice(start, min(start + step, len(at)))
                values = self.pattern[head, at[here]].astype(self.dtype)[None]
                sink = self.sink[head, at[here]].astype(self.dtype)[None]
                yield _Block(slice(h, h + 1), here, 0, values, 1.0, sink)


class _Computed:
    """The same from q (pos head d_head), keys (kv_head d_head key) and sinks (head).

    Heads that share keys share a product. Every operand of a product has one contiguous axis, or numpy would not hand
    it to BLAS.
    """

    def __init__(self, q: np.ndarray, keys: np.ndarray, sinks: np.ndarray, rounded: bool, window: int | None):
        self.q, self.keys, self.window = q, keys, window
        self.rounded = rounded  # the model rounds its scores to bfloat16
        self.n, self.n_heads = q.shape[:2]
        self.dtype = keys.dtype
        self.sinks = sinks.astype(self.dtype)
        self.factor = self.dtype.type(1 / np.sqrt(q.shape[-1]))
        # scaling q is one pass less over what is as long as the text; past a rounding it is the same for powers of two
        self.early = not rounded or np.frexp(self.factor)[0] == 0.5

    def blocks(self, heads: np.ndarray, at: np.ndarray) -> Iterator[_Block]:
        if not len(heads) or not len(at):
            return
        kv = heads // (self.n_heads // len(self.keys))
        cuts = [0, *(np.flatnonzero(np.diff(kv)) + 1), len(heads)]
        memory = np.empty(0, self.dtype)
        span = int(at.max()) + 1  # the keys of the longest row
        for h, h_stop in pairwise(cuts):
            own = slice(int(h), int(h_stop))
            step = max(1, min(QUERIES, CELLS // ((h_stop - h) * span)))
            for start in range(0, len(at), step):
                here = slice(start, min(start + step, len(at)))
                lo, last = int(at[here].min()), int(at[here].max()) + 1
                first = 0 if self.window is None else max(0, lo - self.window + 1)
                shape = int(h_stop - h), here.stop - here.start, last - first
                if memory.size < (size := shape[0] * shape[1] * shape[2]):
                    memory = np.empty(size, self.dtype)
                s = memory[:size].reshape(shape)
                self._products(heads[own], kv[h], at[here], first, last, s)
                self._hide(s, at[here], first)
                scale, sink = _normalise(s, self.sinks[heads[own]], self.rounded, 1 if self.early else self.factor)
                yield _Block(own, here, first, s, scale, sink)

    def _products(self, heads: np.ndarray, kv: int, at: np.ndarray, first: int, last: int, out: np.ndarray) -> None:
        q = self.q[at[None, :], heads[:, None]].astype(self.dtype).reshape(-1, self.q.shape[-1])
        if self.early:
            q *= self.factor
        np.matmul(q, self.keys[kv][:, first:last], out=out.reshape(len(q), -1))

    def _hide(self, s: np.ndarray, at: np.ndarray, first: int) -> None:
        """Writes -inf on keys after the query or outside the window: only the block's two ends can hold any."""
        last, late = first + s.shape[-1], int(at.min()) + 1
        if late < last:
            np.copyto(s[..., late - first :], -np.inf, where=np.arange(late, last) > at[:, None])
        if self.window is not None and (stop := int(at.max()) - self.window + 1) > first:
            np.copyto(s[..., : stop - first], -np.inf, where=np.arange(first, stop) <= at[:, None] - self.window)


def _normalise(s: np.ndarray, sinks: np.ndarray, rounded: bool, factor: float) -> tuple[np.ndarray, np.ndarray]:
    """Turns products (head query key) into exponentials, in place; gives 1 / their sum, and the sink's share of it."""
    n_heads, n_queries, n_keys = s.shape
    flat, sink = s.reshape(-1, n_keys), np.repeat(sinks, n_queries)[:, None]
    scale, share = np.empty_like(sink), np.empty_like(sink)
    step = max(1, PIECE // n_keys)
    for start in range(0, len(flat), step):
        rows = slice(start, start + step)
        x = flat[rows]
        if rounded:
            _round_to_bf16(x)
        if factor != 1:
            x *= factor
        top = np.maximum(x.max(-1, keepdims=True), sink[rows])
        if (np.abs(top) < UNSHIFTED).all():
            top = np.zeros_like(top)
        else:
            x -= top
        np.exp(x, out=x)
        e_sink = np.exp(sink[rows] - top)
        scale[rows] = 1 / (x.sum(-1, keepdims=True) + e_sink)
        share[rows] = e_sink * scale[rows]
    return scale.reshape(n_heads, n_queries, 1), share.reshape(n_heads, n_queries)


def _round_to_bf16(x: np.ndarray) -> None:
    """Each number to the nearest that bfloat16 has, ties to even; in place."""
    if x.dtype != np.float32:
        x[...] = x.astype(ml_dtypes.bfloat16)
        return
    bits = x.view(np.uint32)
    odd = bits >> np.uint32(16)
    odd &= np.uint32(1)
    odd += np.uint32(0x7FFF)
    bits += odd
    bits &= np.uint32(0xFFFF0000)


def _tile(
    source: _Recorded | _Computed, heads: np.ndarray, queries: slice, keys: slice
) -> tuple[np.ndarray, np.ndarray]:
    at, wanted = np.arange(source.n)[queries], range(source.n)[keys]
    if isinstance(source, _Recorded):
        values, sink = source.pattern[:, queries, keys], source.sink[:, queries]
        run = slice(heads[0], heads[-1] + 1) if len(heads) and (np.diff(heads) == 1).all() else heads
        return values[run].astype(source.dtype, copy=False), sink[run].astype(source.dtype, copy=False)
    ends = sorted((wanted[0], wanted[-1])) if len(wanted) else (0, -1)  # min of a range looks at all of it
    left, right = ends[0], ends[1] + 1
    out = np.zeros((len(heads), len(at), right - left), source.dtype)
    sink = np.zeros(out.shape[:2], source.dtype)
    for block in source.blocks(heads, at):
        a, b = max(left, block.first), min(right, block.first + block.values.shape[-1])
        if a < b:
            inside = block.values[..., a - block.first : b - block.first]
            np.multiply(inside, block.scale, out=out[block.heads, block.rows, a - left : b - left])
        sink[block.heads, block.rows] = block.sink
    return (out if wanted.step == 1 else out[..., np.asarray(wanted) - left]), sink


def _source(trace: Trace, layer: int) -> _Recorded | _Computed:
    n_layers = trace.config["n_layers"]
    layer = resolve_layer(layer, n_layers)
    sinkless = trace.config.get("sinks") is False
    if ("pattern", layer) in trace:
        pattern = trace.raw(("pattern", layer))
        return _Recorded(pattern, np.zeros(pattern.shape[:2]) if sinkless else trace.raw(("sink", layer)))
    if edited := _edited(trace, layer, "attn_scores", "sink", "pattern"):
        raise NotRecorded(
            f"this run was edited at {edited}: its pattern does not follow from queries and keys. "
            f"Run again with record='patterns'."
        )
    if ("rot_q", layer) not in trace or ("rot_k", layer) not in trace or not ("sinks" in trace or sinkless):
        raise NotRecorded(
            f"this trace holds no pattern of layer {layer}, and not the queries and keys to recompute it from. "
            f"It holds: {trace.summary()}. Run again with record='attention' (any pattern on demand) or 'patterns'."
        )
    q, keys = _kept(trace, layer)
    sinks = no_sinks(trace.config) if sinkless else trace["sinks"][layer]
    return _Computed(q, keys, sinks, q.dtype == ml_dtypes.bfloat16, _window(trace.config, layer))


def _edited(trace: Trace, layer: int, *points: str) -> str:
    here = edited_points(trace).intersection(f"blocks.{layer % trace.config['n_layers']}.attn.hook_{p}" for p in points)
    return ", ".join(sorted(here))


def _chosen(source: _Recorded | _Computed, heads: Heads) -> np.ndarray:
    everyone = np.arange(source.n_heads)
    if isinstance(heads, slice):
        return everyone[heads]
    return everyone[[resolve_head(head, source.n_heads) for head in heads]]


def _window(config: dict, layer: int) -> int | None:
    return config["window"] if config["layer_types"][layer] == "sliding_attention" else None


def _wide(dtype: np.dtype) -> np.dtype:
    return np.dtype(np.float64 if dtype == np.float64 else np.float32)


def _turned(k: np.ndarray) -> np.ndarray:
    """Keys as the product wants them, kv_head d_head key in fp32 or fp64, from pos kv_head d_head."""
    return np.ascontiguousarray(k.transpose(1, 2, 0), dtype=_wide(k.dtype))


# -- what is kept -----------------------------------------------------------------------------------------------------


class _Kept(NamedTuple):
    alive: weakref.ref[np.ndarray]  # the trace's own keys; when they go, so does the entry
    q: np.ndarray  # pos head d_head, as stored
    keys: np.ndarray  # kv_head d_head key, wide

    @property
    def nbytes(self) -> int:
        return self.q.nbytes + self.keys.nbytes


_layers: OrderedDict[int, _Kept] = OrderedDict()  # by the id of the trace's own array, for as long as that lives
_lock = Lock()  # the weak references' callbacks do without: they run anywhere, and one `pop` is atomic


def _kept(trace: Trace, layer: int) -> tuple[np.ndarray, np.ndarray]:
    """Queries as stored and keys as the product wants them, of one layer; from memory, if the trace still lives."""
    k = trace.raw(("rot_k", layer))
    with _lock:
        found = _layers.get(id(k))
        if found is not None and found.alive() is k:
            _layers.move_to_end(id(k))
            return found.q, found.keys
    q = trace.raw(("rot_q", layer))
    k = trace.raw(("rot_k", layer))  # a large q may have pushed it out of what a trace on disk keeps
    place = id(k)
    new = _Kept(weakref.ref(k, lambda _: _layers.pop(place, None)), q, _turned(k))
    with _lock:
        _layers[place] = new
        _layers.move_to_end(place)
        while len(_layers) > 1 and sum(kept.nbytes for kept in list(_layers.values())) > CACHE:
            try:
                _layers.popitem(last=False)
            except KeyError:  # gone by itself in between
                break
    return new.q, new.keys
