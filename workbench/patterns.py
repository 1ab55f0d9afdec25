"""Any attention pattern, exactly, from the queries, keys and sinks that a trace keeps. Numpy only."""

import ml_dtypes
import numpy as np

from workbench.errors import NotRecorded
from workbench.traces import Trace


def rows(
    trace: Trace, layer: int, heads: slice | list[int], queries: slice = slice(None)
) -> tuple[np.ndarray, np.ndarray]:
    """Pattern (head query key) and sink (head query) of some rows of one layer: recorded ones, or recomputed.

    Recomputed ones follow the model's own steps: scores rounded to the model's dtype, softmax over keys and sink in
    fp32 or better. Raises NotRecorded if the trace holds neither the pattern nor queries, keys and sinks.
    """
    if ("pattern", layer) in trace:
        return trace["pattern", layer][heads, queries], trace["sink", layer][heads, queries]
    here = [f"blocks.{layer}.attn.hook_{s}" for s in ("attn_scores", "sink", "pattern")]
    if edited := edited_points(trace).intersection(here):
        raise NotRecorded(
            f"this run was edited at {', '.join(sorted(edited))}: its pattern does not follow from queries and keys. "
            f"Run again with record='patterns'."
        )
    if ("rot_q", layer) not in trace or ("rot_k", layer) not in trace or "sinks" not in trace:
        raise NotRecorded(
            f"this trace holds no pattern of layer {layer}, and not the queries and keys to recompute it from. "
            f"It holds: {trace.summary()}. Run again with record='attention' (any pattern on demand) or 'patterns'."
        )
    stored = trace.stored(f"blocks.{layer}.attn.hook_rot_q").dtype
    return recompute(
        trace.config, layer, trace["rot_q", layer], trace["rot_k", layer], trace["sinks"][layer], stored, heads, queries
    )


def edited_points(trace: Trace) -> frozenset[str]:
    """The hook points that the trace's edits touched."""
    return frozenset(point for edit in trace.edits for point in edit.get("points", ()))


def recompute(
    config: dict,
    layer: int,
    q: np.ndarray,
    k: np.ndarray,
    sinks: np.ndarray,
    dtype: np.dtype,
    heads: slice | list[int] = slice(None),
    queries: slice = slice(None),
) -> tuple[np.ndarray, np.ndarray]:
    """Pattern and sink from q (pos head d_head), k (pos kv_head d_head), both after RoPE, and sinks (head)."""
    n_keys, n_kv, d_head = k.shape
    wanted = np.arange(q.shape[1])[heads]
    at = np.arange(n_keys)[queries]
    own = k[:, wanted // (q.shape[1] // n_kv)].transpose(1, 2, 0)  # head d_head key
    s = q[queries][:, wanted].transpose(1, 0, 2) @ own
    if dtype == ml_dtypes.bfloat16:
        s = s.astype(dtype).astype(np.float32)
    s *= s.dtype.type(1 / np.sqrt(d_head))
    s[:, hidden(config, layer, at, n_keys)] = -np.inf
    b = sinks[wanted].astype(s.dtype)[:, None, None]
    top = np.maximum(s.max(-1, keepdims=True), b)
    e, e_sink = np.exp(s - top), np.exp(b - top)
    total = e.sum(-1, keepdims=True) + e_sink
    return e / total, (e_sink / total)[..., 0]


def hidden(config: dict, layer: int, at: np.ndarray, n_keys: int) -> np.ndarray:
    """query key: True where the key lies after the query, or outside the window of a sliding layer."""
    key = np.arange(n_keys)
    late = key > at[:, None]
    if config["layer_types"][layer] == "sliding_attention":
        late |= key <= at[:, None] - config["window"]
    return late
