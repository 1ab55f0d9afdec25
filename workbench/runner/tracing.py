"""From a run to its Trace: plan what to record, run, verify, and put the manifest together."""

import platform
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch

import workbench
from workbench import identities, names
from workbench.conversation.parse import parse
from workbench.errors import VerificationWarning
from workbench.runner import budget
from workbench.runner.gpt_oss import forward, unembed
from workbench.runner.interrupts import Interrupt
from workbench.runner.memory import free_memory
from workbench.runner.recording import Chosen, Norms, Predictions, StepAttention, arrays, margins
from workbench.runner.taps import Chain, Edit, Recorder, Tally, Tap
from workbench.segments import steps
from workbench.spans import Span
from workbench.traces import Manifest, TensorInfo, Trace, predicted_bytes
from workbench.traces.container import word

if TYPE_CHECKING:
    from workbench.runner.model import Model

PROBE = 160  # positions at most: past the 128-token window of the published models


@dataclass(frozen=True)
class Plan:
    """What a run will record: hook points and lanes by full name, besides the ones that every trace has."""

    words: tuple[str, ...]  # as asked
    points: tuple[str, ...]
    lanes: tuple[str, ...]
    gave_way: tuple[str, ...]
    estimate: budget.Estimate

    @property
    def lens(self) -> bool:
        return any(lane.startswith("lens_") for lane in self.lanes)


def always(n_layers: int) -> list[str]:
    """The hook points and lanes that every trace has."""
    return [name for p in names.ALWAYS for name in (names.match(p, n_layers) if p in names.POINTS else [p])]


def plan(model: "Model", record: str | Sequence[str], tokens: Sequence[int], n_pos: int, limit: float | None) -> Plan:
    """What `record` stands for over `n_pos` positions. Raises HookNameError, or BudgetError if it would not fit."""
    c, dtype = model.config, model.dtype_name
    words = tuple(record.split() if isinstance(record, str) else record)
    spans, pieces = text_of(model, tokens)
    n_steps = len(found_steps(spans, pieces)) + max(0, n_pos - len(tokens)) // 8  # a step is rarely shorter
    free = free_memory("cpu")  # where recordings are kept, also those of a GPU
    base = always(c.n_layers)
    gave_way: tuple[str, ...] = ()
    if "auto" in words:
        asked = tuple(word for word in words if word != "auto")
        first = budget.shapes(c, [*base, *names.expand(asked, c.n_layers)], dtype, n_pos, n_steps)
        left = (budget.AUTO_SHARE * free if limit is None else limit) - sum(map(budget.size, first.values()))
        taken, gave_way = budget.take_what_fits(c, dtype, n_pos, n_steps, left)
        words = ("auto", *taken, *asked)  # part of what identifies the run: another budget is another trace
    wanted = names.expand([word for word in words if word != "auto"], c.n_layers)
    table = budget.shapes(c, [*base, *wanted], dtype, n_pos, n_steps)
    held = sum(map(budget.size, table.values()))
    draft = manifest(model, tokens, len(tokens), words, [], spans=spans, pieces=pieces)
    draft = replace(draft, verification=identities.Findings(dtype).report())
    working = budget.working_memory(c, dtype, n_pos, wanted)
    known = len(tokens)
    # ids and texts of the tokens still to come, and of those that will be predicted: about as long as what is known
    to_come = int((n_pos - known) * 24) + _words_to_come(model, n_pos, wanted)
    estimate = budget.Estimate(
        bytes=predicted_bytes(draft, table) + to_come,
        memory=held + (working if model.device == "cpu" else 0),
        free=free,
        by_name=budget.by_short_name(table),
        positions=n_pos,
        gave_way=gave_way,
        n_steps=n_steps,
    )
    lanes = tuple(name for name in wanted if name in names.LANES)
    return Plan(words, tuple(name for name in wanted if name not in names.LANES), lanes, gave_way, estimate)


@dataclass(frozen=True)
class Run:
    """One run under way: what it records, and the edits that it meets, with their tallies from before."""

    model: "Model"
    plan: Plan
    edits: list[Edit]
    before: list[Tally]
    notes: list[str]


def start(
    model: "Model",
    record: str | Sequence[str],
    tokens: Sequence[int],
    n_pos: int,
    limit: float | None,
    notes: Sequence[str],
) -> Run:
    """Plans a run. Raises HookNameError for a word of `record` that means nothing, BudgetError if it would not fit."""
    edits = model.edits_in_force()
    planned = plan(model, record, tokens, n_pos, limit)
    asked = {word: names.expand([word], model.config.n_layers) for word in planned.words if word != "auto"}
    budget.refuse_if_too_big(model.config, planned.estimate, model.dtype_name, asked)
    if model.device != "cpu":
        wanted = [*planned.points, *planned.lanes]
        working = budget.working_memory(model.config, model.dtype_name, n_pos, wanted)
        budget.refuse_if_device_too_small(working, free_memory(model.device), model.device)
    return Run(model, planned, edits, [replace(edit.tally) for edit in edits], list(notes))


def _words_to_come(model: "Model", n_pos: int, wanted: Sequence[str]) -> int:
    """About the bytes of the texts of predicted tokens; how many differ is known only afterwards."""
    if model.tokenizer is None:
        return 0
    predictions = n_pos * WORDS * (1 + 0.5 * model.config.n_layers * ("lens_ids" in wanted))
    return int(18 * min(model.config.d_vocab, 0.1 * predictions))


def text_of(model: "Model", tokens: Sequence[int]) -> tuple[list[Span], list[str]]:
    """The messages and the text of every token; without a tokenizer, one unparsed message of ids."""
    if model.tokenizer is None:
        n = len(tokens)
        return [Span(0, n, 0, n, "unparsed")], [f"⟨{t}⟩" for t in tokens]
    return parse(tokens, model.tokenizer), model.tokenizer.pieces(tokens)


@dataclass(frozen=True)
class Text:
    """What `steps` reads of a trace, for a text that has none yet."""

    spans: list[Span]
    pieces: list[str]


def found_steps(spans: list[Span], pieces: list[str]) -> list:
    return steps(Text(spans, pieces))


def record_pass(run: Run, tokens: Sequence[int], flag: Interrupt, live: bool = True) -> dict[str, np.ndarray]:
    """One pass over known tokens with everything that the plan wants; `live=False` leaves out what was seen live."""
    model, planned, c = run.model, run.plan, run.model.config
    spans, pieces = text_of(model, tokens)
    wanted = [*planned.points, *(p for p in always(c.n_layers) if p not in names.LANES)]
    recorder, norms = Recorder(wanted), Norms(c.n_layers)
    taps: list[Tap] = [flag, *run.edits, recorder, norms]
    lanes: list[Predictions | Chosen | StepAttention] = []
    if live or planned.lens:
        lanes.append(Predictions(c, model.weights, lens=planned.lens))
    if live:
        lanes.append(Chosen(tokens))
    if "step_attention" in planned.lanes:
        lanes.append(StepAttention(c, len(tokens), [slice(s.start, s.stop) for s in found_steps(spans, pieces)]))
    with torch.no_grad():
        batch = torch.tensor([list(tokens)], device=model.device)
        forward(c, model.weights, batch, Chain(*taps, *lanes), logits_at=slice(0, 0))
    kept = arrays(recorder) | norms.lanes()
    for lane in lanes:
        kept |= lane.lanes()
    kept |= {"margin": margins(c, recorder), "sinks": sinks(model)}
    asked = {*wanted, *always(c.n_layers), *planned.lanes}
    return {name: a for name, a in kept.items() if name in asked}


def sinks(model: "Model") -> np.ndarray:
    """layer head: the learned sink logits, in fp32 or better."""
    return np.stack([exact(w.sinks) for w in model.weights.blocks])


def exact(x: torch.Tensor) -> np.ndarray:
    """In fp32 or better: no bit is lost."""
    return x.detach().to("cpu", torch.promote_types(x.dtype, torch.float32)).numpy()


class Prober(Tap):
    """Checks the identities of one layer as soon as the pass has left it, so that one layer is held at a time."""

    def __init__(self, model: "Model", findings: identities.Findings):
        self.model, self.findings = model, findings
        self.held: dict[str, np.ndarray] = {}
        self.total = np.zeros(1)  # embedding + all writes so far
        self.last = torch.empty(0)

    def wants(self, name: str) -> bool:
        return True

    def __call__(self, name: str, x: torch.Tensor, offset: int = 0) -> torch.Tensor:
        if name == "hook_logits":
            return x
        a = exact(x[0]) if x.is_floating_point() else x[0].detach().cpu().numpy()
        short, layer = names.short(name), names.layer_of(name)
        self.held[short] = a
        if short in ("embed", "attn_out", "mlp_out"):
            self.total = self.total + a.astype(np.float64)
        if short == "resid_post":
            assert layer is not None
            self._leave(layer)
            self.last = x
        return x

    def _leave(self, layer: int) -> None:
        w = self.model.weights.blocks[layer]
        extra = {"b_o": exact(w.b_o), "sinks": exact(w.sinks)}
        v = self.held | extra | {"dtype": identities.empty(self.model.dtype_name)}
        self.findings.add_layer(v, layer, self.model.config_dict, "the probe")
        if layer == self.model.config.n_layers - 1:
            self.findings.add(identities.EMBEDDING, identities.gap(self.total, self.held["resid_post"]), "the probe")
        self.held = {}


def probe(model: "Model", tokens: Sequence[int], findings: identities.Findings) -> None:
    """A short pass with every hook point recorded, beside one with none: all identities, and equality bit for bit."""
    n = min(len(tokens), PROBE, max(model.config.window + 32, 64))
    batch = torch.tensor([list(tokens[:n])], device=model.device)
    prober = Prober(model, findings)
    with torch.no_grad():
        bare = forward(model.config, model.weights, batch)
        seen = forward(model.config, model.weights, batch, prober)
        lens = unembed(model.config, model.weights, prober.last)
    findings.add(identities.FINITE, 0.0 if bool(seen.isfinite().all()) else float("inf"), "the probe")
    findings.add(identities.UNHOOKED, identities.gap(exact(seen), exact(bare)), "the probe")
    findings.add(identities.LENS, identities.gap(exact(lens), exact(seen)), "the probe")


WORDS = 5  # the ranks of a prediction whose texts a trace keeps


def words(model: "Model", tokens: Sequence[int], kept: Mapping[str, np.ndarray]) -> dict[str, str]:
    """The texts of the likeliest next tokens, so that a trace can be read without a tokenizer."""
    if model.tokenizer is None:
        return {}
    predicted = [kept[name][..., :WORDS].ravel() for name in ("top_ids", "lens_ids") if name in kept]
    ids = sorted({int(t) for t in np.concatenate(predicted)} - set(tokens))
    return {str(t): model.tokenizer.pieces([t])[0] for t in ids}


def describe_edits(run: Run) -> list[dict]:
    """For the manifest: each edit, how often it fired in this run, and how much it changed."""
    return [
        edit.describe() | {"points": sorted(edit.points)} | edit.tally.since(earlier)
        for edit, earlier in zip(run.edits, run.before, strict=True)
    ]


def numerics(model: "Model") -> dict:
    """What the numbers depend on besides weights and tokens."""
    return {
        "dtype": model.dtype_name,
        "device": str(model.device),
        "kernels": "torch",
        "threads": torch.get_num_threads(),
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
        "workbench": workbench.__version__,
    }


def manifest(
    model: "Model", tokens: Sequence[int], prompt_length: int, asked: Sequence[str], edits: list[dict], **more
) -> Manifest:
    return Manifest(
        model={
            "name": model.name,
            "format": model.format,
            "weights_digest": model.digest,
            "tokenizer_digest": model.tokenizer.digest if model.tokenizer else None,
            "config": model.config_dict,
        },
        tokens=list(tokens),
        prompt_length=prompt_length,
        record=list(asked),
        edits=edits,
        numerics=numerics(model),
        **more,
    )


def build(
    run: Run,
    tokens: Sequence[int],
    prompt_length: int,
    kept: Mapping[str, np.ndarray],
    sources: Mapping[str, str],
    notes: Sequence[str] = (),
    **more,
) -> Trace:
    """The Trace, verified: a probe of the model, and the identities on the very numbers that are kept."""
    model, planned = run.model, run.plan
    spans, pieces = text_of(model, tokens)
    table = {name: TensorInfo(word(a.dtype), a.shape, names.axes(name), sources[name]) for name, a in kept.items()}
    made = manifest(
        model,
        tokens,
        prompt_length,
        planned.words,
        describe_edits(run),
        spans=spans,
        pieces=pieces,
        tensors=table,
        gave_way=list(planned.gave_way),
        notes=[*run.notes, *notes],
        words=words(model, tokens, kept),
        **more,
    )
    trace = Trace(made, kept)
    findings = identities.Findings(model.dtype_name, identities.edited_points(trace))
    if not run.edits:
        probe(model, tokens, findings)
    found = identities.check(trace, findings)
    trace = Trace(replace(made, verification=found), kept)
    failed = [f["identity"] for f in found if f["status"] == "fails"]
    if failed:
        warnings.warn(
            f"this trace FAILED to verify: {', '.join(failed)}. Its numbers are not those of a gpt-oss model; "
            f"`trace.verification` says where and by how much.",
            VerificationWarning,
            stacklevel=4,
        )
    return trace
