"""From a run to its Trace: plan what to record, run, verify, and put the manifest together."""

import platform
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from tqdm.auto import tqdm

from workbench import hooks
from workbench.conversation.parse import parse
from workbench.errors import VerificationWarning
from workbench.model.cache import KVCache
from workbench.model.gpt_oss import forward, unembed
from workbench.model.interrupts import Interrupt
from workbench.model.kernels import native
from workbench.model.memory import free_memory
from workbench.recording import budget
from workbench.recording.summaries import LIVE, LIVE_POINTS, Chosen, Norms, Predictions, StepAttention, arrays, margins
from workbench.recording.taps import Chain, Edit, Recorder, Tally, Tap
from workbench.traces import Manifest, TensorInfo, Trace, TraceWriter, load, predicted_bytes, verification
from workbench.traces.format import word
from workbench.traces.spans import Span
from workbench.traces.steps import steps
from workbench.traces.tensor_parts import join

if TYPE_CHECKING:
    from workbench.model.model import Model

AT_ONCE = 1024  # positions of a pass: each expert of the 20b then gets 128 of them, enough to be worth its reading
SOME = 32  # a last pass is longer than this: a short one costs as much as a long one
LEAST = 128  # of a pass, and what longer ones are multiples of
HELD = 192 << 20  # bytes of a recording that may wait to be written: it and what it is made of are held together
PROBE = 160  # positions at most: past the 128-token window of the published models
PROBE_STRIDE = 7919  # a prime: the probe's tokens come from all over the vocabulary
PROBED = slice(-16, None)  # of these, where logits are compared: all that came before is in them


NEIGHBOURS = (
    "with these kernels a position's last bits depend on what is computed beside it: positions before an edit may "
    "differ from those of an unedited run by rounding"
)


@dataclass(frozen=True)
class Plan:
    """What a run will record: hook points and lanes by full name, besides the ones that every trace has."""

    words: tuple[str, ...]  # as asked
    points: tuple[str, ...]
    lanes: tuple[str, ...]
    gave_way: tuple[str, ...]
    estimate: budget.Estimate
    at_once: int  # positions of a pass

    @property
    def lens(self) -> bool:
        return any(lane.startswith("lens_") for lane in self.lanes)


def always(n_layers: int) -> list[str]:
    """The hook points and lanes that every trace has."""
    return [name for p in hooks.ALWAYS for name in (hooks.match(p, n_layers) if p in hooks.POINTS else [p])]


def plan(
    model: "Model",
    record: str | Sequence[str],
    tokens: Sequence[int],
    n_pos: int,
    limit: float | None,
    streamed: bool = False,
) -> Plan:
    """What `record` stands for over `n_pos` positions. Raises HookNameError, or BudgetError if it would not fit.

    `streamed`: what was recorded leaves the memory after each pass.
    """
    c, dtype = model.config, model.dtype_name
    words = tuple(hooks.words(record))
    spans, pieces = text_of(model, tokens)
    n_steps = len(found_steps(spans, pieces)) + max(0, n_pos - len(tokens)) // 8  # a step is rarely shorter
    free = free_memory("cpu")  # where recordings are kept, also those of a GPU
    base = always(c.n_layers)
    gave_way: tuple[str, ...] = ()
    if "auto" in words:
        asked = tuple(word for word in words if word != "auto")
        first = budget.shapes(c, [*base, *hooks.expand(asked, c.n_layers)], dtype, n_pos, n_steps)
        left = (budget.AUTO_SHARE * free if limit is None else limit) - sum(map(budget.size, first.values()))
        taken, gave_way = budget.take_what_fits(c, dtype, n_pos, n_steps, left)
        words = ("auto", *taken, *asked)  # part of what identifies the run: another budget is another trace
    wanted = hooks.expand([word for word in words if word != "auto"], c.n_layers)
    table = budget.shapes(c, [*base, *wanted], dtype, n_pos, n_steps)
    held = sum(map(budget.size, table.values()))
    at_once = n_pos if model.edits_in_force() else AT_ONCE
    if streamed and at_once == AT_ONCE:
        fits = HELD * n_pos // max(held, 1) // LEAST * LEAST
        at_once = min(AT_ONCE, max(LEAST, fits))
    longest = min(n_pos, at_once + SOME)
    if streamed:
        held = held * longest // max(n_pos, 1)
    draft = manifest(model, tokens, len(tokens), words, [], spans=spans, pieces=pieces)
    draft = replace(draft, verification=verification.Findings(dtype).report())
    working = budget.working_memory(c, dtype, n_pos, wanted, longest)
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
    lanes = tuple(name for name in wanted if name in hooks.LANES)
    return Plan(words, tuple(name for name in wanted if name not in hooks.LANES), lanes, gave_way, estimate, at_once)


@dataclass(frozen=True)
class Run:
    """One run under way: what it records, and the edits that it meets, which keep its tally."""

    model: "Model"
    plan: Plan
    edits: list[Edit]
    notes: list[str]


def start(
    model: "Model",
    record: str | Sequence[str],
    tokens: Sequence[int],
    n_pos: int,
    limit: float | None,
    notes: Sequence[str],
    to: Path | None = None,
) -> Run:
    """Plans a run. Raises HookNameError for a word of `record` that means nothing, BudgetError if it would not fit."""
    edits = model.edits_in_force()
    planned = plan(model, record, tokens, n_pos, limit, streamed=to is not None)
    asked = {word: hooks.expand([word], model.config.n_layers) for word in planned.words if word != "auto"}
    budget.refuse_if_too_big(model.config, planned.estimate, model.dtype_name, asked)
    if to is not None:
        budget.refuse_if_disk_too_small(planned.estimate.bytes, to)
    if model.device != "cpu":
        wanted = [*planned.points, *planned.lanes]
        longest = min(n_pos, planned.at_once + SOME)
        working = budget.working_memory(model.config, model.dtype_name, n_pos, wanted, longest)
        budget.refuse_if_device_too_small(working, free_memory(model.device), model.device)
    for edit in edits:
        edit.tally = Tally()
    if not model.rows_independent and any(edit.positions is not None for edit in edits):
        notes = [*notes, NEIGHBOURS]
    return Run(model, planned, edits, list(notes))


def as_planned(run: Run, words: Sequence[str], gave_way: Sequence[str]) -> Run:
    """The same run under the name that another one had: what "auto" takes depends on the memory that is free."""
    return replace(run, plan=replace(run.plan, words=tuple(words), gave_way=tuple(gave_way)))


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


def passes(n: int, at_once: int | None = None) -> Iterator[tuple[int, int]]:
    """A text of `n` positions in passes of about `at_once`, cut where blocks of attention end, none of them short.

    So cut, each position meets the same products in the same order as in one pass, and gets the same bits.

    >>> list(passes(2100, at_once=1024)), list(passes(2050, at_once=1024))
    ([(0, 1024), (1024, 2048), (2048, 2100)], [(0, 1024), (1024, 2050)])
    """
    start, at_once = 0, at_once or AT_ONCE
    while start < n:
        stop = n if n - start <= at_once + SOME else start + at_once
        yield start, stop
        start = stop


def record_pass(
    run: Run, tokens: Sequence[int], flag: Interrupt, live: bool = True, writer: TraceWriter | None = None
) -> dict[str, np.ndarray]:
    """Known tokens read with everything that the plan wants; `live=False` leaves out what was seen live.

    What each pass gives is kept, or goes to `writer` and leaves the memory; then passes are shorter if much is
    recorded, for what one leaves is held until it is written. An edited run is one pass: an edit may look at all
    positions together.
    """
    model, planned, c = run.model, run.plan, run.model.config
    spans, pieces = text_of(model, tokens)
    wanted = [*planned.points, *(p for p in always(c.n_layers) if p not in hooks.LANES)]
    pooled = None
    if "step_attention" in planned.lanes:
        pooled = StepAttention(c, len(tokens), [slice(s.start, s.stop) for s in found_steps(spans, pieces)])
    asked = {*wanted, *always(c.n_layers), *planned.lanes}
    seen_live = set() if live else {*LIVE, *(name for p in LIVE_POINTS for name in hooks.match(p, c.n_layers))}
    kept: dict[str, list[np.ndarray]] = {}

    def keep(found: Mapping[str, np.ndarray]) -> None:
        found = {name: a for name, a in found.items() if name in asked}
        for name, a in found.items():
            if writer is None or name in seen_live:  # the replayed routes are only to be compared
                kept.setdefault(name, []).append(a)
        if writer:
            source = "forward" if live else "replay"
            writer.append({name: a for name, a in found.items() if name not in seen_live}, source=source)

    cut = [(0, len(tokens))] if run.edits else list(passes(len(tokens), planned.at_once))
    whole = any(name.endswith(("hook_pattern", "hook_attn_scores")) for name in wanted)
    cache = KVCache(c, whole=whole) if len(cut) > 1 else None
    chosen = Chosen(tokens)
    with progress(len(tokens), len(cut) > 1) as bar, torch.no_grad():
        for start, stop in cut:
            recorder, norms = Recorder(wanted), Norms(c.n_layers)
            lanes: list[Norms | Predictions] = [norms]
            if live or planned.lens:
                lanes.append(Predictions(c, model.weights, lens=planned.lens))
            taps: list[Tap] = [flag, *run.edits, recorder, *lanes]
            taps += [chosen] if live else []
            taps += [pooled] if pooled else []
            batch = torch.tensor([list(tokens[start:stop])], device=model.device)
            forward(c, model.weights, batch, Chain(*taps), cache, logits_at=slice(0, 0))
            found = arrays(recorder) | {"margin": margins(c, recorder)}
            for lane in lanes:
                found |= lane.lanes()
            if live:
                found |= {"logprob": chosen.lanes()["logprob"][start:stop]}
            del recorder, lanes, taps
            if stop == len(tokens):
                found |= {"sinks": sinks(model)} | (pooled.lanes() if pooled else {})
            keep(found)
            bar.update(stop - start)
    return {name: join(name, word(a[0].dtype), hooks.axes(name), a) for name, a in kept.items()}


@contextmanager
def writing(run: Run, tokens: Sequence[int], prompt_length: int, to: Path | None) -> Iterator[TraceWriter | None]:
    """Where a run's arrays go as they come, if they are to leave the memory; nothing is left there if it fails."""
    if to is None:
        yield None
        return
    spans, pieces = text_of(run.model, tokens)
    draft = manifest(
        run.model, tokens, prompt_length, run.plan.words, describe_edits(run), spans=spans, pieces=pieces
    )  # fmt: skip
    with TraceWriter(to, draft) as writer:
        yield writer
        writer.abort()  # unless it was committed


def progress(total: int, worth_it: bool = True) -> tqdm:
    """A bar with tokens per second, where somebody can see it: a terminal or a notebook."""
    seen = "ipykernel" in sys.modules or sys.stderr.isatty()
    return tqdm(total=total, unit="token", disable=not (seen and worth_it), leave=False, delay=1)


def sinks(model: "Model") -> np.ndarray:
    """layer head: the learned sink logits, in fp32 or better."""
    return np.stack([exact(w.sinks) for w in model.weights.blocks])


def exact(x: torch.Tensor) -> np.ndarray:
    """In fp32 or better: no bit is lost."""
    return x.detach().to("cpu", torch.promote_types(x.dtype, torch.float32)).numpy()


class Prober(Tap):
    """Checks the identities of one layer as soon as the pass has left it, so that one layer is held at a time."""

    def __init__(self, model: "Model", findings: verification.Findings):
        self.model, self.findings = model, findings
        self.held: dict[str, np.ndarray] = {}
        self.total = np.zeros(1)  # embedding + all writes so far
        self.last = torch.empty(0)

    def wants(self, name: str) -> bool:
        return name != "hook_logits"

    def __call__(self, name: str, x: torch.Tensor, offset: int = 0) -> torch.Tensor:
        if name == "hook_logits":
            return x
        a = exact(x[0]) if x.is_floating_point() else x[0].detach().cpu().numpy()
        short, layer = hooks.short(name), hooks.layer_of(name)
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
        v = self.held | extra | {"dtype": verification.empty(self.model.dtype_name)}
        self.findings.add_layer(v, layer, self.model.config_dict, "the probe")
        if layer == self.model.config.n_layers - 1:
            self.findings.add(
                verification.EMBEDDING, verification.gap(self.total, self.held["resid_post"]), "the probe"
            )
        self.held = {}


def probe(model: "Model") -> verification.Findings:
    """A short pass with every hook point recorded, beside one with none: all identities, and equality bit for bit.

    What it finds is about the model and its kernels. So it reads a text of its own: what a trace says of itself must
    not depend on which texts the model met before.
    """
    kernels = kernels_in_use()
    if model.probed and model.probed[0] == kernels:
        return model.probed[1]
    c = model.config
    n = min(PROBE, max(c.window + 32, 64), c.n_ctx)
    findings = verification.Findings(model.dtype_name)
    batch = torch.arange(1, n + 1, device=model.device)[None] * PROBE_STRIDE % c.d_vocab
    prober = Prober(model, findings)
    with torch.no_grad():
        bare = forward(model.config, model.weights, batch, logits_at=PROBED)
        seen = forward(model.config, model.weights, batch, prober, logits_at=PROBED)
        lens = unembed(model.config, model.weights, prober.last[:, PROBED])
    findings.add(verification.FINITE, 0.0 if bool(seen.isfinite().all()) else float("inf"), "the probe")
    findings.add(verification.UNHOOKED, verification.gap(exact(seen), exact(bare)), "the probe")
    findings.add(verification.LENS, verification.gap(exact(lens), exact(seen)), "the probe")
    model.probed = kernels, findings
    return findings


WORDS = 5  # the ranks of a prediction whose texts a trace keeps


def words(model: "Model", tokens: Sequence[int], kept: Mapping[str, np.ndarray]) -> dict[str, str]:
    """The texts of the likeliest next tokens, so that a trace can be read without a tokenizer."""
    if model.tokenizer is None:
        return {}
    predicted = [kept[name][..., :WORDS].ravel() for name in ("top_ids", "lens_ids") if name in kept]
    ids = sorted({int(t) for t in np.concatenate(predicted)} - set(tokens))
    return {str(t): model.tokenizer.pieces([t])[0] for t in ids}


def kernels_in_use() -> tuple:
    """What decides how products are computed, besides the tensors: where it is the same, so are the bits."""
    return native.isa(), native.decode(), torch.get_num_threads()


def describe_edits(run: Run) -> list[dict]:
    """For the manifest: each edit, how often it fired in this run, and how much it changed."""
    return [edit.describe() | {"points": sorted(edit.points)} | edit.tally.told() for edit in run.edits]


def numerics(model: "Model") -> dict:
    """What the numbers depend on besides weights and tokens."""
    return {
        "dtype": model.dtype_name,
        "device": str(model.device),
        "arithmetic": native.arithmetic(model.dtype, model.device),
        "rows_independent": model.rows_independent,
        "kernels": (native.isa() or native.decode() or "torch") if model.device == "cpu" else "torch",
        "threads": torch.get_num_threads(),
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
        "workbench": version("gpt-oss-workbench"),
    }


def model_of(model: "Model") -> dict:
    """Which model it is, for the manifest."""
    return {
        "name": model.name,
        "format": model.format,
        "weights_digest": model.digest,
        "tokenizer_digest": model.tokenizer.digest if model.tokenizer else None,
        "config": model.config_dict,
        **({"adapter": model.adapter} if model.adapter else {}),
    }


def manifest(
    model: "Model", tokens: Sequence[int], prompt_length: int, asked: Sequence[str], edits: list[dict], **more
) -> Manifest:
    return Manifest(
        model=model_of(model),
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
    writer: TraceWriter | None = None,
    status: str = "complete",
    **more,
) -> Trace:
    """The Trace, verified: a probe of the model, and the identities on the very numbers that are kept.

    An interrupted run ends at once: its probe is left to the one that goes on with it.

    With a `writer` they are those that it wrote, read back; what is in `kept` goes to it first.
    """
    model, planned = run.model, run.plan
    spans, pieces = text_of(model, tokens)
    table = {name: TensorInfo(word(a.dtype), a.shape, hooks.axes(name), sources[name]) for name, a in kept.items()}
    if writer:
        for source in sorted(set(sources.values())):
            writer.append({name: a for name, a in kept.items() if sources[name] == source}, source=source)
        kept = writer.so_far()
        table = kept.manifest.tensors
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
        status=status,
        **more,
    )
    trace = Trace(made, kept)
    findings = verification.Findings(model.dtype_name, verification.edited_points(trace))
    if not run.edits and status == "complete":
        findings.take(probe(model))
    found = verification.check(trace, findings)
    trace = Trace(replace(made, verification=found), kept)
    failed = [f["identity"] for f in found if f["status"] == "fails"]
    if failed:
        warnings.warn(
            f"this trace FAILED to verify: {', '.join(failed)}. Its numbers are not those of a gpt-oss model; "
            f"`trace.verification` says where and by how much.",
            VerificationWarning,
            stacklevel=4,
        )
    return load(writer.commit(trace.manifest)) if writer else trace
