"""Computes any attention pattern exactly from the recorded queries, keys and sinks of a trace. Numpy only.

A pattern is computed in blocks of queries, each with only the keys that they may attend to. So the cost of a sliding
layer grows with its window, and no array of size query x key is held except the result. There are four functions:

    rows, tile      some heads, some queries, all or some keys
    band            a sliding layer without its zeros
    view            one or all heads, max-pooled to a picture

All of them use the recorded pattern if there is one. The keys of a few layers are cached in fp32, because reading,
verifying and widening them takes longer than the product. All functions may be called from several threads.
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
from workbench.traces.model_parts import has_sinks, is_gpt_oss
from workbench.traces.recorded_names import contents
from workbench.traces.trace import Trace, own_raw

CACHE_BYTES = 512 << 20  # of queries and keys; the layer that was used last is always cached
MAX_BLOCK_QUERIES = 128
SOFTMAX_SCORES = 1 << 17  # scores per softmax call: 512 KB, which fit into a core's own cache
UNSHIFTED = 40  # rows whose largest |score| is below this need no shift: e**40 does not over- or underflow
MAX_EMPTY_BAND = 1 << 28  # numbers of a band that is wider than the text, so that most of it is zero
MAX_BLOCK_SCORES = 1 << 20  # 4 MB, which fit into a cache; a single query may have more

Heads = slice | Sequence[int]


# -- the public functions ---------------------------------------------------------------------------------------------


def rows(trace: Trace, layer: int, heads: Heads, queries: slice = slice(None)) -> tuple[np.ndarray, np.ndarray]:
    """Pattern (head query key) and sink (head query) of some rows of one layer: recorded ones, or recomputed.

    Recomputed rows follow the model's own steps: scores rounded to the model's dtype, softmax over keys and sink in
    fp32 or better. Rows sum to 1 - sink.

    >>> pattern, sink = rows(trace, 1, [2], slice(-1, None))
    >>> pattern.shape == (1, 1, len(trace)), bool(abs(pattern.sum() + sink.sum() - 1) < 1e-6)
    (True, True)

    Raises NotRecorded if the trace has neither the pattern nor queries, keys and sinks, or if the run was edited at
    the scores, the pattern or the sink; SelectionError if there is no such layer or head.
    """
    return tile(trace, layer, heads, queries, slice(None))


def tile(
    trace: Trace, layer: int, heads: Heads, queries: slice, keys: slice = slice(None)
) -> tuple[np.ndarray, np.ndarray]:
    """Pattern (head query key) of the selected queries and keys, and sink (head query) of the queries.

    It is a piece of the whole pattern: each row was divided by its sum over all keys, not only the selected ones.

    >>> tile(trace, 1, [2, 3], slice(10, 14), slice(0, 8))[0].shape
    (2, 4, 8)

    Raises NotRecorded as `rows` does.
    """
    source = _source(trace, layer)
    return _tile(source, _selected_heads(source, heads), queries, keys)


class Band(NamedTuple):
    """The window of a sliding layer: `pattern[h, i, j]` is the mass on key `first[i] + j`, 0 where that is below 0."""

    pattern: np.ndarray  # head query window
    first: np.ndarray  # query: the first key of the row's window; negative for early queries
    sink: np.ndarray  # head query


def band(trace: Trace, layer: int, heads: Heads, queries: slice = slice(None)) -> Band:
    """The pattern of a sliding layer without its zeros: each row's last `window` keys, the query itself at the end.

    At 16,384 tokens, the band of a head has 8 MB instead of 1 GB.

    >>> b = band(trace, 0, [2], slice(20, 24))
    >>> b.pattern.shape == (1, 4, trace.config["window"]), bool(b.first[0] == 20 - trace.config["window"] + 1)
    (True, True)

    Raises NotRecorded as `rows` does, and also if the layer has no window, or if an edit may put mass outside it.
    """
    source = _source(trace, layer)
    window = trace.config["window"] if trace.config["layer_types"][layer] == "sliding_attention" else None
    if window is None:
        sliding = [i for i, kind in enumerate(trace.config["layer_types"]) if kind == "sliding_attention"]
        raise NotRecorded(f"layer {layer} attends to all keys, so it has no band; the sliding layers are {sliding}")
    if edited := _edited(trace, layer, "attn_scores", "pattern"):
        raise NotRecorded(
            f"this run was edited at {edited}, which may put attention outside the window: use rows or tile"
        )
    selected, at = _selected_heads(source, heads), np.arange(source.n)[queries]
    if window > source.n and len(selected) * len(at) * window > MAX_EMPTY_BAND:
        raise NotRecorded(
            f"the window of layer {layer} has {window:,} keys and this text only {source.n:,}: use rows or tile"
        )
    out = np.zeros((len(selected), len(at), window), source.dtype)
    sink = np.zeros(out.shape[:2], source.dtype)
    first = at - window + 1
    for block in source.blocks(selected, at):
        place = first[block.rows, None] + np.arange(window)
        inside = np.take_along_axis(block.values, np.maximum(place - block.first, 0)[None], -1)
        np.multiply(inside, block.scale, out=out[block.heads, block.rows], where=place >= 0)
        sink[block.heads, block.rows] = block.sink
    return Band(out, first, sink)


class View(NamedTuple):
    """A max-pooled pattern: cell (i, j) is the largest value of queries and keys from `factor * i`, `factor * j`."""

    cells: np.ndarray  # head query_cell key_cell
    factor: int  # queries, and keys, in a cell; the last cell may have fewer
    sink: np.ndarray  # head: mean over the queries that were used


def view(trace: Trace, layer: int, heads: Heads = slice(None), size: int = 512, *, sampled: bool = False) -> View:
    """Whole heads max-pooled to at most size x size cells, each the exact maximum of its queries and keys.

    A mean would hide single tokens with much attention. `sampled` uses only the last query of each cell: a preview that
    takes 1 / factor of the time, exact along keys. The whole pattern is never in memory.

    >>> cells, factor, sink = view(trace, 1, size=32)
    >>> cells.shape[0] == trace.config["n_heads"], factor == -(-len(trace) // 32)
    (True, True)

    Raises NotRecorded as `rows` does, ArgumentError for a size below 1.
    """
    source = _source(trace, layer)
    selected, n = _selected_heads(source, heads), source.n
    if (size := operator.index(size)) < 1:
        raise ArgumentError(f"size must be at least 1, got {size}.")
    factor = max(1, -(-n // size))
    if factor == 1:
        whole, sink = _tile(source, selected, slice(None), slice(None))
        return View(whole, 1, sink.mean(-1))
    count = -(-n // factor)
    at = np.minimum(np.arange(1, count + 1) * factor, n) - 1 if sampled else np.arange(n)
    out = np.zeros((len(selected), count, count), source.dtype)
    sink = np.zeros(len(selected), np.float64)
    for block in source.blocks(selected, at):
        if not isinstance(block.scale, float):
            np.multiply(block.values, block.scale, out=block.values)
        row = at[block.rows] // factor
        last = block.first + block.values.shape[-1]
        start_cell, stop_cell = block.first // factor, (last - 1) // factor + 1
        edges = np.maximum(np.arange(start_cell, stop_cell) * factor - block.first, 0)
        cuts = [0, *(np.flatnonzero(np.diff(row)) + 1), len(row)]
        for start, stop in pairwise(cuts):
            top = np.maximum.reduceat(block.values[:, start:stop].max(1), edges, axis=-1)
            cells = out[block.heads, row[start], start_cell:stop_cell]
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

    `dtype` is the model's: with bfloat16, scores are rounded to it before the softmax.
    """
    source = _Computed(q, _transposed(k), sinks, np.dtype(dtype) == ml_dtypes.bfloat16, _window(config, layer))
    return _tile(source, np.arange(q.shape[1])[heads], queries, slice(None))


def no_sinks(n_heads: int) -> np.ndarray:
    """The sink logits (head) of a model without sinks: -inf, so that their exponentials are 0."""
    return np.full(n_heads, -np.inf, np.float32)


def edited_points(trace: Trace) -> frozenset[str]:
    """The hook points that the trace's edits touched, by full name."""
    return frozenset(point for edit in trace.edits for point in edit.get("points", ()))


def masked(config: dict, layer: int, at: np.ndarray, n_keys: int) -> np.ndarray:
    """The mask (query key): True where the key is after the query, or outside the window of a sliding layer."""
    key = np.arange(n_keys)
    late = key > at[:, None]
    if config["layer_types"][layer] == "sliding_attention":
        late |= key <= at[:, None] - config["window"]
    return late


# -- sources of rows --------------------------------------------------------------------------------------------------


class _Block(NamedTuple):
    """Some rows: `values * scale` is the pattern on the keys from `first` on; on all others it is zero.

    `values` may be changed. It is valid until the next block, which uses the same memory.
    """

    heads: slice  # within the selected heads
    rows: slice  # within the selected queries
    first: int
    values: np.ndarray  # head query key
    scale: np.ndarray | float  # head query 1
    sink: np.ndarray  # head query


class _Recorded:
    """Blocks of a recorded pattern."""

    def __init__(self, pattern: np.ndarray, sink: np.ndarray):
        self.pattern, self.sink = pattern, sink
        self.n_heads, self.n = pattern.shape[0], pattern.shape[-1]
        self.dtype = _wide(pattern.dtype)

    def blocks(self, heads: np.ndarray, at: np.ndarray) -> Iterator[_Block]:
        step = max(1, min(MAX_BLOCK_QUERIES, MAX_BLOCK_SCORES // max(1, self.n)))
        for h, head in enumerate(heads):
            for start in range(0, len(at), step):
                here = slice(start, min(start + step, len(at)))
                values = self.pattern[head, at[here]].astype(self.dtype)[None]
                sink = self.sink[head, at[here]].astype(self.dtype)[None]
                yield _Block(slice(h, h + 1), here, 0, values, 1.0, sink)


class _Computed:
    """Blocks of a pattern that is computed from q (pos head d_head), keys (kv_head d_head key) and sinks (head).

    Heads that share keys share a product. Every operand of a product has one contiguous axis; otherwise numpy would not
    use BLAS.
    """

    def __init__(self, q: np.ndarray, keys: np.ndarray, sinks: np.ndarray, rounded: bool, window: int | None):
        self.q, self.keys, self.window = q, keys, window
        self.rounded = rounded  # the model rounds its scores to bfloat16
        self.n, self.n_heads = q.shape[:2]
        self.dtype = keys.dtype
        self.sinks = sinks.astype(self.dtype)
        self.factor = self.dtype.type(1 / np.sqrt(q.shape[-1]))
        # scaling q instead of the scores saves a pass over all keys; with rounding, it is equal only for powers of two
        self.scale_queries = not rounded or np.frexp(self.factor)[0] == 0.5

    def blocks(self, heads: np.ndarray, at: np.ndarray) -> Iterator[_Block]:
        if not len(heads) or not len(at):
            return
        kv = heads // (self.n_heads // len(self.keys))
        cuts = [0, *(np.flatnonzero(np.diff(kv)) + 1), len(heads)]
        memory = np.empty(0, self.dtype)
        n_keys = int(at.max()) + 1  # of the longest row
        for h, h_stop in pairwise(cuts):
            group = slice(int(h), int(h_stop))
            step = max(1, min(MAX_BLOCK_QUERIES, MAX_BLOCK_SCORES // ((h_stop - h) * n_keys)))
            for start in range(0, len(at), step):
                here = slice(start, min(start + step, len(at)))
                lo, last = int(at[here].min()), int(at[here].max()) + 1
                first = 0 if self.window is None else max(0, lo - self.window + 1)
                shape = int(h_stop - h), here.stop - here.start, last - first
                if memory.size < (size := shape[0] * shape[1] * shape[2]):
                    memory = np.empty(size, self.dtype)
                s = memory[:size].reshape(shape)
                self._products(heads[group], kv[h], at[here], first, last, s)
                self._hide(s, at[here], first)
                scale, sink = _normalize(
                    s, self.sinks[heads[group]], self.rounded, 1 if self.scale_queries else self.factor
                )
                yield _Block(group, here, first, s, scale, sink)

    def _products(self, heads: np.ndarray, kv: int, at: np.ndarray, first: int, last: int, out: np.ndarray) -> None:
        q = self.q[at[None, :], heads[:, None]].astype(self.dtype).reshape(-1, self.q.shape[-1])
        if self.scale_queries:
            q *= self.factor
        np.matmul(q, self.keys[kv][:, first:last], out=out.reshape(len(q), -1))

    def _hide(self, s: np.ndarray, at: np.ndarray, first: int) -> None:
        """Writes -inf on keys after the query or outside the window; they can only be at the two ends of the block."""
        last, late = first + s.shape[-1], int(at.min()) + 1
        if late < last:
            np.copyto(s[..., late - first :], -np.inf, where=np.arange(late, last) > at[:, None])
        if self.window is not None and (stop := int(at.max()) - self.window + 1) > first:
            np.copyto(s[..., : stop - first], -np.inf, where=np.arange(first, stop) <= at[:, None] - self.window)


def _normalize(s: np.ndarray, sinks: np.ndarray, rounded: bool, factor: float) -> tuple[np.ndarray, np.ndarray]:
    """1 / the row sums, and the sink's share. Replaces the scores (head query key) by exponentials, in place."""
    n_heads, n_queries, n_keys = s.shape
    flat, sink = s.reshape(-1, n_keys), np.repeat(sinks, n_queries)[:, None]
    scale, share = np.empty_like(sink), np.empty_like(sink)
    step = max(1, SOFTMAX_SCORES // n_keys)
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
    """Rounds each number to the nearest bfloat16, ties to even, in place."""
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
    at, key_range = np.arange(source.n)[queries], range(source.n)[keys]
    if isinstance(source, _Recorded):
        values, sink = source.pattern[:, queries, keys], source.sink[:, queries]
        run = slice(heads[0], heads[-1] + 1) if len(heads) and (np.diff(heads) == 1).all() else heads
        return values[run].astype(source.dtype, order="C"), sink[run].astype(source.dtype, order="C")  # copies
    ends = sorted((key_range[0], key_range[-1])) if len(key_range) else (0, -1)  # min(range) would visit every element
    first_key, stop_key = ends[0], ends[1] + 1
    out = np.zeros((len(heads), len(at), stop_key - first_key), source.dtype)
    sink = np.zeros(out.shape[:2], source.dtype)
    for block in source.blocks(heads, at):
        a, b = max(first_key, block.first), min(stop_key, block.first + block.values.shape[-1])
        if a < b:
            inside = block.values[..., a - block.first : b - block.first]
            np.multiply(inside, block.scale, out=out[block.heads, block.rows, a - first_key : b - first_key])
        sink[block.heads, block.rows] = block.sink
    return (out if key_range.step == 1 else out[..., np.asarray(key_range) - first_key]), sink


def _source(trace: Trace, layer: int) -> _Recorded | _Computed:
    n_layers = trace.config["n_layers"]
    layer = resolve_layer(layer, n_layers)
    sinkless = not has_sinks(trace.config)
    if ("pattern", layer) in trace:
        pattern = own_raw(trace, ("pattern", layer))
        return _Recorded(pattern, np.zeros(pattern.shape[:2]) if sinkless else own_raw(trace, ("sink", layer)))
    if edited := _edited(trace, layer, "attn_scores", "sink", "pattern"):
        raise NotRecorded(
            f"this run was edited at {edited}, so its pattern cannot be computed from queries and keys. "
            f"Run again with record='patterns'."
        )
    if ("rot_q", layer) not in trace or ("rot_k", layer) not in trace or not ("sinks" in trace or sinkless):
        raise NotRecorded(
            f"this trace has neither the pattern of layer {layer} nor the queries and keys to compute it from. "
            f"It contains: {contents(trace.manifest)}. Run again with {_record_option(trace)}."
        )
    q, keys = _queries_and_keys(trace, layer)
    sinks = no_sinks(q.shape[1]) if sinkless else trace["sinks"][layer]
    return _Computed(q, keys, sinks, q.dtype == ml_dtypes.bfloat16, _window(trace.config, layer))


def _record_option(trace: Trace) -> str:
    """What to record for the patterns: they follow from rotated queries and keys, which not every model has."""
    if is_gpt_oss(trace.config) or any(name.endswith("attn.hook_rot_q") for name in trace.names()):
        return "record='attention' (any pattern on demand) or 'patterns'"
    return "record='patterns'"


def _edited(trace: Trace, layer: int, *points: str) -> str:
    here = edited_points(trace).intersection(f"blocks.{layer % trace.config['n_layers']}.attn.hook_{p}" for p in points)
    return ", ".join(sorted(here))


def _selected_heads(source: _Recorded | _Computed, heads: Heads) -> np.ndarray:
    all_heads = np.arange(source.n_heads)
    if isinstance(heads, slice):
        return all_heads[heads]
    return all_heads[[resolve_head(head, source.n_heads) for head in heads]]


def _window(config: dict, layer: int) -> int | None:
    return config["window"] if config["layer_types"][layer] == "sliding_attention" else None


def _wide(dtype: np.dtype) -> np.dtype:
    return np.dtype(np.float64 if dtype == np.float64 else np.float32)


def _transposed(k: np.ndarray) -> np.ndarray:
    """Keys (kv_head d_head key) in fp32 or fp64, contiguous for the product, from k (pos kv_head d_head)."""
    return np.ascontiguousarray(k.transpose(1, 2, 0), dtype=_wide(k.dtype))


# -- the cache --------------------------------------------------------------------------------------------------------


class _CachedLayer(NamedTuple):
    source_keys: weakref.ref[np.ndarray]  # the trace's own array; the entry is removed when it is freed
    q: np.ndarray  # pos head d_head, as stored
    keys: np.ndarray  # kv_head d_head key, wide

    @property
    def nbytes(self) -> int:
        return self.q.nbytes + self.keys.nbytes


_layers: OrderedDict[int, _CachedLayer] = OrderedDict()  # by the id of the trace's own array, while that exists
_lock = Lock()  # not used by the weak references' callbacks: they run in any thread, and one `pop` is atomic


def _queries_and_keys(trace: Trace, layer: int) -> tuple[np.ndarray, np.ndarray]:
    """Queries as stored and transposed keys of one layer, from the cache if they are in it."""
    k = own_raw(trace, ("rot_k", layer))
    with _lock:
        cached = _layers.get(id(k))
        if cached is not None and cached.source_keys() is k:
            _layers.move_to_end(id(k))
            return cached.q, cached.keys
    q = own_raw(trace, ("rot_q", layer))
    k = own_raw(trace, ("rot_k", layer))  # a large q may have evicted it from the cache of a trace on disk
    key = id(k)
    new = _CachedLayer(weakref.ref(k, lambda _: _layers.pop(key, None)), q, _transposed(k))
    with _lock:
        _layers[key] = new
        _layers.move_to_end(key)
        while len(_layers) > 1 and sum(layer.nbytes for layer in list(_layers.values())) > CACHE_BYTES:
            try:
                _layers.popitem(last=False)
            except KeyError:  # the last entry was removed in between
                break
    return new.q, new.keys
