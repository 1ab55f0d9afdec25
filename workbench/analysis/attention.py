"""Attention patterns of a trace: whole, as a band, or pooled for display."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr

from workbench.checks import check_flag, check_indices, check_layer, check_slice, check_type, check_whole, resolve_index
from workbench.errors import SelectionError
from workbench.traces import Trace, patterns
from workbench.traces.labels import TEXTS

Head = int | Sequence[int] | None


def pattern(
    trace: Trace,
    layer: int,
    head: Head = None,
    queries: int | slice | None = None,
    keys: int | slice | None = None,
) -> xr.DataArray:
    """The attention pattern of one layer, as axes (head query key), or of one head (query key).

    A recorded pattern is returned as recorded. Otherwise it is recomputed from the recorded queries, keys and sinks
    (record="attention") with the model's own steps. A row sums to 1 - sink over all keys: the rest of the probability
    goes to the head's learned sink.

    Args:
        trace: the run.
        layer: the layer.
        head: one head, a list of heads, or None for all.
        queries: one position or a slice of positions; None for all. A single position drops the axis `query`.
        keys: the same for keys. The values equal those of the full pattern.

    Returns:
        DataArray (head query key) of probabilities, without the axes for which a single head, query or key was given.
        The texts of the tokens are the coordinates `query_text` and `key_text`. `attrs["sink"]` is the sink
        probability, averaged over these heads and queries; `trace["sink", layer]` has it for each query.
        `attrs["kind"]` is "sliding" or "full".

    >>> trace = wb.trace("What is 12+30?")
    >>> pattern = wb.attention.pattern(trace, layer=1, head=2)
    >>> pattern.dims, pattern["key_text"].values[:2].tolist()
    (('query', 'key'), ['<|start|>', 'system'])
    >>> wb.attention.pattern(trace, layer=1, queries=-1).dims  # attention of the last token, in every head
    ('head', 'key')
    >>> wb.attention.pattern(trace, layer=1, head=2, queries=slice(8, 16), keys=slice(0, 8)).shape
    (8, 8)

    Raises:
        NotRecorded: the trace holds neither the pattern nor what it is recomputed from, or an edit changed those.
        SelectionError: the layer, head, query or key does not exist.
    """
    check_type("pattern", trace, Trace)
    heads, dims = _heads(trace, layer, head)
    query_slice, key_slice = _positions("query", queries, len(trace)), _positions("key", keys, len(trace))
    values, sink = patterns.tile(trace, layer, heads, query_slice, key_slice)
    coords: dict[str, Any] = {
        "head": np.arange(trace.config["n_heads"])[heads],
        "query": np.arange(len(trace))[query_slice],
        "key": np.arange(len(trace))[key_slice],
    }
    texts = np.array(list(trace.str_tokens), object)
    coords |= {TEXTS["query"]: ("query", texts[query_slice]), TEXTS["key"]: ("key", texts[key_slice])}
    dropped = {"head": dims[0] != "head", "query": _is_one(queries), "key": _is_one(keys)}
    array = xr.DataArray(values, coords, ("head", "query", "key"), "pattern", _attrs(trace, layer, sink))
    return array.isel({axis: 0 for axis, single in dropped.items() if single})


def pattern_band(trace: Trace, layer: int, head: Head = None, queries: int | slice | None = None) -> xr.DataArray:
    """The pattern of a sliding-window layer without the zeros outside the window: (head query offset).

    It equals `wb.attention.pattern` on the keys that a query can attend to, in n × window numbers instead of n × n.

    Args:
        trace: the run.
        layer: a layer with a sliding window.
        head: one head (which drops the axis `head`), a list of heads, or None for all.
        queries: one position or a slice of positions; None for all. A single position drops the axis `query`.

    Returns:
        DataArray (head query offset) of probabilities. `offset` is key - query, from 1 - window to 0. Cells that would
        lie before the first token are 0. `attrs` as for `pattern`.

    >>> trace = wb.trace("What is 12+30?")
    >>> band = wb.attention.pattern_band(trace, layer=0, head=2)
    >>> bool(band.sel(query=20, offset=-3) == wb.attention.pattern(trace, layer=0, head=2).sel(query=20, key=17))
    True

    Raises:
        NotRecorded: as for `pattern`; also for a layer without a window, and if an edit may put attention outside it.
        SelectionError: the layer, head or query does not exist.
    """
    check_type("pattern_band", trace, Trace)
    heads, dims = _heads(trace, layer, head)
    query_slice = _positions("query", queries, len(trace))
    band = patterns.band(trace, layer, heads, query_slice)
    width = band.pattern.shape[-1]
    coords = {
        "head": np.arange(trace.config["n_heads"])[heads],
        "query": np.arange(len(trace))[query_slice],
        "offset": np.arange(1 - width, 1),
    }
    attrs = _attrs(trace, layer, band.sink)
    array = xr.DataArray(band.pattern, coords, ("head", "query", "offset"), "pattern", attrs)
    dropped = {"head": dims[0] != "head", "query": _is_one(queries)}
    return array.isel({axis: 0 for axis, single in dropped.items() if single})


def pattern_pooled(
    trace: Trace, layer: int, head: Head = None, size: int = 512, *, sampled: bool = False
) -> xr.DataArray:
    """A small version of a pattern for display, as axes (head query key): at most size × size cells, each a maximum.

    Cells take the maximum because a mean would hide a single strongly attended token. All heads at size 64 serve as
    the thumbnails of a layer.

    Args:
        trace: the run.
        layer: the layer.
        head: one head (which drops the axis `head`), a list of heads, or None for all.
        size: the largest number of cells along each axis.
        sampled: use only the last query of each cell, which takes 1 / factor of the time.

    Returns:
        DataArray (head query key) of probabilities. The coordinates are the first token of each cell.
        `attrs["factor"]` is how many tokens a cell covers along each axis. `attrs["downsampled"]` is "max", "sampled",
        or "none" if every token has its own cell.

    >>> trace = wb.trace("What is 12+30?")
    >>> view = wb.attention.pattern_pooled(trace, layer=1, head=2, size=16)
    >>> view.attrs["downsampled"], bool(view.max() == wb.attention.pattern(trace, layer=1, head=2).max())
    ('max', True)

    Raises:
        NotRecorded: as for `pattern`.
        ArgumentError: `size` is below 1.
        SelectionError: the layer or head does not exist.
    """
    check_type("pattern_pooled", trace, Trace)
    size, sampled = check_whole("size", size, 1), check_flag("sampled", sampled)
    heads, dims = _heads(trace, layer, head)
    view = patterns.view(trace, layer, heads, size, sampled=sampled)
    first = np.arange(view.cells.shape[-1]) * view.factor
    coords = {"head": np.arange(trace.config["n_heads"])[heads], "query": first, "key": first}
    downsampled = "none" if view.factor == 1 else "sampled" if sampled else "max"
    attrs = _attrs(trace, layer, view.sink) | {"downsampled": downsampled, "factor": view.factor}
    array = xr.DataArray(view.cells, coords, ("head", "query", "key"), "pattern", attrs)
    return array if dims[0] == "head" else array.isel(head=0)


def _attrs(trace: Trace, layer: int, sink: np.ndarray) -> dict[str, Any]:
    kind = "sliding" if trace.config["layer_types"][layer] == "sliding_attention" else "full"
    return {
        "long_name": "attention",
        "units": "probability",
        "layer": int(layer),
        "kind": kind,
        "sink": float(np.mean(sink)),
    }


def _heads(trace: Trace, layer: int, head: Head) -> tuple[slice | list[int], tuple[str, ...]]:
    """The heads as a slice or list, and the leading axes of the returned array."""
    check_layer(layer, trace.config["n_layers"])
    if head is None:
        return slice(None), ("head", "query")
    single = not isinstance(head, Sequence | np.ndarray) or np.ndim(head) == 0
    heads = check_indices("head", [head] if single else head, trace.config["n_heads"])
    return heads, ("query",) if single else ("head", "query")


def _is_one(positions: int | slice | None) -> bool:
    return positions is not None and not isinstance(positions, slice)


def _positions(name: str, requested: int | slice | None, n: int) -> slice:
    if requested is None:
        return slice(None)
    if isinstance(requested, slice):
        requested = check_slice(name, requested)
        if not range(n)[requested]:
            raise SelectionError(f"{name} {requested} selects no position; positions are between 0 and {n - 1}.")
        return requested
    position = resolve_index(name, requested, n)
    return slice(position, position + 1)
