"""Checks the identities that hold in every run of a gpt-oss model, on the recorded values. Numpy only.

For another model, recorded through `workbench.interop`, the config has the differences: no sinks ("sinks": False), the
rule from a router's logits to its weights ("router"), experts that every token uses ("shared_experts").

An identity is checked by a function from the values of one layer to the largest violation, relative to the largest
value involved; None if the values that it needs were not recorded. The same functions check a probe in which everything
is recorded, the trace that is kept, and a trace that is loaded years later.
"""

from collections.abc import Callable, Mapping
from functools import partial

import ml_dtypes
import numpy as np

from workbench import hooks
from workbench.checks import check_type
from workbench.traces import Trace, patterns
from workbench.traces.model_parts import has_sinks
from workbench.traces.trace import own_array

Values = Mapping[str, np.ndarray]  # by short name: "resid_pre", "pattern", …

# fp32: sums of some hundred terms; bf16: 8 bits of mantissa, and a few roundings between the two sides
TOLERANCE = {"float64": 1e-9, "float32": 2e-5, "bfloat16": 5e-2, "float16": 1e-2}


# the rules from the router's logits to the weights of the chosen experts
KEPT_SOFTMAX = "softmax of the kept logits"  # gpt-oss, and every model whose chosen weights sum to 1
SOFTMAX_KEPT = "kept part of the softmax"


def gap(a: np.ndarray, b: np.ndarray) -> float:
    """The largest difference, relative to the largest value of b."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if a.size == 0:
        return 0.0
    return float(np.abs(a - b).max() / max(np.abs(b).max(), 1e-30))


def worst(gaps: list[float]) -> float | None:
    """The largest, NaN if one is NaN; None if there are none."""
    return float(np.max(gaps)) if gaps else None


def writes_add_up(v: Values, layer: int, config: dict) -> float | None:
    """The largest violation of resid_pre + attn_out = resid_mid and resid_mid + mlp_out = resid_post."""
    gaps = []
    for before, write, after in (("resid_pre", "attn_out", "resid_mid"), ("resid_mid", "mlp_out", "resid_post")):
        if before in v and write in v and after in v:
            gaps.append(gap(v[before] + v[write], v[after]))
    return worst(gaps)


def pattern_and_sink_sum_to_one(v: Values, layer: int, config: dict) -> float | None:
    """The largest distance of an attention row plus its sink from 1."""
    if "pattern" not in v or not ("sink" in v or not has_sinks(config)):
        return None
    total = v["pattern"].astype(np.float64).sum(-1) + v.get("sink", 0)
    return gap(total, np.ones_like(total))


def pattern_comes_from_queries_and_keys(v: Values, layer: int, config: dict) -> float | None:
    """The largest difference of softmax(q·k, sink) from the recorded sink mass (and pattern, if recorded)."""
    if not has_sinks(config) and "pattern" in v:
        v = {"sinks": patterns.no_sinks(len(v["pattern"])), "sink": np.zeros(v["pattern"].shape[:2]), **v}
    if not all(name in v for name in ("rot_q", "rot_k", "sinks", "sink")):
        return None
    dtype = v["dtype"].dtype
    gaps = []
    # a few rows are enough: a wrong mask, scale, window or sink changes all of them
    n = len(v["rot_q"])
    for start in sorted({0, n // 2, max(0, n - 8)}):
        at = slice(start, start + 8)
        pattern, sink = patterns.recompute(config, layer, v["rot_q"], v["rot_k"], v["sinks"], dtype, queries=at)
        gaps.append(gap(sink, v["sink"][:, at]))
        if "pattern" in v:
            gaps.append(gap(pattern, v["pattern"][:, at]))
    return worst(gaps)


def sliding_rows_are_zero_beyond_the_window(v: Values, layer: int, config: dict) -> float | None:
    """The largest attention beyond the window of a sliding layer."""
    if "pattern" not in v or config["layer_types"][layer] != "sliding_attention":
        return None
    n = v["pattern"].shape[-1]
    outside = v["pattern"][:, patterns.masked(config, layer, np.arange(n), n)]
    return float(np.abs(outside).max(initial=0.0))


def heads_and_bias_make_attn_out(v: Values, layer: int, config: dict) -> float | None:
    """The largest difference between the sum of head results and bias, and attn_out."""
    if not all(name in v for name in ("result", "b_o", "attn_out")):
        return None
    return gap(v["result"].astype(np.float64).sum(1) + v["b_o"], v["attn_out"])


def router_weights_are_the_softmax_of_the_kept_logits(v: Values, layer: int, config: dict) -> float | None:
    """The largest difference between the recorded expert weights and those that the router's logits give."""
    rule = config.get("router", KEPT_SOFTMAX)
    if rule not in (KEPT_SOFTMAX, SOFTMAX_KEPT):
        return None
    if not all(name in v for name in ("router_logits", "expert_indices", "expert_weights")):
        return None
    logits, chosen = v["router_logits"].astype(np.float64), v["expert_indices"]
    chosen_logits = np.take_along_axis(logits, chosen, -1)
    top = chosen_logits.max(-1, keepdims=True)
    e = np.exp(chosen_logits - top)
    total = e if rule == KEPT_SOFTMAX else np.exp(logits - top)
    share = np.zeros_like(logits)
    np.put_along_axis(share, chosen, e / total.sum(-1, keepdims=True), -1)
    rest = logits.copy()
    np.put_along_axis(rest, chosen, -np.inf, -1)
    overlooked = np.maximum(rest.max(-1) - chosen_logits.min(-1), 0).max()  # a logit above a chosen one
    return worst([gap(v["expert_weights"], share), float(overlooked)])


def weighted_experts_make_mlp_out(v: Values, layer: int, config: dict) -> float | None:
    """The largest difference between the weighted sum of the expert outputs and mlp_out."""
    if config.get("shared_experts") or not all(
        name in v for name in ("expert_out", "expert_indices", "expert_weights", "mlp_out")
    ):
        return None
    share = np.take_along_axis(v["expert_weights"], v["expert_indices"], -1).astype(np.float64)
    return gap(np.einsum("pc,pcd->pd", share, v["expert_out"]), v["mlp_out"])


Check = Callable[[Values, int, dict], float | None]
# identity -> its check, and the values that it compares; an edit at one of them excludes it from the check
BY_LAYER: dict[str, tuple[Check, tuple[str, ...]]] = {
    "residual + writes = next residual": (
        writes_add_up,
        ("resid_pre", "attn_out", "resid_mid", "mlp_out", "resid_post"),
    ),
    "pattern + sink = 1": (pattern_and_sink_sum_to_one, ("pattern", "sink")),
    "pattern = softmax(q·k, sink)": (
        pattern_comes_from_queries_and_keys,
        ("attn_scores", "pattern", "sink"),
    ),
    "sliding rows are zero beyond the window": (sliding_rows_are_zero_beyond_the_window, ("attn_scores", "pattern")),
    "head results + bias = attn_out": (heads_and_bias_make_attn_out, ("result", "attn_out")),
    "router weights = softmax of the kept logits": (
        router_weights_are_the_softmax_of_the_kept_logits,
        ("router_logits", "expert_indices", "expert_weights"),
    ),
    "weighted expert outputs = mlp_out": (
        weighted_experts_make_mlp_out,
        ("expert_indices", "expert_weights", "expert_out", "mlp_out"),
    ),
}


def identity_of(check: Check) -> str:
    """The name of the identity that a function checks."""
    return next(identity for identity, (function, _) in BY_LAYER.items() if function is check)


EMBEDDING = "embedding + all writes = last residual"
LENS = "lens of the last layer = the logits"
FINITE = "logits are finite"
UNHOOKED = "logits equal the unhooked run's"


class Findings:
    """Collects the largest violation of each identity, and makes the list for the manifest."""

    def __init__(self, dtype: str, edited: frozenset[str] = frozenset()):
        self.tolerance = dict.fromkeys([*BY_LAYER, EMBEDDING, LENS], TOLERANCE[dtype])
        self.tolerance |= {FINITE: 0.0, UNHOOKED: 0.0}  # bit for bit
        self.edited = edited  # short names of the hook points that edits touched
        self._worst: dict[str, tuple[float, str]] = {}

    def add(self, identity: str, worst: float | None, where: str) -> None:
        if worst is None:
            return
        worst = float("inf") if np.isnan(worst) else worst
        if identity not in self._worst or worst > self._worst[identity][0]:
            self._worst[identity] = (worst, where)

    def merge(self, other: "Findings") -> None:
        """Includes the violations of another check."""
        for identity, (worst, where) in other._worst.items():
            self.add(identity, worst, where)

    def forget(self, identity: str) -> None:
        """Resets this identity to "not checked"."""
        self._worst.pop(identity, None)

    def add_layer(self, v: Values, layer: int, config: dict, where: str) -> None:
        for identity, (check, involved) in BY_LAYER.items():
            if not self.edited.intersection(involved):
                self.add(identity, check(v, layer, config), f"{where}, layer {layer}")

    def report(self) -> list[dict]:
        """For the manifest: identity, status, max_error, tolerance, reason of each identity."""
        lines = []
        involved = {identity: points for identity, (_, points) in BY_LAYER.items()}
        for identity in [*BY_LAYER, EMBEDDING, LENS, FINITE, UNHOOKED]:
            entry = {
                "identity": identity,
                "status": "not checked",
                "max_error": None,
                "tolerance": self.tolerance[identity],
            }
            if identity in self._worst:
                worst, where = self._worst[identity]
                holds = worst <= self.tolerance[identity]
                finite = np.isfinite(worst)
                entry |= {
                    "status": "holds" if holds else "fails",
                    "max_error": float(f"{worst:.2e}") if finite else None,  # further digits are those of numpy's BLAS
                    "reason": f"worst in {where}" + ("" if finite else ", where it is not finite"),
                }
            elif touched := self.edited.intersection(involved.get(identity, ())):
                entry["reason"] = f"an edit is at {', '.join(sorted(touched))}"
            elif self.edited:
                entry["reason"] = "needs an unedited run, or values that were not recorded"
            else:
                entry["reason"] = "the values that it compares were not recorded"
            lines.append(entry)
        return lines


def empty(dtype: str) -> np.ndarray:
    """An empty array in the model's dtype, from which a check knows the roundings of the model."""
    return np.empty(0, ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)


def verify(trace: Trace, findings: Findings | None = None) -> list[dict]:
    """The identities, checked on a trace's numbers: identity, status, max_error, tolerance, reason of each.

    `max_error` is relative to the largest value involved. No model is loaded, so `wb.verify(wb.load(path))` always
    works. The identities that need the model (its biases, the unhooked run) were checked when the trace was recorded;
    their results are in `trace.verification`.

    >>> [f["status"] for f in wb.verify(trace) if f["identity"] == "router weights = softmax of the kept logits"]
    ['holds']
    """
    check_type("verify", trace, Trace)
    if findings is not None:
        check_type("verify", findings, Findings)
    config, own = trace.config, partial(own_array, trace)
    findings = findings or Findings(trace.manifest.numerics.get("dtype", "float32"), edited_points(trace))
    dtype = empty(trace.manifest.numerics.get("dtype", "float32"))
    shorts = {s for _, involved in BY_LAYER.values() for s in involved} | {"rot_q", "rot_k"}
    sources = {name: trace.source(name) for name in trace.names()}
    for layer in range(config["n_layers"]):
        recorded = {s: hooks.full_name(s, layer) for s in shorts}
        recorded = {s: name for s, name in recorded.items() if name in sources}
        if {sources[name] for name in recorded.values()} == {"live", "replay"}:
            # live and replayed values may come from different expert choices: check each kind on its own
            groups = [{s: n for s, n in recorded.items() if sources[n] == kind} for kind in ("live", "replay")]
        else:
            groups = [recorded]
        for group in groups:
            v = {s: own(name) for s, name in group.items()} | {"dtype": dtype}
            if "sinks" in trace:
                v["sinks"] = own("sinks")[layer]
            findings.add_layer(v, layer, config, "the trace")
    if not findings.edited and all(s in trace for s in ("hook_embed", "attn_out", "mlp_out")):
        last = config["n_layers"] - 1
        if ("resid_post", last) in trace:
            total = own("hook_embed") + own("attn_out").sum(0) + own("mlp_out").sum(0)
            findings.add(EMBEDDING, gap(total, own(("resid_post", last))), "the trace")
    # the lens is replayed and the predictions may be live: they are comparable only if the expert choices agree
    same_routing = not (trace.manifest.replayed_routing or {}).get("different", 0)
    if not findings.edited and same_routing and "lens_logprobs" in trace:
        n = own("lens_logprobs").shape[-1]
        findings.add(LENS, gap(own("lens_logprobs")[-1], own("top_logprobs")[:, :n]), "the trace")
    if "top_logprobs" in trace:
        findings.add(FINITE, 0.0 if np.isfinite(own("top_logprobs")).all() else float("inf"), "the trace")
    return findings.report()


def edited_points(trace: Trace) -> frozenset[str]:
    """The short names of the hook points that the trace's edits touched."""
    return frozenset(map(hooks.short_name, patterns.edited_points(trace)))
