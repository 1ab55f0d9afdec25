"""One generation in progress: prefills the prompt, decodes tokens, and records routing and predictions live.

A `Decoding` is the text and the state of the model after it. It knows which tokens come next, and not how a pass runs:
`Generation.decode` runs the passes of one text, and recording/batching.py those of several texts together.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from workbench import hooks
from workbench.checks import check_real, check_whole
from workbench.edits.edit import Tally
from workbench.errors import ArgumentError, NotFinite, PromptError
from workbench.model import prefill
from workbench.model.cache import KVCache
from workbench.model.interrupts import Interrupt
from workbench.progress import progress_count
from workbench.recording.assemble import Authorship
from workbench.recording.next_token import Choice, NextToken, choose_together
from workbench.recording.not_finite import not_finite
from workbench.recording.plan import Plan
from workbench.recording.source import ModelSource, batch_of
from workbench.recording.summaries import LIVE_POINTS, margins
from workbench.recording.taps import Recorder, arrays
from workbench.taps import Chain, Tap
from workbench.traces.authorship import prompt_then_model
from workbench.traces.format import dtype_code
from workbench.traces.tensor_parts import join


@dataclass(frozen=True, slots=True)
class Settings:
    """Sampling settings and stop conditions of a generation. Raises PromptError for an invalid value."""

    max_tokens: int
    temperature: float
    top_p: float
    seed: int
    stop: tuple[int | str, ...]  # token ids and texts

    def __post_init__(self) -> None:
        for name in ("max_tokens", "seed"):
            value = getattr(self, name)
            try:
                object.__setattr__(self, name, check_whole(name, value))
            except ArgumentError as error:
                raise PromptError(str(error)) from None
        if self.max_tokens < 1:
            raise PromptError(
                f"max_tokens must be at least 1, got {self.max_tokens}. To record a text only, use `model.trace`."
            )
        for name in ("temperature", "top_p"):
            object.__setattr__(self, name, _real(name, getattr(self, name)))
        if not 0 <= self.temperature < float("inf"):
            raise PromptError(f"temperature must be 0 (greedy) or a finite number above 0, got {self.temperature}")
        if not 0 < self.top_p <= 1:
            raise PromptError(f"top_p must be above 0 and at most 1, got {self.top_p}")

    def to_manifest(self, finish_reason: str) -> dict[str, Any]:
        """The manifest's entry; `Settings.from_manifest` reads it."""
        return asdict(self) | {"stop": list(self.stop), "finish_reason": finish_reason}

    @classmethod
    def from_manifest(cls, entry: Mapping[str, Any]) -> "Settings":
        return cls(entry["max_tokens"], entry["temperature"], entry["top_p"], entry["seed"], tuple(entry["stop"]))


def _real(name: str, value: Any) -> float:
    try:
        return check_real(name, value)
    except ArgumentError as error:
        raise PromptError(str(error)) from None


class GenerationState(NamedTuple):
    """The state after the last complete pass: one tuple, so that an interrupt never finds parts of two passes."""

    n_processed: int  # positions that all layers have processed
    last: Tensor  # of the last of them: the token after it is chosen from this, see `NextToken`
    tallies: list[Tally]  # of the edits, up to there


class Decoding:
    """One text in progress without a recording: its tokens so far, its KV cache, and what the next token comes from."""

    def __init__(
        self,
        source: ModelSource,
        settings: Settings,
        prompt: Sequence[int],
        next_token: NextToken,
        taps: Sequence[Tap] = (),
    ):
        """`taps` are called in each pass of the text, after the edits of the source."""
        self.source, self.settings, self.next_token = source, settings, next_token
        self.tokens, self.prompt_length = list(prompt), len(prompt)
        self.in_chunks = source.in_chunks and not taps  # they may need all positions in one pass
        self.cache = source.new_cache(whole=bool(source.edits or taps))
        self.tap: Tap = Chain(*source.edits, *taps, *next_token.taps)
        self.state = GenerationState(0, torch.empty(0), [])

    @property
    def must_be_finite(self) -> bool:
        """Whether logits with NaN or infinity end the text."""
        return True

    @property
    def has_started(self) -> bool:
        """True once the prompt has been prefilled; only then is there anything to save."""
        return self.state.n_processed >= self.prompt_length

    @property
    def has_new_tokens(self) -> bool:
        """True if there are tokens that the model has not processed."""
        return self.state.n_processed < len(self.tokens)

    def next_chunk(self) -> list[int]:
        """The tokens of the next pass: the first of those that the model has not processed."""
        first, n = self.state.n_processed, len(self.tokens)
        size = next(prefill.chunks(n - first))[1] if self.in_chunks else n - first
        return self.tokens[first : first + size]

    def processed(self, n: int, logits: Tensor) -> None:
        """Stores the result of a pass over `n` new tokens: its logits (1 pos d_vocab) at `next_token.logits_at`."""
        tallies = [replace(edit.tally) for edit in self.source.edits]
        self.state = GenerationState(self.state.n_processed + n, self.next_token.state(logits), tallies)

    def append(self, token: int) -> None:
        self.tokens.append(token)

    def finish_reason(self) -> str | None:
        """The stop condition that is met, "stop" or "length"; None if there is none yet."""
        s, tokenizer = self.settings, self.source.model.tokenizer
        n = len(self.tokens) - self.prompt_length
        if n and self.tokens[-1] in s.stop:
            return "stop"
        texts = [text for text in s.stop if isinstance(text, str)]
        if n and texts and tokenizer:
            tail = min(n, 8 + max(len(text.encode()) for text in texts))  # a token has at least one byte
            if any(text in tokenizer.decode(self.tokens[-tail:]) for text in texts):
                return "stop"
        return "length" if n == s.max_tokens else None

    def start_after(self, other: "Decoding") -> None:
        """Starts with the positions of another text, with which this one begins, as if this one had processed them."""
        self.cache = other.cache.fork()
        self.next_token.start_after(other.next_token, self.tokens, other.state.n_processed)
        self.state = other.state


class Generation(Decoding):
    """A Decoding with the values that are recorded live.

    `earlier` has the values of the first positions that were recorded before an interrupt.
    """

    def __init__(
        self,
        source: ModelSource,
        plan: Plan,
        settings: Settings,
        prompt: Sequence[int],
        flag: Interrupt,
        next_token: NextToken,
    ):
        super().__init__(source, settings, prompt, next_token)
        self.plan, self.flag = plan, flag
        self.follows: str | None = None  # the id of the trace that this run continues
        self.recorder = Recorder([name for p in LIVE_POINTS for name in hooks.match(p, source.n_layers)])
        self.tap = Chain(*source.edits, self.recorder, *next_token.taps)
        self.earlier: Mapping[str, np.ndarray] = {}
        self.start = 0  # number of positions in `earlier`

    @property
    def must_be_finite(self) -> bool:
        return self.settings.temperature > 0  # greedy decoding continues; the trace then fails to verify

    def continue_from(
        self, state: GenerationState, tokens: Sequence[int], cache: KVCache, earlier: Mapping[str, np.ndarray]
    ) -> None:
        """Continues an interrupted generation from its saved state, as if this one had processed all of it."""
        self.tokens, self.earlier, self.cache, self.state = list(tokens), earlier, cache, state
        self.start = state.n_processed
        self.next_token.continue_from(state.last)
        for edit, tally in zip(self.source.edits, state.tallies, strict=True):
            edit.tally = tally

    def start_after(self, other: Decoding) -> None:
        super().start_after(other)
        assert isinstance(other, Generation)
        self.recorder.seen = {name: list(pieces) for name, pieces in other.recorder.seen.items()}

    @property
    def authorship(self) -> Authorship:
        """Who wrote the tokens so far."""
        return Authorship(prompt_then_model(self.prompt_length, len(self.tokens)), follows=self.follows)

    def decode(self, between_tokens: Callable[[], None]) -> str:
        """Decodes tokens until a stop condition is met, and returns the finish reason, "stop" or "length".

        `between_tokens` is called after each token, when all layers have processed it.
        """
        s, n = self.settings, self.prompt_length
        with progress_count("generating", "token", s.max_tokens + n - len(self.tokens)) as count, torch.no_grad():
            self._process_new()
            while not (finish_reason := self.finish_reason()):
                [token] = choose_tokens([self], self.flag)
                if isinstance(token, Exception):
                    raise token
                self.append(token)
                self._process_new()  # the last token too, so that no position of the trace lacks its values
                between_tokens()
                count.update()
        return finish_reason

    def _process_new(self) -> None:
        """Runs the model on the tokens that it has not processed yet."""
        while self.has_new_tokens:
            new = self.next_chunk()
            tap = Chain(self.flag, self.tap)
            self.processed(len(new), self.source.run(batch_of(new), tap, self.cache, self.next_token.logits_at))

    def arrays(self) -> dict[str, np.ndarray]:
        """The recorded arrays of the completely processed positions; those of an interrupted pass are left out."""
        n = self.state.n_processed - self.start
        if n == 0:
            return dict(self.earlier)
        for name in self.recorder.seen:
            self.recorder.seen[name] = [self.recorder[name][:, :n]]
        recorded = arrays(self.recorder) | self.next_token.summaries()
        recorded |= {"margin": margins(self.recorder, self.source.n_layers, self.source.config["n_active"])}
        whole = {}
        for name, a in recorded.items():
            axes = hooks.axes(name)
            a = a[(slice(None),) * axes.index("pos") + (slice(0, n),)]
            whole[name] = join(name, dtype_code(a.dtype), axes, [self.earlier[name], a] if self.earlier else [a])
        return whole


def choose_tokens(texts: Sequence[Decoding], flag: Interrupt) -> list[int | NotFinite]:
    """The next token of each text whose tokens are all processed, or the error of a text for which there is none."""
    chosen: list[int | NotFinite | None] = [_unusable(text, flag) for text in texts]
    choices = [
        Choice(text.next_token, text.state.last, s.temperature, s.top_p, s.seed, len(text.tokens), text.must_be_finite)
        for text, error in zip(texts, chosen)
        if error is None and (s := text.settings)
    ]
    tokens = iter(choose_together(choices))
    return [next(tokens) if error is None else error for error in chosen]


def _unusable(text: Decoding, flag: Interrupt) -> NotFinite | None:
    """The error of a text from whose state no token can be chosen."""
    if text.must_be_finite and not text.next_token.is_usable(text.state.last):
        return not_finite(text.source.model, text.tokens, flag)
    return None
