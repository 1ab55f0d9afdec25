"""Generation: the model writes, one token at a time; what decides each token is recorded as it happens.

Routes and predictions are recorded live. Everything else comes from one pass over the finished text, which costs a
fraction of the writing; the trace says which is which, and on how many routes the two disagree.
"""

import operator
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from workbench import hooks
from workbench.errors import PromptError
from workbench.recording import partial, tracing
from workbench.recording.generation import Live, Settings
from workbench.text import visible
from workbench.traces import Trace, TraceWriter

if TYPE_CHECKING:
    from workbench.model.model import Model


class Interrupted(KeyboardInterrupt):
    """Generation was interrupted; what it had written is in `trace`, with status "partial" unless it was just done."""

    def __init__(self, trace: Trace):
        what = "`model.resume(model.partial)` goes on" if trace.status == "partial" else "it is all in `model.partial`"
        super().__init__(f"interrupted after {len(trace)} tokens; {what}")
        self.trace = trace

    def __reduce__(self):
        return Interrupted, (self.trace,)


def generate(
    model: "Model",
    prompt: Sequence[int],
    *,
    max_tokens: int,
    temperature: float,
    top_p: float,
    seed: int,
    record: str | Sequence[str],
    stop: Sequence[int | str],
    budget: float | None,
    to: Path | None = None,
    notes: Sequence[str] = (),
) -> Trace:
    """What `Model.generate` does, for a prompt that is already token ids."""
    model.partial = None
    settings = Settings(max_tokens, temperature, top_p, seed, _stops(model, stop))
    model.check_prompt(prompt, settings.max_tokens)
    with model.listening() as flag:
        run = tracing.start(model, record, prompt, len(prompt) + settings.max_tokens, budget, notes, to)
        return _finish(Live(run, settings, prompt, flag), to)


def resume(model: "Model", left: Trace, to: Path | None = None) -> Trace:
    """What `Model.resume` does."""
    with model.listening() as flag:
        live = partial.take_up(model, left, flag, to)
        model.partial = None
        return _finish(live, to)


def _finish(live: Live, to: Path | None) -> Trace:
    """Writes to the end, reads the finished text with all that is wanted, and gives the Trace."""
    run, model = live.run, live.model
    with tracing.writing(run, live.tokens, live.prompt_length, to):
        pass  # a place that cannot be written is refused now, not after hours
    try:
        end = live.write()
        with tracing.writing(run, live.tokens, live.prompt_length, to) as writer:
            replayed = tracing.record_pass(run, live.tokens, live.flag, live=False, writer=writer)
            trace = _joined(live, replayed, end, writer)
        if not live.flag.stopped:
            return trace
    except KeyboardInterrupt:
        if not live.wrote:
            raise
        trace = partial.leave(live)
    except Exception:  # a full disk, a wrong edit: what was written so far is not lost
        model.partial = partial.leave(live) if live.wrote else None
        raise
    model.partial = trace
    raise Interrupted(trace)


def _joined(live: Live, replayed: dict[str, np.ndarray], end: str, writer: TraceWriter | None) -> Trace:
    """The Trace of what was recorded live and of what the replay saw."""
    kept = live.arrays()
    compared, differ = _routes(live.model, kept, replayed)
    replayed = {name: a for name, a in replayed.items() if name not in kept}
    return tracing.build(
        live.run,
        live.tokens,
        live.prompt_length,
        replayed | kept,
        dict.fromkeys(replayed, "replay") | dict.fromkeys(kept, "live"),
        writer=writer,
        generation=live.settings.told(end),
        routes={"compared": compared, "differ": differ},
    )


def _routes(model: "Model", live: dict[str, np.ndarray], replay: dict[str, np.ndarray]) -> tuple[int, int]:
    """Of how many (layer, position) the sets of chosen experts were compared, and on how many they differ."""
    compared = differ = 0
    for name in hooks.match("blocks.*.mlp.hook_expert_indices", model.config.n_layers):
        a, b = np.sort(live[name], -1), np.sort(replay[name], -1)
        compared += len(a)
        differ += int((a != b).any(-1).sum())
    return compared, differ


def _several(stop: Any) -> list[Any]:
    """One id or text, or several, as a list."""
    if isinstance(stop, str):
        return [stop]
    try:
        return [operator.index(stop)]
    except TypeError:
        if isinstance(stop, Iterable) and not isinstance(stop, bytes | bytearray | Mapping):
            return list(stop)
    raise PromptError(f"stop must be token ids and texts, as in stop=['\\n', 7], or () for none; got {stop!r}")


def _stop_id(model: "Model", given: Any) -> int:
    try:
        token = -1 if isinstance(given, bool) else operator.index(given)
    except TypeError:
        token = -1
    if not 0 <= token < model.config.d_vocab:
        raise PromptError(
            f"stop has {visible(repr(given)[:60])}, which is not a text and not a token id of {model.name} "
            f"(0..{model.config.d_vocab - 1})"
        )
    return token


def _stops(model: "Model", stop: Sequence[int | str]) -> tuple[int | str, ...]:
    """Token ids in order, then texts: the model's own ends and those given."""
    ids, texts = set(model.stop_ids), []
    for s in _several(stop):
        if not isinstance(s, str):
            ids.add(_stop_id(model, s))
        elif model.tokenizer is None:
            raise PromptError(f"this model has no tokenizer, so it cannot stop at {s!r}; give token ids")
        elif s in model.tokenizer.special:
            ids.add(model.tokenizer.special[s])
        elif s:
            texts.append(s)
    return (*sorted(ids), *texts)
