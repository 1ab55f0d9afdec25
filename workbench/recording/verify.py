"""Verifies a recording: checks the identities on a probe of the model and on the recorded numbers."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from workbench import hooks
from workbench.model.arrays import exact
from workbench.recording.source import Source, batch_of
from workbench.taps import Tap
from workbench.traces import Trace, verification

PROBE = "the probe"
LAST = slice(-16, None)  # positions where the lens is compared with the logits; they depend on all earlier ones


@dataclass
class Probe:
    """The result of a short run of a model with a tap at every hook point."""

    findings: verification.Findings
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)  # of each hook point, without the batch axis
    dtypes: dict[str, torch.dtype] = field(default_factory=dict)
    # for other models than gpt-oss: rule -> its largest difference in each layer
    router_rules: dict[str, list[float]] = field(default_factory=dict)
    starts_from_embedding: bool = False  # whether the first layer's input is the embedding alone


def verify(source: Source, trace: Trace) -> list[dict]:
    """The identities, checked on the trace and on a probe of the model with every hook point."""
    findings = verification.Findings(source.dtype, verification.edited_points(trace))
    if not source.edits and trace.manifest.status == "complete":
        findings.merge(probe(source, trace.tokens).findings)
    return verification.verify(trace, findings)


def probe(source: Source, tokens: Sequence[int]) -> Probe:
    """The Probe of a source: a short run with a tap at every hook point, and one without; both must give the same bits.

    It is stored in the source and reused.
    """
    if source.probed is not None:
        return source.probed
    batch, at = batch_of(source.probe_text(tokens)), source.probe_logits
    prober = Prober(source)
    with torch.no_grad():
        untapped = source.run(batch, logits_at=at)
        tapped = source.run(batch, prober, logits_at=at)
        lens = None
        if source.read_out is not None and prober.last is not None:
            lens = source.read_out(prober.last[:, LAST])
    findings = prober.probe.findings
    findings.add(verification.FINITE, 0.0 if bool(tapped.isfinite().all()) else float("inf"), PROBE)
    if not source.replays:
        findings.add(verification.UNHOOKED, verification.gap(exact(tapped), exact(untapped)), PROBE)
    if lens is not None:
        findings.add(verification.LENS, verification.gap(exact(lens), exact(tapped[:, LAST])), PROBE)
    source.learn(prober.probe)
    return prober.probe


class Prober(Tap):
    """Records every hook point, and checks each layer as soon as it is complete: one layer is in memory at a time."""

    def __init__(self, source: Source):
        self.source = source
        self.probe = Probe(verification.Findings(source.dtype))
        self.layer: dict[str, np.ndarray] = {}  # values of the current layer, by short name
        self.embed: np.ndarray | None = None
        self.total: np.ndarray | None = None  # embedding + all writes so far
        self.last: Tensor | None = None  # residual stream

    def wants(self, name: str) -> bool:
        return name != "hook_logits"

    def __call__(self, name: str, x: Tensor, offset: int = 0) -> Tensor:
        self.probe.shapes[name], self.probe.dtypes[name] = tuple(x.shape[1:]), x.dtype
        if name == "hook_logits":
            return x
        a = exact(x[0]) if x.is_floating_point() else x[0].detach().cpu().numpy()
        short, layer = hooks.short_name(name), hooks.layer_of(name)
        self.layer[short] = a
        if short == "embed":
            self.embed, self.total = a, a.astype(np.float64)
        if short in ("attn_out", "mlp_out") and self.total is not None:
            self.total = self.total + a.astype(np.float64)
        if short == "resid_pre" and layer == 0:
            self.probe.starts_from_embedding = self.embed is not None and np.array_equal(self.embed, a)
        if short == "resid_post":
            assert layer is not None
            self._check(layer)
            self.last = x
        return x

    def _check(self, layer: int) -> None:
        source, findings, shapes = self.source, self.probe.findings, self.probe.shapes
        v = self.layer | dict(source.weights_for_checks(layer)) | {"dtype": verification.empty(source.dtype)}
        config = source.config if source.is_gpt_oss else source.config | {"router": "not known yet"}
        findings.add_layer(v, layer, config, PROBE)
        if not source.is_gpt_oss:
            for rule in (verification.KEPT_SOFTMAX, verification.SOFTMAX_KEPT):
                gap = verification.router_weights_are_the_softmax_of_the_kept_logits(v, layer, {"router": rule})
                self.probe.router_rules.setdefault(rule, []).extend([] if gap is None else [gap])
        all_writes = f"blocks.{layer}.hook_attn_out" in shapes and f"blocks.{layer}.hook_mlp_out" in shapes
        if layer == source.n_layers - 1 and self.probe.starts_from_embedding and all_writes:
            assert self.total is not None
            findings.add(verification.EMBEDDING, verification.gap(self.total, self.layer["resid_post"]), PROBE)
        self.layer = {}
