"""Generation: the model writes, one token at a time; what decides each token is recorded as it happens.

Routes and predictions are recorded live. Everything else comes from a replay of the finished text, which costs a
fraction of the writing; the trace says which is which, and on how many routes the two disagree.
"""

import operator
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from workbench import hooks
from workbench.errors import PromptError
from workbench.recording.assemble import assemble
from workbench.recording.decoding import Generation, Settings
from workbench.recording.plan import affordable_plan
from workbench.recording.record import record, reset_tallies, writing
from workbench.recording.resume import restore, save_partial
from workbench.recording.source import ModelSource
from workbench.text import visible
from workbench.traces import Trace

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
    request: str | Sequence[str],
    stop: Sequence[int | str],
    budget: float | None,
    to: Path | None = None,
    notes: Sequence[str] = (),
) -> Trace:
    """What `Model.generate` does, for a prompt that is already token ids."""
    model.partial = None
    settings = Settings(max_tokens, temperature, top_p, seed, _stops(model, stop))
    model.check_prompt(prompt, settings.max_tokens)
    with model.interruptible() as flag:
        source = ModelSource(model)
        plan = affordable_plan(source, request, prompt, len(prompt) + settings.max_tokens, budget, notes, to)
        reset_tallies(source)
        return _finish(Generation(source, plan, settings, prompt, flag), to)


def resume(model: "Model", partial: Trace, to: Path | None = None) -> Trace:
    """What `Model.resume` does."""
    with model.interruptible() as flag:
        generation = restore(ModelSource(model), partial, flag, to)
        model.partial = None
        return _finish(generation, to)


def _finish(generation: Generation, to: Path | None) -> Trace:
    """Decodes to the end, replays the finished text with all that is wanted, and gives the Trace."""
    g, model = generation, generation.source.model
    with writing(g.source, g.plan, g.tokens, g.prompt_length, to):
        pass  # a place that cannot be written is refused now, not after hours
    try:
        finish = g.decode()
        with writing(g.source, g.plan, g.tokens, g.prompt_length, to) as writer:
            replayed = record(g.source, g.tokens, g.plan, g.flag, replay=True, writer=writer)
            live = g.arrays()
            compared, differ = _routes(g.source.n_layers, live, replayed)
            replayed = {name: a for name, a in replayed.items() if name not in live}
            trace = assemble(
                g.source, g.plan, g.tokens, replayed | live, prompt_length=g.prompt_length, writer=writer,
                origin=dict.fromkeys(replayed, "replay") | dict.fromkeys(live, "live"),
                generation=g.settings.to_manifest(finish), replayed_routing={"compared": compared, "different": differ},
            )  # fmt: skip
        if not g.flag.stopped:
            return trace
    except KeyboardInterrupt:
        if not g.has_started:
            raise
        trace = save_partial(g)
    except Exception:  # a full disk, a wrong edit: what was written so far is not lost
        model.partial = save_partial(g) if g.has_started else None
        raise
    model.partial = trace
    raise Interrupted(trace)


def _routes(n_layers: int, live: Mapping[str, np.ndarray], replay: Mapping[str, np.ndarray]) -> tuple[int, int]:
    """Of how many (layer, position) the sets of chosen experts were compared, and on how many they differ."""
    compared = differ = 0
    for name in hooks.match("blocks.*.mlp.hook_expert_indices", n_layers):
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
