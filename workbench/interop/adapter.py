"""A model of another library as a source of recordings.

An adapter (`workbench.interop.transformers` …) makes a `ForeignSource`. Its `forward` runs the model and calls
`tap(name, value)` at every hook point that the library exposes, as workbench's own forward pass does. A short probe run
finds out which hook points these are, and which of them hold the value that their name stands for. A hook point that is
not exposed is absent from the trace, never zero. This module is independent of any particular library.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import numpy as np

from workbench import hooks
from workbench.errors import InteropError
from workbench.model.memory import allocation_errors
from workbench.recording.record import trace_text
from workbench.recording.source import Reader, probe_length
from workbench.recording.verify import Probe, probe
from workbench.taps import Tap
from workbench.traces import Trace, verification

if TYPE_CHECKING:
    from torch import Tensor

PREDICTED = ("logprob", "entropy", "top_ids", "top_logprobs")
BLOCK_WRITES = ("hook_attn_out", "hook_resid_mid", "hook_mlp_out")
DTYPES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16", "float64": "F64", "int64": "I32", "int32": "I32"}
SUMMARIES = (  # summary -> the hook point that it is computed from, in every layer
    ("resid_norm", "blocks.*.hook_resid_post"),
    ("attn_out_norm", "blocks.*.hook_attn_out"),
    ("mlp_out_norm", "blocks.*.hook_mlp_out"),
    ("step_attention", "blocks.*.attn.hook_pattern"),
)
SIZES = (  # for an architecture without a known config: (hook point, key of the config, axis that has this size)
    ("mlp.router.hook_out", "n_experts", -1),
    ("mlp.hook_expert_indices", "n_active", -1),
    ("attn.hook_z", "n_heads", -2),
    ("attn.hook_z", "d_head", -1),
    ("attn.hook_v", "n_kv_heads", -2),
    ("hook_resid_post", "d_model", -1),
    ("hook_logits", "d_vocab", -1),
)


@dataclass
class ForeignSource:
    """A model that another library runs, as a `workbench.recording.source.Source`.

    `forward(tokens, tap)` returns the logits (batch pos d_vocab) of one pass and calls `tap` unless it is None. It adds
    to `derived` the hook points that it computed from other values of the run.
    `read_out` returns the logits of a residual stream.
    """

    name: str
    format: str
    digest: str
    config: dict[str, Any]
    dtype: str
    device: str
    kernels: str
    libraries: Sequence[str]
    forward: Callable[["Tensor", Tap | None], "Tensor"]
    read_out: Callable[["Tensor"], "Tensor"] | None = None
    reader: Reader | None = None
    by_layer: Sequence[Mapping[str, np.ndarray]] = ()  # for each layer: b_o, sinks
    derived: set[str] = field(default_factory=set)
    reasons: dict[str, str] = field(default_factory=dict)  # hook point or preset -> why it is absent
    notes: list[str] = field(default_factory=list)
    attention_copies: int = 0  # arrays (head query key) in memory at once while a layer runs
    replays: bool = False  # an earlier run is played back, so it cannot be compared with a run without hooks
    unreliable_hooks: set[str] = field(default_factory=set)  # hook points whose values are not what their names mean
    probed: Probe | None = None

    edits = ()
    rows_independent = False  # not tested for other libraries
    in_chunks = False
    probe_logits = slice(None)

    @property
    def n_layers(self) -> int:
        return self.config["n_layers"]

    @property
    def is_gpt_oss(self) -> bool:
        return "architecture" not in self.config

    @property
    def sinks(self) -> np.ndarray | None:
        if len(self.by_layer) != self.n_layers or not all("sinks" in weights for weights in self.by_layer):
            return None
        return np.stack([weights["sinks"] for weights in self.by_layer])

    def identity(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "format": self.format,
            "weights_digest": self.digest,
            "tokenizer_digest": self.reader.digest if self.reader else None,
            "config": self.config,
        }

    def numerics(self) -> dict[str, Any]:
        versions = {name: version(name) for name in self.libraries}
        arithmetic = ", ".join([self.kernels, *(f"{name} {release}" for name, release in versions.items())])
        return {"arithmetic": arithmetic, "kernels": self.kernels, **versions}

    def run(
        self, tokens: "Tensor", tap: Tap | None = None, cache: Any = None, logits_at: slice = slice(None)
    ) -> "Tensor":
        if tap is not None:
            tap.begin(0, tokens.shape[1])
        return self.forward(tokens, tap)[:, logits_at]

    def new_cache(self, whole: bool) -> None:
        return None

    def weights_for_checks(self, layer: int) -> Mapping[str, np.ndarray]:
        return self.by_layer[layer] if layer < len(self.by_layer) else {}

    # -- what can be recorded

    def probe_text(self, tokens: Sequence[int]) -> Sequence[int]:
        return tokens[: probe_length(self.config.get("window", 0))]

    def learn(self, probe: Probe) -> None:
        """Leaves out hook points whose probed values are not what their names mean, and completes the config."""
        self.probed = probe
        if self.is_gpt_oss:
            return
        if _fails(probe, verification.LENS):
            self.read_out = None
            self.reasons["lens"] = "the final norm and the unembedding alone do not give this model's logits"
            probe.findings.forget(verification.LENS)
        for check, endings, reason in (
            (
                verification.writes_add_up,
                BLOCK_WRITES,
                "this model's blocks do more than add their outputs to the residual stream",
            ),
            (
                verification.pattern_comes_from_queries_and_keys,
                ("attn.hook_rot_q", "attn.hook_rot_k"),
                "this model's patterns do not follow from queries and keys alone; record='patterns' records them",
            ),
        ):
            if _fails(probe, identity := verification.identity_of(check)):
                self._leave_out(probe, [name for name in probe.shapes if name.endswith(endings)])
                self.reasons |= {f"blocks.*.{end}": reason for end in endings}
                probe.findings.forget(identity)
        if "hook_embed" in probe.shapes and not probe.starts_from_embedding:
            self._leave_out(probe, ["hook_embed"])
            reason = "the first layer's input is not the embedding alone; record resid_pre of layer 0 instead"
            self.reasons["hook_embed"] = reason
        if any(probe.router_rules.values()):
            self.config["router"] = _router_rule(probe, verification.TOLERANCE[self.dtype])
        for ending, key, axis in SIZES:
            for name, shape in probe.shapes.items():
                if name.endswith(ending):
                    self.config[key] = shape[axis]

    @staticmethod
    def _leave_out(probe: Probe, names: Sequence[str]) -> None:
        for name in names:
            del probe.shapes[name]

    def available(self, tokens: Sequence[int]) -> Collection[str]:
        """The hook points that the probe reached, in order of execution, and the summaries that follow from them."""
        shapes = probe(self, tokens).shapes

        def everywhere(point: str) -> bool:
            return all(hooks.at_layer(point, layer) in shapes for layer in range(self.n_layers))

        summaries = [*PREDICTED, *(summary for summary, point in SUMMARIES if everywhere(point))]
        routed = any(name.endswith("mlp.router.hook_out") for name in shapes)
        rule_known = self.is_gpt_oss or self.config.get("router", "other") != "other"
        summaries += ["margin"] if routed and rule_known else []
        summaries += ["sinks"] if self.sinks is not None else []
        if self.read_out is not None and everywhere("blocks.*.hook_resid_post"):
            summaries += hooks.PRESETS["lens"]
        return dict.fromkeys([*shapes, *summaries])

    def why_absent(self, item: str, names: Sequence[str]) -> str:
        for name in (item, *map(hooks.point_of, names)):
            for key in (name, name.split("_")[0]):
                if key in self.reasons:
                    return self.reasons[key]
        return "this model has none" if not self.is_gpt_oss else "this library does not expose it"

    def entry(self, name: str, n_pos: int, n_steps: int) -> tuple[str, tuple[int, ...]]:
        assert self.probed is not None
        axes, shape, dtype = hooks.axes(name), self.probed.shapes.get(name), self.probed.dtypes.get(name)
        size = {"layer": self.n_layers, "head": self.config["n_heads"], "rank": hooks.RANKS.get(name, 0)}
        size |= dict(zip(axes, shape, strict=True)) if shape else {}
        size |= {"pos": n_pos, "query": n_pos, "key": n_pos, "step": n_steps, "key_step": n_steps}
        dtype_name = _dtype_code(name, str(dtype)) if dtype else "I32" if name.endswith("_ids") else "F32"
        return dtype_name, tuple(size[axis] for axis in axes)

    def working_memory(self, n_pos: int, names: Sequence[str], chunk: int) -> int:
        return self.attention_copies * self.config["n_heads"] * n_pos**2 * 4


def record(
    source: ForeignSource,
    tokens: Sequence[int],
    record: str | Sequence[str],
    budget: float | None,
    notes: Sequence[str] = (),
) -> Trace:
    """The Trace of one text, from one forward pass of the source."""
    if not len(tokens):
        raise InteropError("the prompt is empty; give at least one token")
    with allocation_errors():
        return trace_text(source, tokens, record, budget, notes)


def _dtype_code(name: str, dtype: str) -> str:
    code = DTYPES.get(dtype := dtype.removeprefix("torch."))
    if code is None:
        raise InteropError(
            f"{name} of this model contains {dtype} numbers, which a trace cannot hold; it holds {', '.join(DTYPES)}. "
            f"Load the model in float32 or bfloat16."
        )
    return code


def _fails(probe: Probe, identity: str) -> bool:
    return any(finding["identity"] == identity and finding["status"] == "fails" for finding in probe.findings.report())


def _router_rule(probe: Probe, tolerance: float) -> str:
    """The rule by which the router's weights follow from its logits; "other" if the probe matches no known rule."""
    matching = [rule for rule, gaps in probe.router_rules.items() if gaps and max(gaps) <= tolerance]
    return matching[0] if matching else "other"
