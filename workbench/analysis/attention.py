"""Where the heads look."""

import numpy as np
import xarray as xr

from workbench import patterns
from workbench.errors import NotRecorded
from workbench.traces import Trace


def pattern(trace: Trace, layer: int, head: int | None = None) -> xr.DataArray:
    """The attention pattern of one layer (head query key), or of one head (query key).

    Rows sum to 1 - sink: the rest goes to the head's learned sink, which is `attrs["sink"]` averaged over queries, and
    row by row in `trace["sink", layer]`. A recorded pattern is given as it is; otherwise it is recomputed from queries,
    keys and sinks (record="attention") by the model's own steps.

    >>> wb.pattern(wb.trace("What is 12+30?"), layer=1, head=2).dims
    ('query', 'key')

    Raises NotRecorded if the trace holds neither, or has no such layer or head.
    """
    n_layers, n_heads = trace.config["n_layers"], trace.config["n_heads"]
    if not 0 <= layer < n_layers:
        raise NotRecorded(f"there is no layer {layer}: the trace has layers 0..{n_layers - 1}")
    if head is not None and not 0 <= head < n_heads:
        raise NotRecorded(f"there is no head {head}: a layer has heads 0..{n_heads - 1}")
    rows, sink = patterns.rows(trace, layer, slice(None) if head is None else [head])
    dims, values = ("head", "query", "key"), rows
    if head is not None:
        dims, values = dims[1:], rows[0]
    kind = "sliding" if trace.config["layer_types"][layer] == "sliding_attention" else "full"
    attrs = {"long_name": "attention", "units": "probability", "layer": layer, "kind": kind}
    attrs["sink"] = float(np.mean(sink))
    coords = {"query": np.arange(values.shape[-2]), "key": np.arange(values.shape[-1])}
    return xr.DataArray(values, dims=dims, coords=coords, attrs=attrs, name="pattern")
