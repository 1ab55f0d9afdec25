"""From a run that another library makes to a Trace: what it shows, what of it is wanted, lanes, identities.

A library is a `Subject`: it runs the model and calls `ear(name, value)` at every hook point that it can reach, as the
runner's own forward pass does. A short probe, with everything heard, tells which hook points there are and whether the
identities hold; what the probe did not hear is absent from the trace, never zero. Knows no library.
"""

import platform
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np

import workbench.hooks as names
from workbench.conversation.parse import parse
from workbench.conversation.tokenizer import Tokenizer
from workbench.errors import BudgetError, InteropError, NotRecorded, VerificationWarning
from workbench.interop.readers import Reader
from workbench.model.memory import free_memory
from workbench.recording.budget import AUTO, AUTO_SHARE, REFUSE_SHARE
from workbench.recording.summaries import Chosen, Norms, Predictions, StepAttention, array
from workbench.recording.taps import Chain, Recorder, Tap
from workbench.recording.tracing import PROBE, WORDS, always, exact, found_steps
from workbench.text import size_text as show
from workbench.traces import Manifest, TensorInfo, Trace, verification
from workbench.traces.format import word
from workbench.traces.spans import Span

if TYPE_CHECKING:
    from torch import Tensor

PREDICTED = ("logprob", "entropy", "top_ids", "top_logprobs")
BLOCK_WRITES = ("hook_attn_out", "hook_resid_mid", "hook_mlp_out")


@dataclass
class Subject:
    """A model in another library's hands, and all that a trace says of it besides numbers.

    `run(tokens, ear)` gives the logits (batch pos d_vocab) of one pass, calling `ear` if there is one; it adds to
    `derived` the hook points that it computed beside the run. `read_out` gives the logits of a residual stream.
    """

    name: str
    format: str
    digest: str
    config: dict[str, Any]
    dtype: str
    device: str
    kernels: str
    libraries: Sequence[str]
    run: Callable[["Tensor", Tap | None], "Tensor"]
    read_out: Callable[["Tensor"], "Tensor"] | None = None
    reader: Reader | None = None
    by_layer: Sequence[Mapping[str, np.ndarray]] = ()  # of each layer: b_o, sinks
    derived: set[str] = field(default_factory=set)
    reasons: dict[str, str] = field(default_factory=dict)  # hook point or preset -> why it is not there
    notes: list[str] = field(default_factory=list)
    squares: int = 0  # arrays of head query key that a layer holds while it runs
    replays: bool = False  # what a run left before is played again: nothing tells how an unhooked one would differ
    deaf_to: set[str] = field(default_factory=set)  # hook points whose values are not what their names say

    @property
    def n_layers(self) -> int:
        return self.config["n_layers"]

    @property
    def is_gpt_oss(self) -> bool:
        return "architecture" not in self.config

    @property
    def sinks(self) -> np.ndarray | None:
        if len(self.by_layer) != self.n_layers or not all("sinks" in extra for extra in self.by_layer):
            return None
        return np.stack([extra["sinks"] for extra in self.by_layer])


class Lens(Predictions):
    """Predictions, with the lens read out by the other library's own modules."""

    def __init__(self, subject: Subject, d_vocab: int, lens: bool):
        self.c, self.lens, self.subject = _Sizes(d_vocab, subject.n_layers), lens, subject  # pyright: ignore
        self.rows, self._resid = {}, {}

    def _read_out(self, resid: "Tensor") -> "Tensor":
        assert self.subject.read_out is not None
        return self.subject.read_out(resid)


@dataclass(frozen=True)
class _Sizes:
    d_vocab: int
    n_layers: int


class Prober(Tap):
    """Hears everything, checks each layer as the pass leaves it, and keeps the shape of what it heard."""

    def __init__(self, subject: Subject):
        self.subject = subject
        self.findings = verification.Findings(subject.dtype)
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.sizes: dict[str, int] = {}  # bytes of a number
        self.laws: dict[str, list[float]] = {}
        self.held: dict[str, np.ndarray] = {}
        self.total: np.ndarray | None = None
        self.embedding_enters = False  # and nothing else does
        self.last: Tensor | None = None

    def wants(self, name: str) -> bool:
        return True

    def __call__(self, name: str, x: "Tensor", offset: int = 0) -> "Tensor":
        self.shapes[name], self.sizes[name] = tuple(x.shape[1:]), x.element_size()
        if name == "hook_logits":
            return x
        short, layer = names.short(name), names.layer_of(name)
        self.held[short] = a = exact(x[0]) if x.is_floating_point() else x[0].detach().cpu().numpy()
        if short == "embed" or (short in ("attn_out", "mlp_out") and self.total is not None):
            self.total = a.astype(np.float64) + (0 if self.total is None else self.total)
        if short == "resid_pre" and layer == 0:
            self.embedding_enters = np.array_equal(self.held.get("embed", ()), a)
        if short == "resid_post":
            assert layer is not None
            self._leave(layer)
            self.last = x
        return x

    def _leave(self, layer: int) -> None:
        s = self.subject
        extra = s.by_layer[layer] if layer < len(s.by_layer) else {}
        v = self.held | dict(extra) | {"dtype": verification.empty(s.dtype)}
        config = s.config if s.is_gpt_oss else s.config | {"router": "not known yet"}
        self.findings.add_layer(v, layer, config, "the probe")
        if not s.is_gpt_oss:
            for law in (verification.KEPT_SOFTMAX, verification.SOFTMAX_KEPT):
                worst = verification.router_weights_are_the_softmax_of_the_kept_logits(v, layer, {"router": law})
                self.laws.setdefault(law, []).extend([] if worst is None else [worst])
        whole = f"blocks.{layer}.hook_attn_out" in self.shapes and f"blocks.{layer}.hook_mlp_out" in self.shapes
        if layer == s.n_layers - 1 and self.total is not None and self.embedding_enters and whole:
            self.findings.add(
                verification.EMBEDDING, verification.gap(self.total, self.held["resid_post"]), "the probe"
            )
        self.held = {name: a for name, a in self.held.items() if name == "embed"}

    @property
    def law(self) -> str:
        """How the router's weights follow from its logits, as far as the probe can tell."""
        tolerance = verification.TOLERANCE[self.subject.dtype]
        holds = [law for law, worst in self.laws.items() if worst and max(worst) <= tolerance]
        return holds[0] if holds else "other"

    def fails(self, check: Callable) -> bool:
        """Whether an identity was checked and does not hold."""
        identity = next(name for name, (function, _) in verification.BY_LAYER.items() if function is check)
        return any(f["status"] == "fails" for f in self.findings.report() if f["identity"] == identity)


def probe(subject: Subject, tokens: Sequence[int]) -> Prober:
    """What a short pass shows, beside one that nobody listens to: they must give the same bits."""
    n = min(len(tokens), PROBE, max(subject.config.get("window", 0) + 32, 64))
    batch = _batch(tokens[:n])
    prober = Prober(subject)
    subject.derived.clear()
    bare = subject.run(batch, None)
    seen = subject.run(batch, prober)
    found, finite = prober.findings, bool(seen.isfinite().all())
    found.add(verification.FINITE, 0.0 if finite else float("inf"), "the probe")
    if not subject.replays:
        found.add(verification.UNHOOKED, verification.gap(exact(seen), exact(bare)), "the probe")
    if subject.read_out is not None and prober.last is not None:
        lens = verification.gap(exact(subject.read_out(prober.last[:, -16:])), exact(seen[:, -16:]))
        if lens <= verification.TOLERANCE[subject.dtype] or subject.is_gpt_oss:
            found.add(verification.LENS, lens, "the probe")
        else:
            subject.read_out = None
            subject.reasons["lens"] = "the final norm and the unembedding alone do not give this model's logits"
    _what_it_is(subject, prober)
    return prober


def _what_it_is(subject: Subject, prober: Prober) -> None:
    """Leaves out what the probe showed to be something else than its name says, and completes the config."""
    if subject.is_gpt_oss:
        return
    shapes, config, reasons = prober.shapes, subject.config, subject.reasons
    gone: set[str] = set()
    if prober.fails(verification.writes_add_up):
        gone |= {name for name in shapes if name.endswith(BLOCK_WRITES)}
        reasons |= {f"blocks.*.{end}": "this model's blocks do more than add what they write" for end in BLOCK_WRITES}
        prober.findings.forget(verification.writes_add_up)
    if prober.fails(verification.pattern_comes_from_queries_and_keys):
        ends = ("attn.hook_rot_q", "attn.hook_rot_k")
        gone |= {name for name in shapes if name.endswith(ends)}
        why = "this model's patterns do not follow from queries and keys alone; record='patterns' keeps them"
        reasons |= {f"blocks.*.{end}": why for end in ends}
        prober.findings.forget(verification.pattern_comes_from_queries_and_keys)
    if "hook_embed" in shapes and not prober.embedding_enters:
        gone.add("hook_embed")
        reasons["hook_embed"] = "what enters the first layer is not the embedding alone; resid_pre of layer 0 is it"
    for name in gone:
        del shapes[name]
    if any(prober.laws.values()):
        config["router"] = prober.law
    for name, key, axis in (
        ("mlp.router.hook_out", "n_experts", -1),
        ("mlp.hook_expert_indices", "n_active", -1),
        ("attn.hook_z", "n_heads", -2),
        ("attn.hook_z", "d_head", -1),
        ("attn.hook_v", "n_kv_heads", -2),
        ("hook_resid_post", "d_model", -1),
    ):
        for full, shape in shapes.items():
            if full.endswith(name):
                config[key] = shape[axis]
    config["d_vocab"] = shapes["hook_logits"][-1]


@dataclass(frozen=True)
class Plan:
    """What will be recorded, by full names, and what was asked for that is not there."""

    words: tuple[str, ...]
    points: tuple[str, ...]
    lanes: tuple[str, ...]
    gave_way: tuple[str, ...]
    notes: tuple[str, ...]


def plan(
    subject: Subject,
    prober: Prober,
    record: str | Sequence[str],
    n_pos: int,
    n_steps: int,
    budget: float | None,
) -> Plan:
    """What `record` stands for in what the probe heard.

    Raises HookNameError for a word that means nothing, NotRecorded for one of which this model shows nothing,
    BudgetError if the rest would not fit.
    """
    words = tuple(record.split() if isinstance(record, str) else record)
    there = {*prober.shapes, *_lanes(subject, prober)}
    base = [name for name in always(subject.n_layers) if name in there]

    def cost(wanted: Sequence[str]) -> int:
        return sum(_size(subject, prober, name, n_pos, n_steps) for name in wanted)

    asked = {each: names.expand(each, subject.n_layers) for each in words if each != "auto"}
    for each, wanted in asked.items():
        if wanted and not there.intersection(wanted):
            raise NotRecorded(
                f"{each!r} cannot be recorded from {subject.name}: {_why(subject, each, wanted)}. "
                f"There is: {', '.join(dict.fromkeys(names.short(n) for n in prober.shapes))}."
            )
    free = free_memory("cpu")
    gave_way: list[str] = []
    if "auto" in words:
        rest = [each for each in words if each != "auto"]
        left = (AUTO_SHARE * free if budget is None else budget) - cost([*base, *chain(*asked.values())])
        taken = []
        for preset in AUTO:
            wanted = [name for name in names.expand(preset, subject.n_layers) if name in there]
            if wanted and cost(wanted) <= left:
                taken.append(preset)
                left -= cost(wanted)
            elif wanted:
                gave_way.append(f"{preset} ({show(cost(wanted))})")
        words = ("auto", *taken, *rest)
    expanded = names.expand([each for each in words if each != "auto"], subject.n_layers)
    wanted = [name for name in expanded if name in there]
    absent = dict.fromkeys(names.point_of(n) for n in [*expanded, *always(subject.n_layers)] if n not in there)
    some = {names.point_of(name) for name in there}
    reasons: dict[str, list[str]] = {}
    for point in absent:
        if point not in names.LANES:
            why = _why(subject, point, [point]) + (" in some layers" if point in some else "")
            reasons.setdefault(why, []).append(names.short(point))
    notes = [f"not recorded: {', '.join(shorts)} ({why})" for why, shorts in reasons.items()]
    held = cost([*base, *wanted]) + subject.squares * subject.config["n_heads"] * n_pos**2 * 4
    if held > REFUSE_SHARE * free and subject.device == "cpu":
        prices = ", ".join(f"{each} {show(cost([n for n in found if n in there]))}" for each, found in asked.items())
        raise BudgetError(
            f"recording {' '.join(asked) or 'this'} over {n_pos} positions needs {show(held)} of memory, and 80 % of "
            f"the {show(free)} that are free is {show(REFUSE_SHARE * free)}. {prices and f'It asks for: {prices}. '}"
            f"Shorten the text, name single layers, or use record='auto', which takes what fits."
        )
    lanes = tuple(name for name in wanted if name in names.LANES)
    points = tuple(name for name in wanted if name not in names.LANES)
    return Plan(words, points, lanes, tuple(gave_way), tuple(notes))


def _why(subject: Subject, word: str, wanted: Sequence[str]) -> str:
    for key in (word, *map(names.point_of, wanted)):
        for known in (key, key.split("_")[0]):
            if known in subject.reasons:
                return subject.reasons[known]
    return "this model has none" if not subject.is_gpt_oss else "this library does not show it"


def _lanes(subject: Subject, prober: Prober) -> list[str]:
    """The lanes that can be made of what is heard."""

    def everywhere(point: str) -> bool:
        return all(names.at(point, layer) in prober.shapes for layer in range(subject.n_layers))

    lanes = list(PREDICTED)
    for lane, point in (
        ("resid_norm", "blocks.*.hook_resid_post"),
        ("attn_out_norm", "blocks.*.hook_attn_out"),
        ("mlp_out_norm", "blocks.*.hook_mlp_out"),
        ("step_attention", "blocks.*.attn.hook_pattern"),
    ):
        lanes += [lane] if everywhere(point) else []
    routed = any(name.endswith("mlp.router.hook_out") for name in prober.shapes)
    lanes += ["margin"] if routed and (subject.is_gpt_oss or prober.law != "other") else []
    lanes += ["sinks"] if subject.sinks is not None else []
    if subject.read_out is not None and everywhere("blocks.*.hook_resid_post"):
        lanes += names.PRESETS["lens"]
    return lanes


def _size(subject: Subject, prober: Prober, name: str, n_pos: int, n_steps: int) -> int:
    """The bytes that a hook point or lane takes over `n_pos` positions."""
    axes, shape = names.axes(name), prober.shapes.get(name)
    known = {"layer": subject.n_layers, "head": subject.config["n_heads"], "rank": names.RANKS.get(name, 0)}
    known |= dict(zip(axes, shape, strict=True)) if shape else {}
    known |= {"pos": n_pos, "query": n_pos, "key": n_pos, "step": n_steps, "key_step": n_steps}
    return int(np.prod([known[axis] for axis in axes])) * prober.sizes.get(name, 4)


def record(
    subject: Subject,
    tokens: Sequence[int],
    record: str | Sequence[str],
    budget: float | None,
    notes: Sequence[str] = (),
) -> Trace:
    """The Trace of a text that the subject reads."""
    if not len(tokens):
        raise InteropError("there is no token to read; give at least one")
    prober = probe(subject, tokens)
    spans, pieces = text_of(subject, tokens)
    found = found_steps(spans, pieces)
    planned = plan(subject, prober, record, len(tokens), len(found), budget)
    wanted = {*planned.points, *(name for name in always(subject.n_layers) if name in prober.shapes)}
    recorder, norms, chosen = Recorder(wanted), Norms(subject.n_layers), Chosen(tokens)
    predictions = Lens(subject, prober.shapes["hook_logits"][-1], any(n.startswith("lens_") for n in planned.lanes))
    taps: list[Tap] = [recorder, norms, chosen, predictions]
    pooled = None
    if "step_attention" in planned.lanes:
        sizes = _Heads(subject.n_layers, subject.config["n_heads"])
        pooled = StepAttention(sizes, len(tokens), [slice(s.start, s.stop) for s in found])  # pyright: ignore
        taps.append(pooled)
    ear = Chain(*taps)
    ear.begin(0, len(tokens))
    subject.run(_batch(tokens), ear)
    kept = {name: array(recorder[name][0]) for name in recorder.seen}
    kept |= predictions.lanes() | chosen.lanes() | _norms(norms)
    kept |= pooled.lanes() if pooled else {}
    if subject.sinks is not None:
        kept["sinks"] = subject.sinks
    if "margin" in _lanes(subject, prober):
        kept["margin"] = _margins(subject, recorder)
    lanes = {*_lanes(subject, prober), *planned.lanes}
    kept = {name: a for name, a in kept.items() if name in wanted or name in lanes}
    return assembled(subject, tokens, planned, kept, prober.findings, [*notes, *planned.notes])


@dataclass(frozen=True)
class _Heads:
    n_layers: int
    n_heads: int


def _norms(norms: Norms) -> dict[str, np.ndarray]:
    """The lanes of norms that every layer has."""
    whole = {lane: rows for lane, rows in norms.rows.items() if all(rows)}
    norms.rows = whole
    return norms.lanes()


def _margins(subject: Subject, recorder: Recorder) -> np.ndarray:
    """layer pos: by how much the last chosen expert was ahead of the first not chosen; NaN where nothing is routed."""
    rows = []
    for layer in range(subject.n_layers):
        name = f"blocks.{layer}.mlp.router.hook_out"
        if name not in recorder.seen:
            rows.append(None)
            continue
        logits, k = recorder[name][0].float(), subject.config["n_active"]
        top = logits.sort(-1, descending=True).values
        even = k == logits.shape[-1]
        rows.append(np.full(len(top), np.inf) if even else (top[:, k - 1] - top[:, k]).numpy())
    n = next(len(row) for row in rows if row is not None)
    return np.stack([np.full(n, np.nan) if row is None else row for row in rows]).astype(np.float32)


def assembled(
    subject: Subject,
    tokens: Sequence[int],
    planned: Plan,
    kept: Mapping[str, np.ndarray],
    findings: verification.Findings,
    notes: Sequence[str],
) -> Trace:
    """The Trace of arrays that are there already, verified."""
    spans, pieces = text_of(subject, tokens)
    derived = {name for name in kept if name in subject.derived or names.point_of(name) in subject.derived}
    table = {
        name: TensorInfo(word(a.dtype), a.shape, names.axes(name), "derived" if name in derived else "forward")
        for name, a in kept.items()
    }
    made = Manifest(
        model={
            "name": subject.name,
            "format": subject.format,
            "weights_digest": subject.digest,
            "tokenizer_digest": subject.reader.digest if subject.reader else None,
            "config": subject.config,
        },
        tokens=list(tokens),
        pieces=pieces,
        spans=spans,
        prompt_length=len(tokens),
        record=list(planned.words),
        numerics=numerics(subject),
        gave_way=list(planned.gave_way),
        notes=[*subject.notes, *notes],
        words=_words(subject, tokens, kept),
        tensors=table,
    )
    trace = Trace(made, kept)
    found = verification.check(trace, findings)
    if failed := [f["identity"] for f in found if f["status"] == "fails"]:
        warnings.warn(
            f"this trace FAILED to verify: {', '.join(failed)}; `trace.verification` says where and by how much.",
            VerificationWarning,
            stacklevel=4,
        )
    return Trace(replace(made, verification=found), kept)


def numerics(subject: Subject) -> dict[str, Any]:
    """What the numbers depend on besides weights and tokens."""
    import torch

    return {
        "dtype": subject.dtype,
        "device": subject.device,
        "arithmetic": ", ".join([subject.kernels, *(f"{name} {version(name)}" for name in subject.libraries)]),
        "kernels": subject.kernels,
        "threads": torch.get_num_threads(),
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
        "workbench": sys.modules["workbench"].__version__,
        **{package: version(package) for package in subject.libraries},
    }


def text_of(subject: Subject, tokens: Sequence[int]) -> tuple[list[Span], list[str]]:
    """The messages and the text of every token; harmony is parsed for gpt-oss, anything else is one message."""
    reader, n = subject.reader, len(tokens)
    if reader is None:
        return [Span(0, n, 0, n, "unparsed")], [f"⟨{t}⟩" for t in tokens]
    if isinstance(reader, Tokenizer) and subject.is_gpt_oss:
        return parse(tokens, reader), reader.pieces(tokens)
    return [Span(0, n, 0, n, "unparsed")], reader.pieces(tokens)


def _words(subject: Subject, tokens: Sequence[int], kept: Mapping[str, np.ndarray]) -> dict[str, str]:
    if subject.reader is None:
        return {}
    predicted = [kept[name][..., :WORDS].ravel() for name in ("top_ids", "lens_ids") if name in kept]
    ids = sorted({int(t) for a in predicted for t in a} - set(tokens))
    return {str(t): subject.reader.pieces([t])[0] for t in ids}


def _batch(tokens: Sequence[int]) -> "Tensor":
    import torch

    return torch.tensor([list(tokens)])
