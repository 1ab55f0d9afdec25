"""One generation under way: the text so far, its cache, and what was recorded of it."""

import operator
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from workbench import hooks
from workbench.edits.edit import Tally
from workbench.errors import PromptError
from workbench.model import prefill
from workbench.model.cache import KVCache
from workbench.model.gpt_oss import forward
from workbench.model.interrupts import Interrupt
from workbench.model.sampling import probabilities
from workbench.recording import tracing
from workbench.recording.not_finite import not_finite, usable
from workbench.recording.summaries import LIVE_POINTS, Chosen, Predictions, margins
from workbench.recording.taps import Recorder, arrays
from workbench.taps import Chain
from workbench.traces.format import word
from workbench.traces.tensor_parts import join


@dataclass(frozen=True, slots=True)
class Settings:
    """How a model writes and when it stops. Raises PromptError for what makes no sense."""

    max_tokens: int
    temperature: float
    top_p: float
    seed: int
    stop: tuple[int | str, ...]  # token ids and texts

    def __post_init__(self) -> None:
        for name in ("max_tokens", "seed"):
            value = getattr(self, name)
            try:
                object.__setattr__(self, name, operator.index(value))
            except TypeError:
                raise PromptError(f"{name} must be a whole number, got {value!r}") from None
        if self.max_tokens < 1:
            raise PromptError(
                f"max_tokens must be at least 1, got {self.max_tokens}; `model.trace` records without writing"
            )
        for name in ("temperature", "top_p"):
            object.__setattr__(self, name, _real(name, getattr(self, name)))
        if not 0 <= self.temperature < float("inf"):
            raise PromptError(f"temperature must be 0 (greedy) or more, got {self.temperature}")
        if not 0 < self.top_p <= 1:
            raise PromptError(f"top_p must lie in (0, 1], got {self.top_p}")

    def told(self, finish: str) -> dict[str, Any]:
        """For the manifest; `Settings.again` takes it back."""
        return asdict(self) | {"stop": list(self.stop), "finish": finish}

    @classmethod
    def again(cls, told: Mapping[str, Any]) -> "Settings":
        return cls(told["max_tokens"], told["temperature"], told["top_p"], told["seed"], tuple(told["stop"]))


def _real(name: str, value: Any) -> float:
    try:
        if not isinstance(value, str | bytes | bytearray | bool):
            return float(value)
    except (TypeError, ValueError, OverflowError, RuntimeError):
        pass
    raise PromptError(f"{name} must be a number, got {value!r}")


class Reached(NamedTuple):
    """Where all layers have been: one value, so that an interrupt at any moment finds parts that belong together."""

    read: int  # positions
    logits: Tensor  # of the token after them
    tallies: list[Tally]  # what the edits had done until then


class Live:
    """A text that a model reads and goes on writing. `before` is what an interrupted run recorded of its beginning."""

    def __init__(self, run: tracing.Run, settings: Settings, prompt: Sequence[int], flag: Interrupt):
        self.run, self.model, self.settings, self.flag = run, run.model, settings, flag
        self.tokens, self.prompt_length = list(prompt), len(prompt)
        c = self.model.config
        self.cache = KVCache(c, whole=bool(run.edits))
        self.recorder = Recorder([name for p in LIVE_POINTS for name in hooks.match(p, c.n_layers)])
        self.predictions, self.chosen = Predictions(c, self.model.weights), Chosen(prompt)
        self.tap = Chain(flag, *run.edits, self.recorder, self.predictions, self.chosen)
        self.before: Mapping[str, np.ndarray] = {}
        self.start = 0  # positions that `before` has
        self.reached = Reached(0, torch.empty(0), [])

    def go_on(self, tokens: Sequence[int], before: Mapping[str, np.ndarray], cache: KVCache, reached: Reached) -> None:
        """Takes up another run where it stood, as if this one had read and written all of it."""
        self.tokens, self.before, self.cache, self.reached = list(tokens), before, cache, reached
        self.start = reached.read
        self.chosen.after(reached.logits)
        for edit, tally in zip(self.run.edits, reached.tallies, strict=True):
            edit.tally = tally

    @property
    def wrote(self) -> bool:
        """Whether the prompt was read to its end: from there on there is something to keep."""
        return self.reached.read >= self.prompt_length

    def write(self) -> str:
        """Adds tokens until one of the ends; says which: "stop" or "length"."""
        s, n = self.settings, self.prompt_length
        with tracing.progress(s.max_tokens + n - len(self.tokens)) as bar, torch.no_grad():
            if not self.wrote:
                self._read()
            while not (end := self._end()):
                if s.temperature and not usable(self.reached.logits):  # greedy, the trace says it: it does not verify
                    raise not_finite(self.model, self.tokens, self.flag)
                token = choose(self.reached.logits, s.temperature, s.top_p, s.seed, len(self.tokens) - n)
                self.chosen.follow(token)
                self.tokens.append(token)
                self._read()  # the last token too, so that every position of the trace has the same values
                bar.update()
        return end

    def _read(self) -> None:
        """Reads what has not been read yet."""
        first = self.reached.read
        new = self.tokens[first:]
        for start, stop in [(0, len(new))] if self.run.edits else prefill.chunks(len(new)):
            batch = torch.tensor([new[start:stop]], device=self.model.device)
            logits = forward(self.model.config, self.model.weights, batch, self.tap, self.cache, slice(-1, None))
            self.reached = Reached(first + stop, logits[0, -1], [replace(edit.tally) for edit in self.run.edits])

    def _end(self) -> str | None:
        """Why nothing more is to be written; None while there is."""
        s, tokenizer = self.settings, self.model.tokenizer
        n = len(self.tokens) - self.prompt_length
        if n and self.tokens[-1] in s.stop:
            return "stop"
        texts = [text for text in s.stop if isinstance(text, str)]
        if n and texts and tokenizer:
            tail = min(n, 8 + max(len(text.encode()) for text in texts))  # a token has a byte at least
            if any(text in tokenizer.decode(self.tokens[-tail:]) for text in texts):
                return "stop"
        return "length" if n == s.max_tokens else None

    def arrays(self) -> dict[str, np.ndarray]:
        """What was recorded of the positions that were read to the end; an interrupted pass leaves nothing."""
        n = self.reached.read - self.start
        if n == 0:
            return dict(self.before)
        for name in self.recorder.seen:
            self.recorder.seen[name] = [self.recorder[name][:, :n]]
        kept = arrays(self.recorder) | self.predictions.lanes() | self.chosen.lanes()
        kept |= {"margin": margins(self.model.config, self.recorder)}
        whole = {}
        for name, a in kept.items():
            axes = hooks.axes(name)
            a = a[(slice(None),) * axes.index("pos") + (slice(0, n),)]
            whole[name] = join(name, word(a.dtype), axes, [self.before[name], a] if self.before else [a])
        return whole


def choose(logits: Tensor, temperature: float, top_p: float, seed: int, n: int) -> int:
    """The n-th token to be written: the likeliest at temperature 0 and where a temperature is too small to divide by,
    otherwise drawn from the smallest set with mass `top_p`. The dice depend on `seed` and `n` alone, so a run can be
    taken up anywhere. The logits must be finite."""
    if temperature == 0:
        return int(logits.argmax())
    p = probabilities(logits.detach().to("cpu", torch.float64), temperature)
    if top_p < 1:
        ordered, index = p.sort(descending=True, stable=True)
        enough = int((ordered.cumsum(0) - ordered < top_p).sum())
        p = torch.zeros_like(p).scatter(0, index[:enough], ordered[:enough])
    dice = torch.Generator().manual_seed(int(np.random.SeedSequence([seed % 2**64, n]).generate_state(1)[0]))
    return int(torch.multinomial(p, 1, generator=dice))
