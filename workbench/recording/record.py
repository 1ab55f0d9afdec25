"""Records a known text: runs the model over it, and makes a Trace of the values at the hook points.

source.py    the model that is recorded, and how it runs
plan.py      request -> Plan
record.py    tokens + Plan -> arrays
verify.py    arrays + a probe of the model -> which identities hold
assemble.py  arrays + identities -> Trace
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from workbench import hooks
from workbench.edits.edit import Tally
from workbench.model import prefill
from workbench.model.interrupts import Interrupt
from workbench.progress import progress_bar
from workbench.recording.assemble import Authorship, all_prompt, assemble, draft, edits, require_valid
from workbench.recording.plan import Plan, affordable_plan
from workbench.recording.source import ModelSource, Source, batch_of, text_of
from workbench.recording.summaries import Norms, Predictions, StepAttention, TokenLogprobs, margins
from workbench.recording.taps import Recorder, arrays
from workbench.taps import Chain, Tap
from workbench.traces import Trace, TraceWriter
from workbench.traces.format import dtype_code
from workbench.traces.tensor_parts import join

if TYPE_CHECKING:
    from workbench.model.model import Model

NEEDS_ALL_KEYS = ("hook_pattern", "hook_attn_scores")


def trace_model(
    model: "Model",
    tokens: Sequence[int],
    request: str | Sequence[str],
    budget: float | None,
    notes: Sequence[str],
    to: Path | None,
    authorship: Authorship | None = None,
) -> Trace:
    """`Model.trace` for a prompt that is already token ids."""
    with model.interruptible() as flag:
        trace = trace_text(ModelSource(model), tokens, request, budget, notes, to, flag, authorship)
        flag.check()
        return trace


def given_authorship(tokens: Sequence[int], written: Any, calls: Any, follows: Any) -> Authorship:
    """The Authorship of a text from the arguments of `Model.trace`; without `written`, all tokens are the prompt."""
    follows = follows.id if isinstance(follows, Trace) else follows
    return Authorship(all_prompt(tokens).written if written is None else written, calls, follows)


def trace_text(
    source: Source,
    tokens: Sequence[int],
    request: str | Sequence[str],
    budget: float | None,
    notes: Sequence[str] = (),
    to: Path | None = None,
    flag: Interrupt | None = None,
    authorship: Authorship | None = None,
) -> Trace:
    """The verified Trace of a pass of any model over a text.

    Args:
        source: the model.
        tokens: the text.
        request: presets, hook points and globs, or "auto".
        budget: bytes that "auto" may use.
        notes: for the manifest.
        to: the path to which the trace is written during the run; None keeps it in memory.
        flag: ends the run at the next hook point once it is set.
        authorship: who wrote the tokens; by default all are the prompt.
    """
    flag, authorship = flag or Interrupt(), authorship or all_prompt(tokens)
    plan = affordable_plan(source, request, tokens, len(tokens), budget, notes, to)
    reset_tallies(source)
    require_valid(source, plan, tokens, authorship)
    with open_writer(source, plan, tokens, authorship, to) as writer:
        recorded = record(source, tokens, plan, flag, writer=writer)
        flag.check()
        return assemble(source, plan, tokens, recorded, authorship=authorship, writer=writer)


def record(
    source: Source,
    tokens: Sequence[int],
    plan: Plan,
    flag: Interrupt,
    *,
    live: Collection[str] | None = None,
    writer: TraceWriter | None = None,
) -> dict[str, np.ndarray]:
    """The arrays of the plan for known tokens, by full name.

    A long text is processed in chunks. The arrays of each chunk are kept, or appended to `writer` and freed. `live` are
    the names that were recorded while this model generated the text, None for any other text: they are left out, except
    those of the routing, which are returned for the comparison.
    """
    live_names, origin = (set(), "forward") if live is None else (set(live), "replay")
    planned = {*plan.points, *plan.summaries}
    chunks_by_name: dict[str, list[np.ndarray]] = {}

    def keep(chunk: Mapping[str, np.ndarray]) -> None:
        chunk = {name: a for name, a in chunk.items() if name in planned}
        for name, a in chunk.items():
            if writer is None or name in live_names:
                chunks_by_name.setdefault(name, []).append(a)
        if writer:
            new = {name: a for name, a in chunk.items() if name not in live_names}
            writer.append(new, source=origin)

    chunks = list(prefill.chunks(len(tokens), plan.chunk))
    all_keys = any(name.endswith(NEEDS_ALL_KEYS) for name in plan.points)
    cache = source.new_cache(whole=all_keys) if len(chunks) > 1 else None
    token_logprobs, step_attention = TokenLogprobs(tokens), _step_attention(source, plan, tokens)
    hidden = True if len(chunks) == 1 else None  # one pass: there is nothing between its beginning and its end
    with progress_bar(desc="recording", total=len(tokens), unit=" tokens", disable=hidden) as bar, torch.no_grad():
        for start, stop in chunks:
            recorder, norms = Recorder(plan.points), Norms(source.n_layers)
            summarizers: list[Norms | Predictions] = [norms]
            if "entropy" not in live_names or plan.lens:
                summarizers.append(predictions(source, plan.lens))
            taps: list[Tap] = [flag, *source.edits, recorder, *summarizers]
            taps += [] if "logprob" in live_names else [token_logprobs]
            taps += [step_attention] if step_attention else []
            source.run(batch_of(tokens[start:stop]), Chain(*taps), cache, logits_at=slice(0, 0))
            recorded = arrays(recorder)
            for summarizer in summarizers:
                recorded |= summarizer.summaries()
            if "margin" in plan.summaries:
                recorded |= {"margin": margins(recorder, source.n_layers, source.config["n_active"])}
            if "logprob" not in live_names:
                recorded |= {"logprob": token_logprobs.summaries()["logprob"][start:stop]}
            del recorder, summarizers, taps
            if stop == len(tokens):
                recorded |= {"sinks": source.sinks} if source.sinks is not None else {}
                recorded |= step_attention.summaries() if step_attention else {}
            keep(recorded)
            bar.update(stop - start)
    return {name: join(name, dtype_code(a[0].dtype), hooks.axes(name), a) for name, a in chunks_by_name.items()}


def predictions(source: Source, lens: bool) -> Predictions:
    """The tap that summarizes the predictions; with `lens`, those of every layer too."""
    return Predictions(source.n_layers, source.config["d_vocab"], source.read_out if lens else None)


def reset_tallies(source: Source) -> None:
    """Sets the counts of the edits to zero, for the run that starts."""
    for edit in source.edits:
        edit.tally = Tally()


def _step_attention(source: Source, plan: Plan, tokens: Sequence[int]) -> StepAttention | None:
    if "step_attention" not in plan.summaries:
        return None
    steps = [slice(step.start, step.stop) for step in text_of(source, tokens).steps]
    return StepAttention(source.n_layers, source.config["n_heads"], len(tokens), steps)


@contextmanager
def open_writer(
    source: Source, plan: Plan, tokens: Sequence[int], authorship: Authorship, to: Path | None
) -> Iterator[TraceWriter | None]:
    """The writer of a run that is written to `to`; None if it stays in memory. A failed run leaves nothing there."""
    if to is None:
        yield None
        return
    manifest = replace(draft(source, tokens, authorship, plan.request), edits=edits(source))
    with TraceWriter(to, manifest) as writer:
        yield writer
        writer.abort()  # unless it was committed
