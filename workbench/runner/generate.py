"""Generation: the model writes, one token at a time; what decides each token is recorded as it happens.

Routes and predictions are recorded live. Everything else comes from one pass over the finished text, which costs a
fraction of the writing; the trace says which is which, and on how many routes the two disagree.
"""

import operator
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from workbench import names
from workbench.errors import PromptError
from workbench.runner import tracing
from workbench.runner.cache import KVCache
from workbench.runner.gpt_oss import forward
from workbench.runner.interrupts import Interrupt
from workbench.runner.recording import LIVE_POINTS, Chosen, Predictions, arrays, margins
from workbench.runner.taps import Chain, Recorder
from workbench.traces import Trace, TraceWriter

if TYPE_CHECKING:
    from workbench.runner.model import Model


class Interrupted(KeyboardInterrupt):
    """Generation was interrupted; what it had written is in `trace`, with status "partial" unless it was just done."""

    def __init__(self, trace: Trace):
        super().__init__(f"interrupted after {len(trace)} tokens; the partial trace is kept in `model.partial`")
        self.trace = trace


class Live:
    """One generation under way: the text so far, its cache, and what was recorded of it."""

    def __init__(self, run: tracing.Run, prompt: Sequence[int], flag: Interrupt):
        self.run, self.model, self.tokens = run, run.model, list(prompt)
        c = self.model.config
        self.cache = KVCache(c, whole=bool(run.edits))
        self.recorder = Recorder([name for p in LIVE_POINTS for name in names.match(p, c.n_layers)])
        self.predictions, self.chosen = Predictions(c, self.model.weights), Chosen(prompt)
        self.tap = Chain(flag, *run.edits, self.recorder, self.predictions, self.chosen)
        self.read = 0  # positions that went through the whole model

    def step(self) -> torch.Tensor:
        """Reads what has not been read yet; the logits of the token to come."""
        new = self.tokens[self.read :]
        logits = torch.empty(0)
        for start, stop in [(0, len(new))] if self.run.edits else tracing.passes(len(new)):
            batch = torch.tensor([new[start:stop]], device=self.model.device)
            logits = forward(self.model.config, self.model.weights, batch, self.tap, self.cache, slice(-1, None))
            self.read += stop - start
        return logits[0, -1]

    def add(self, token: int) -> None:
        self.chosen.follow(token)
        self.tokens.append(token)

    def arrays(self) -> dict[str, np.ndarray]:
        """What was recorded of the positions that were read to the end; an interrupted pass leaves nothing."""
        n = self.read
        for name in self.recorder.seen:
            self.recorder.seen[name] = [self.recorder[name][:, :n]]
        kept = arrays(self.recorder) | self.predictions.lanes() | self.chosen.lanes()
        kept |= {"margin": margins(self.model.config, self.recorder)}
        cut = {}
        for name, a in kept.items():
            axis = names.axes(name).index("pos")
            cut[name] = a[(slice(None),) * axis + (slice(0, n),)]
        return cut


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
    max_tokens = _check(max_tokens, temperature, top_p)
    model.check_prompt(prompt, max_tokens)
    stop_ids, stop_texts = _stops(model, stop)
    settings = {"max_tokens": max_tokens, "temperature": temperature, "top_p": top_p, "seed": seed}
    settings |= {"stop": [*sorted(stop_ids), *stop_texts]}
    with model.listening() as flag:
        run = tracing.start(model, record, prompt, len(prompt) + max_tokens, budget, notes, to)
        live = Live(run, prompt, flag)
        try:
            finish = _write(live, max_tokens, temperature, top_p, seed, stop_ids, stop_texts)
            with tracing.writing(run, live.tokens, len(prompt), to) as writer:
                replayed = tracing.record_pass(run, live.tokens, flag, live=False, writer=writer)
                trace = _finished(live, replayed, settings | {"finish": finish}, writer)
            if not flag.stopped:
                return trace
        except KeyboardInterrupt:
            if live.read == 0:
                raise
            trace = _partial(live, settings | {"finish": "interrupted"})
    model.partial = trace
    raise Interrupted(trace)


def _write(
    live: Live, max_tokens: int, temperature: float, top_p: float, seed: int, stop_ids: set[int], stop_texts: list[str]
) -> str:
    """Adds tokens until one of the ends; says which: "stop" or "length"."""
    dice = torch.Generator().manual_seed(seed)
    tokenizer = live.model.tokenizer
    logits = live.step()
    written: list[int] = []
    tail = 8 + max((len(text.encode()) for text in stop_texts), default=0)  # a token has a byte at least
    with tracing.progress(max_tokens) as bar, torch.no_grad():
        while True:
            token = choose(logits, temperature, top_p, dice)
            live.add(token)
            written.append(token)
            bar.update()
            # the last token is read too, so that every position of the trace has the same values
            logits = live.step()
            if token in stop_ids:
                return "stop"
            if stop_texts and tokenizer and any(t in tokenizer.decode(written[-tail:]) for t in stop_texts):
                return "stop"
            if len(written) == max_tokens:
                return "length"


def choose(logits: torch.Tensor, temperature: float, top_p: float, dice: torch.Generator) -> int:
    """The next token: the likeliest at temperature 0, otherwise drawn from the smallest set with mass `top_p`."""
    if temperature == 0:
        return int(logits.argmax())
    p = (logits.detach().to("cpu", torch.float64) / temperature).softmax(-1)
    if top_p < 1:
        ordered, index = p.sort(descending=True, stable=True)
        enough = int((ordered.cumsum(0) - ordered < top_p).sum())
        p = torch.zeros_like(p).scatter(0, index[:enough], ordered[:enough])
    return int(torch.multinomial(p, 1, generator=dice))


def _routes(model: "Model", live: dict[str, np.ndarray], replay: dict[str, np.ndarray]) -> tuple[int, int]:
    """Of how many (layer, position) the sets of chosen experts were compared, and on how many they differ."""
    compared = differ = 0
    for name in names.match("blocks.*.mlp.hook_expert_indices", model.config.n_layers):
        a, b = np.sort(live[name], -1), np.sort(replay[name], -1)
        compared += len(a)
        differ += int((a != b).any(-1).sum())
    return compared, differ


def _finished(live: Live, replayed: dict[str, np.ndarray], settings: dict, writer: TraceWriter | None) -> Trace:
    kept = live.arrays()
    compared, differ = _routes(live.model, kept, replayed)
    replayed = {name: a for name, a in replayed.items() if name not in kept}
    sources = dict.fromkeys(replayed, "replay") | dict.fromkeys(kept, "live")
    routes = {"compared": compared, "differ": differ}
    prompt_length = len(live.chosen.tokens)
    return tracing.build(
        live.run,
        live.tokens,
        prompt_length,
        replayed | kept,
        sources,
        writer=writer,
        generation=settings,
        routes=routes,
    )


def _partial(live: Live, settings: dict) -> Trace:
    """A trace of what was read before the interrupt."""
    kept = live.arrays() | {"sinks": tracing.sinks(live.model)}
    note = f"interrupted after {live.read} positions: not replayed, so it holds routes and predictions only"
    tokens, prompt_length = live.tokens[: live.read], min(len(live.chosen.tokens), live.read)
    sources = dict.fromkeys(kept, "live")
    return tracing.build(live.run, tokens, prompt_length, kept, sources, [note], generation=settings, status="partial")


def _stops(model: "Model", stop: Sequence[int | str]) -> tuple[set[int], list[str]]:
    ids, texts = set(model.stop_ids), []
    several: Any = [stop] if isinstance(stop, str) or hasattr(stop, "__index__") else stop
    for s in several:
        if not isinstance(s, str):
            ids.add(operator.index(s))
        elif model.tokenizer is None:
            raise PromptError(f"this model has no tokenizer, so it cannot stop at {s!r}; give token ids")
        elif s in model.tokenizer.special:
            ids.add(model.tokenizer.special[s])
        elif s:
            texts.append(s)
    return ids, texts


def _check(max_tokens: int, temperature: float, top_p: float) -> int:
    """max_tokens as a plain int. Raises PromptError for settings that make no sense."""
    try:
        max_tokens = operator.index(max_tokens)
    except TypeError:
        raise PromptError(f"max_tokens must be a whole number, got {max_tokens!r}") from None
    if max_tokens < 1:
        raise PromptError(f"max_tokens must be at least 1, got {max_tokens}; `model.trace` records without writing")
    if not 0 <= temperature < float("inf"):
        raise PromptError(f"temperature must be 0 (greedy) or more, got {temperature}")
    if not 0 < top_p <= 1:
        raise PromptError(f"top_p must lie in (0, 1], got {top_p}")
    return max_tokens
