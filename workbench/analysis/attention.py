"""Where the heads look."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr

from workbench.checks import check_head, check_layer, resolve_index
from workbench.errors import SelectionError
from workbench.traces import Trace, patterns

Head = int | Sequence[int] | None


def pattern(
    trace: Trace,
    layer: int,
    head: Head = None,
    queries: int | slice | None = None,
    keys: int | slice | None = None,
) -> xr.DataArray:
    """The attention pattern of one layer (head query key), or of one head (query key); or a piece of it.

    `head` may be a list of heads. `queries` and `keys` are slices of positions, or one position, whose axis then goes:
    any piece is exactly that piece of the whole. Rows over all keys sum to 1 - sink: the rest goes to the head's
    learned sink, which is `attrs["sink"]` averaged over these queries, and row by row in `trace["sink", layer]`.
    A recorded pattern is given as it is; otherwise it is recomputed from queries, keys and sinks (record="attention")
    by the model's own steps.

    >>> trace = wb.trace("What is 12+30?")
    >>> wb.attention.pattern(trace, layer=1, head=2).dims
    ('query', 'key')
    >>> wb.attention.pattern(trace, layer=1, queries=-1).dims  # what the last token looks at, in every head
    ('head', 'key')
    >>> wb.attention.pattern(trace, layer=1, head=2, queries=slice(8, 16), keys=slice(0, 8)).shape
    (8, 8)

    Raises NotRecorded if the trace holds neither, or if the run was edited where it matters; SelectionError if there
    is no such layer, head, query or key.
    """
    heads, dims = _heads(trace, layer, head)
    at, seen = _positions("query", queries, len(trace)), _positions("key", keys, len(trace))
    values, sink = patterns.tile(trace, layer, heads, at, seen)
    coords = {
        "head": np.arange(trace.config["n_heads"])[heads],
        "query": np.arange(len(trace))[at],
        "key": np.arange(len(trace))[seen],
    }
    one = {"head": dims[0] != "head", "query": _is_one(queries), "key": _is_one(keys)}
    array = xr.DataArray(values, coords, ("head", "query", "key"), "pattern", _attrs(trace, layer, sink))
    return array.isel({axis: 0 for axis, single in one.items() if single})


def pattern_band(trace: Trace, layer: int, head: Head = None, queries: int | slice | None = None) -> xr.DataArray:
    """The pattern of a sliding layer without its zeros: (query offset) of one head, (head query offset) of several.

    `offset` is key - query, from 1 - window to 0; cells before the first token are 0. Equal to `wb.attention.pattern`
    on the keys that a query may see, and n x window instead of n x n.

    >>> trace = wb.trace("What is 12+30?")
    >>> band = wb.attention.pattern_band(trace, layer=0, head=2)
    >>> bool(band.sel(query=20, offset=-3) == wb.attention.pattern(trace, layer=0, head=2).sel(query=20, key=17))
    True

    Raises NotRecorded as `wb.attention.pattern` does, for a layer without a window, and if an edit may reach outside of
    it.
    """
    heads, dims = _heads(trace, layer, head)
    at = _positions("query", queries, len(trace))
    band = patterns.band(trace, layer, heads, at)
    width = band.pattern.shape[-1]
    coords = {
        "head": np.arange(trace.config["n_heads"])[heads],
        "query": np.arange(len(trace))[at],
        "offset": np.arange(1 - width, 1),
    }
    attrs = _attrs(trace, layer, band.sink)
    array = xr.DataArray(band.pattern, coords, ("head", "query", "offset"), "pattern", attrs)
    one = {"head": dims[0] != "head", "query": _is_one(queries)}
    return array.isel({axis: 0 for axis, single in one.items() if single})


def pattern_pooled(
    trace: Trace, layer: int, head: Head = None, size: int = 512, *, sampled: bool = False
) -> xr.DataArray:
    """A picture of one head (query key), or of several (head query key): size x size cells at most, each the maximum.

    The maximum, because a mean would hide the one token that one looks for. The coordinates are the first token of
    each cell; `attrs["factor"]` is how many tokens a cell covers along each axis, `attrs["downsampled"]` is "max",
    "none" if every token has its own cell, or "sampled": with `sampled=True` only the last query of each cell is
    looked at, which takes 1 / factor of the time. All heads at size 64 are the thumbnails of a layer.

    >>> trace = wb.trace("What is 12+30?")
    >>> view = wb.attention.pattern_pooled(trace, layer=1, head=2, size=16)
    >>> view.attrs["downsampled"], bool(view.max() == wb.attention.pattern(trace, layer=1, head=2).max())
    ('max', True)

    Raises NotRecorded as `wb.attention.pattern` does, ArgumentError for a size below 1.
    """
    heads, dims = _heads(trace, layer, head)
    view = patterns.view(trace, layer, heads, size, sampled=sampled)
    first = np.arange(view.cells.shape[-1]) * view.factor
    coords = {"head": np.arange(trace.config["n_heads"])[heads], "query": first, "key": first}
    how = "none" if view.factor == 1 else "sampled" if sampled else "max"
    attrs = _attrs(trace, layer, view.sink) | {"downsampled": how, "factor": view.factor}
    array = xr.DataArray(view.cells, coords, ("head", "query", "key"), "pattern", attrs)
    return array if dims[0] == "head" else array.isel(head=0)


def _attrs(trace: Trace, layer: int, sink: np.ndarray) -> dict[str, Any]:
    kind = "sliding" if trace.config["layer_types"][layer] == "sliding_attention" else "full"
    return {
        "long_name": "attention",
        "units": "probability",
        "layer": layer,
        "kind": kind,
        "sink": float(np.mean(sink)),
    }


def _heads(trace: Trace, layer: int, head: Head) -> tuple[slice | list[int], tuple[str, ...]]:
    """The heads as a slice or list, and the axes of what comes back."""
    check_layer(layer, trace.config["n_layers"])
    if head is None:
        return slice(None), ("head", "query")
    single = not isinstance(head, Sequence | np.ndarray)
    several = [head] if single else head
    heads = [check_head(h, trace.config["n_heads"]) for h in several]  # pyright: ignore[reportGeneralTypeIssues]
    return heads, ("query",) if single else ("head", "query")


def _is_one(positions: int | slice | None) -> bool:
    return positions is not None and not isinstance(positions, slice)


def _positions(what: str, wanted: int | slice | None, n: int) -> slice:
    if wanted is None:
        return slice(None)
    if isinstance(wanted, slice):
        if not range(n)[wanted]:
            raise SelectionError(f"{what} {wanted} selects no position: they are between 0 and {n - 1}.")
        return wanted
    at = resolve_index(what, wanted, n)
    return slice(at, at + 1)
