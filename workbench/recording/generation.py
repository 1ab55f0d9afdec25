"""Generates text and records it: decodes one token at a time, then replays the finished text.

Routing and predictions are recorded live, while decoding. Everything else comes from a replay of the finished text,
which costs a fraction of the decoding. The trace has the source of each array, and the number of expert choices on
which the live run and the replay differ.
"""

import operator
import signal
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from workbench import hooks
from workbench.errors import BudgetError, PromptError, TraceError
from workbench.model.interrupts import Interrupt
from workbench.model.memory import is_out_of_memory, out_of_memory_text
from workbench.recording.assemble import assemble, require_valid
from workbench.recording.checkpointing import Checkpointing
from workbench.recording.decoding import Generation, Settings
from workbench.recording.next_token import next_token
from workbench.recording.plan import affordable_plan
from workbench.recording.record import open_writer, record, reset_tallies
from workbench.recording.resume import restore, save_partial
from workbench.recording.source import ModelSource
from workbench.text import shown, visible
from workbench.traces import Trace

if TYPE_CHECKING:
    from workbench.model.model import Model


class Interrupted(KeyboardInterrupt):
    """Generation was stopped by Ctrl-C, SIGTERM, SIGHUP or `model.stop()`.

    `trace` has the tokens so far; its status is "partial" unless it was complete. `path` is where it was saved if the
    run was written to disk (`to=`), otherwise None. `signum` is the signal.
    """

    def __init__(self, trace: Trace, path: Path | None = None, signum: int = signal.SIGINT):
        what = "continue with `model.resume(model.partial)`"
        if trace.status != "partial":
            what = "the complete trace is in `model.partial`"
        elif path is not None:
            what = f"continue with `model.resume(wb.load({visible(repr(str(path)))}))`"
        super().__init__(f"interrupted after {len(trace)} tokens; {what}")
        self.trace, self.path, self.signum = trace, path, signum

    def __reduce__(self):
        return Interrupted, (self.trace, self.path, self.signum)


def generate(
    model: "Model",
    prompt: Sequence[int],
    *,
    max_tokens: int,
    temperature: float,
    top_p: float,
    seed: int,
    request: str | Sequence[str],
    stop: Sequence[int | str],
    budget: float | None,
    to: Path | None = None,
    notes: Sequence[str] = (),
) -> Trace:
    """`Model.generate` for a prompt that is already token ids."""
    model.partial = None
    settings = Settings(max_tokens, temperature, top_p, seed, stops(model, stop))
    model.check_prompt(prompt, settings.max_tokens)

    def start(flag: Interrupt) -> Generation:
        source = ModelSource(model)
        plan = affordable_plan(source, request, prompt, len(prompt) + settings.max_tokens, budget, notes, to)
        reset_tallies(source)
        return Generation(source, plan, settings, prompt, flag, next_token(source, prompt, settings.top_p))

    return _run(model, start, to)


def resume(model: "Model", partial: Trace, to: Path | None = None) -> Trace:
    """`Model.resume`: the Trace of the continued generation."""
    return _run(model, lambda flag: restore(ModelSource(model), partial, flag, to), to)


def _run(model: "Model", start: Callable[[Interrupt], Generation], to: Path | None) -> Trace:
    """The Trace of a generation. No interrupt at any moment loses what was computed: see `workbench.signals`."""
    trace = None
    try:
        with model.interruptible() as flag:
            flag.has_something_to_lose = True
            trace = _finish(start(flag), to)
    except KeyboardInterrupt as interrupt:
        if trace is None:
            raise
        model.partial = trace  # Ctrl-C after the last check
        raise Interrupted(trace, signum=getattr(interrupt, "signum", signal.SIGINT)) from interrupt
    return trace


def _finish(generation: Generation, to: Path | None) -> Trace:
    """The Trace of a generation, after decoding to the end and replaying the finished text with the plan."""
    g, model = generation, generation.source.model
    require_valid(g.source, g.plan, g.tokens, g.authorship, g.settings.to_manifest("length"))
    with open_writer(g.source, g.plan, g.tokens, g.authorship, to):
        pass  # a path that cannot be written is refused now, not after hours
    checkpointing = Checkpointing(g, to)
    model.keep(lambda: save_partial(g) if g.has_started else None, g.flag)  # before anything is computed
    try:
        trace = _decode_and_replay(g, to, checkpointing)
    except BaseException as error:  # also a full disk, a wrong edit, or SystemExit: no token is lost
        if not g.has_started:
            raise
        trace = save_partial(g)
        model.partial = trace
        path = _saved(checkpointing, trace)
        if isinstance(error, KeyboardInterrupt) or g.flag.stopped:  # the terminal may be closed, and printing fails
            raise Interrupted(trace, path, g.flag.signum) from error
        kept = f"the {len(trace)} tokens so far are in `model.partial`" + (f" and at {path}" if path else "")
        if is_out_of_memory(error):
            failure = BudgetError(f"{out_of_memory_text(error)} Of this run, {kept}.")
            failure.__dict__["trace"] = trace
            raise failure from error
        error.__dict__["trace"] = trace
        error.add_note(f"{kept}; `model.resume(model.partial)` continues from there.")
        raise
    model.partial = trace if g.flag.stopped else None
    if g.flag.stopped:
        raise Interrupted(trace, signum=g.flag.signum)
    return trace


def _decode_and_replay(g: Generation, to: Path | None, checkpointing: Checkpointing) -> Trace:
    finish_reason = g.decode(checkpointing.save_if_due)
    checkpointing.save_before_replay()
    trace = replayed(g, finish_reason, g.flag, to)
    checkpointing.remove()
    return trace


def replayed(g: Generation, finish_reason: str, flag: Interrupt, to: Path | None = None) -> Trace:
    """The Trace of a generation that has been decoded to the end, after a replay of its text with its plan."""
    with open_writer(g.source, g.plan, g.tokens, g.authorship, to) as writer:
        live = g.arrays()
        replay = record(g.source, g.tokens, g.plan, flag, live=live.keys(), writer=writer)
        routing = _compare_routing(g.source.n_layers, live, replay)
        replay = {name: a for name, a in replay.items() if name not in live}
        return assemble(
            g.source, g.plan, g.tokens, replay | live, authorship=g.authorship, writer=writer,
            origin=dict.fromkeys(replay, "replay") | dict.fromkeys(live, "live"),
            generation=g.settings.to_manifest(finish_reason), replayed_routing=routing,
        )  # fmt: skip


def _saved(checkpointing: Checkpointing, trace: Trace) -> Path | None:
    """The path at which the partial trace is saved. If the disk fails, it is in memory only: None."""
    try:
        return checkpointing.save(trace)
    except TraceError:
        return None


def _compare_routing(n_layers: int, live: Mapping[str, np.ndarray], replay: Mapping[str, np.ndarray]) -> dict[str, int]:
    """For the manifest: the number of (layer, position) pairs, and on how many the chosen experts differ."""
    compared = different = 0
    for name in hooks.match("blocks.*.mlp.hook_expert_indices", n_layers):
        a, b = np.sort(live[name], -1), np.sort(replay[name], -1)
        compared += len(a)
        different += int((a != b).any(-1).sum())
    return {"compared": compared, "different": different}


def _several(stop: Any) -> list[Any]:
    """One token id or text, or several, as a list."""
    if isinstance(stop, str):
        return [stop]
    try:
        return [stop] if isinstance(stop, bool) else [operator.index(stop)]
    except TypeError:
        if (
            isinstance(stop, Iterable)
            and getattr(stop, "ndim", 1) == 1
            and not isinstance(stop, bytes | bytearray | Mapping)
        ):
            return list(stop)
    raise PromptError(f"stop must be token ids and texts, as in stop=['\\n', 7], or () for none, got {shown(stop)}")


def _stop_id(model: "Model", value: Any) -> int:
    try:
        token = -1 if isinstance(value, bool) else operator.index(value)
    except TypeError:
        token = -1
    if not 0 <= token < model.config.d_vocab:
        raise PromptError(
            f"stop has {shown(value)}, which is neither a text nor a token id of {model.name} "
            f"(0..{model.config.d_vocab - 1})"
        )
    return token


def _is_unicode(text: str) -> bool:
    """False for half of a surrogate pair."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def stops(model: "Model", stop: Sequence[int | str]) -> tuple[int | str, ...]:
    """Sorted token ids, then texts: the model's own stop tokens and those of `stop`."""
    ids, texts = set(model.stop_ids), []
    for s in _several(stop):
        if isinstance(s, str):
            s = str.__str__(s)  # of a subclass too, such as numpy's: a manifest holds plain texts
        if not isinstance(s, str):
            ids.add(_stop_id(model, s))
        elif not _is_unicode(s):
            raise PromptError(f"stop has {shown(s)}, which is not valid Unicode, so no text contains it")
        elif model.tokenizer is None:
            raise PromptError(f"this model has no tokenizer, so it cannot stop at {s!r}; pass token ids")
        elif s in model.tokenizer.special:
            ids.add(model.tokenizer.special[s])
        elif s:
            texts.append(s)
    return (*sorted(ids), *texts)
