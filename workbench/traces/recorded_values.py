"""Checks the numbers of an array that is read from a trace: ids are ids, and what was verified is in its range.

The hash of an array proves that nobody changed it since it was written, not that it was ever right. Ids select entries
of other arrays, so they are checked in every trace. Other numbers may be anything in an edited run, or if the model
computed NaN; they are checked only if the trace says that an identity holds that would fail with such numbers.
"""

import numpy as np

from workbench import hooks
from workbench.errors import TraceCorrupt
from workbench.traces.consistency import axis_size
from workbench.traces.manifest import Manifest

EXPERTS = "blocks.*.mlp.hook_expert_indices"
IDS = {EXPERTS: "expert", "top_ids": "d_vocab", "lens_ids": "d_vocab"}
SLACK = 1 / 64  # for probabilities in bfloat16, which sum to 1 only roughly
FINITE = "logits are finite"
ROWS = "pattern + sink = 1"
ROUTER = "router weights = softmax of the kept logits"
# name -> the identity from which its range follows, and the range
RANGES: dict[str, tuple[str, float, float]] = {
    "entropy": (FINITE, -SLACK, 1e3),
    "top_logprobs": (FINITE, -np.inf, SLACK),
    "lens_logprobs": (FINITE, -np.inf, SLACK),
    "blocks.*.attn.hook_sink": (ROWS, 0, 1 + SLACK),
    "blocks.*.attn.hook_pattern": (ROWS, 0, 1 + SLACK),
    "step_attention": (ROWS, 0, 1 + SLACK),
    "blocks.*.mlp.hook_expert_weights": (ROUTER, 0, 1 + SLACK),
}
LARGEST = float(np.finfo(np.float32).max)
NORMS = ("resid_norm", "attn_out_norm", "mlp_out_norm")


def check_recorded(name: str, array: np.ndarray, manifest: Manifest) -> None:
    """Raises TraceCorrupt if the numbers of a known array cannot be those of a run.

    It takes one or two passes over small arrays and patterns, and none over other hook points.
    """
    point = hooks.point_of(name)
    if not array.size:
        return
    if point in IDS:
        _check_ids(name, array, axis_size(manifest.tensors, manifest.model["config"], IDS[point]), point == EXPERTS)
    elif point == "sinks":
        _check_range(name, array, -LARGEST, LARGEST, "the weights of a model")
    elif point in NORMS:
        if (least := array.min()) < 0:
            raise TraceCorrupt(f"{name!r} has the value {least}, but a norm is never negative")
    elif point == "logprob":  # nothing precedes the first token, so its own is NaN
        if _holds(manifest, FINITE):
            _check_range(name, array[1:], -np.inf, SLACK, f"{FINITE!r}, which the trace says holds")
    elif point in RANGES:
        identity, least, most = RANGES[point]
        if _holds(manifest, identity):
            _check_range(name, array, least, most, f"{identity!r}, which the trace says holds")


def _check_ids(name: str, ids: np.ndarray, count: int | None, distinct: bool) -> None:
    least, most = int(ids.min()), int(ids.max())
    if least < 0 or most >= (2**31 if count is None else count):
        wrong = least if least < 0 else most
        raise TraceCorrupt(f"{name!r} has the id {wrong}; ids are at least 0 and below {count or 2**31}")
    # faster than sorting: few experts are chosen at a position
    if distinct and any((ids[..., n:] == ids[..., :-n]).any() for n in range(1, ids.shape[-1])):
        raise TraceCorrupt(f"{name!r} has the same expert twice at one position")


def _check_range(name: str, array: np.ndarray, least: float, most: float, reason: str) -> None:
    if not array.size or (least == 0 and _within(array, most)):
        return
    low, high = array.min(), array.max()  # NaN if any is NaN
    if not (low >= least and high <= most):
        wrong = high if low >= least else low
        raise TraceCorrupt(f"{name!r} has the value {wrong}, which contradicts {reason}")


def _within(array: np.ndarray, most: float) -> bool:
    """Whether all bits are those of numbers from +0.0 to `most`; for narrow floats, 20 times as fast as comparing.

    The bits of positive floats are ordered as the floats are, and those of negative numbers and NaN come after them.
    """
    unsigned = np.dtype(f"<u{array.dtype.itemsize}")
    limit = np.array([most]).astype(array.dtype).view(unsigned)[0]
    return bool(np.ascontiguousarray(array).view(unsigned).max() <= limit)


def _holds(manifest: Manifest, identity: str) -> bool:
    return any(line["identity"] == identity and line["status"] == "holds" for line in manifest.verification)
