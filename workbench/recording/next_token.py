"""How a generation gets its next token: from the logits of the last position, or from its residual stream.

The logits of a large model are a third of the bytes of a decoded token. Without them, the screen of the unembedding
(kernels/screen.py) finds the same token, and the predictions of the trace come from the replay, which computes all
logits anyway.
"""

from collections.abc import Collection, Sequence
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from workbench.edits.edit import Edit
from workbench.errors import NotFinite
from workbench.model.checkpoints.tensors import Weights
from workbench.model.kernels.linear import linear
from workbench.model.kernels.screen import Screen
from workbench.model.sampling import choose
from workbench.recording.not_finite import usable
from workbench.recording.record import predictions
from workbench.recording.source import ModelSource
from workbench.recording.summaries import TokenLogprobs
from workbench.taps import Tap

NEXT_LOGITS, NEXT_RESIDUAL = "next_logits", "next_residual"
LOGITS, NORMALIZED = "hook_logits", "ln_final.hook_normalized"
ROWS_OF_LOGITS = 64  # texts whose logits are in memory at a time: 26 MB of the 20b


class NextToken(Protocol):
    """Chooses each token from a value of the last position, its state, which a partial trace stores under `name`."""

    @property
    def name(self) -> str: ...
    @property
    def taps(self) -> Sequence[Tap]: ...  # of each pass
    @property
    def logits_at(self) -> slice: ...  # the positions of a pass whose logits are computed
    @property
    def live(self) -> Collection[str]: ...  # the summaries that it records

    def state(self, logits: Tensor) -> Tensor:
        """The state after a pass with these logits (batch pos d_vocab)."""
        ...

    def is_usable(self, state: Tensor) -> bool:
        """False if no token can be sampled, because the state contains NaN or infinity."""
        ...

    def continue_from(self, state: Tensor) -> None:
        """Starts in the middle of a text, after the pass that ended in `state`."""
        ...

    def start_after(self, other: "NextToken", tokens: Sequence[int], n: int) -> None:
        """Starts a text with the first `n` of its `tokens`, which `other` of the same class has recorded."""
        ...

    def screened(self, state: Tensor, temperature: float, top_p: float, seed: int, position: int) -> int | None:
        """The token, if it can be found without all logits."""
        ...

    def logits(self, states: Tensor) -> Tensor:
        """The logits of several states (row d_vocab)."""
        ...

    def chose(self, token: int) -> None:
        """Records that this token was chosen."""
        ...

    def summaries(self) -> dict[str, np.ndarray]:
        """The arrays of `live`."""
        ...


class Choice(NamedTuple):
    """A token to be chosen: from which state, how, and for which position."""

    next_token: NextToken
    state: Tensor
    temperature: float
    top_p: float
    seed: int
    position: int
    must_be_finite: bool  # otherwise a token is chosen from logits with NaN too


def choose_together(choices: Sequence[Choice]) -> list[int | NotFinite]:
    """The token of each choice, as `sampling.choose` draws it from the logits; or the error of one without a token.

    Several choices from residual streams share one product with the unembedding, which reads it once. One choice is
    made by the screen, which reads half of it.
    """
    tokens: list[int | NotFinite | None] = [None] * len(choices)
    if len(choices) == 1:
        c = choices[0]
        tokens[0] = c.next_token.screened(c.state, c.temperature, c.top_p, c.seed, c.position)
    for start in range(0, len(choices), ROWS_OF_LOGITS):
        for kind in dict.fromkeys(type(c.next_token) for c in choices):
            group = [
                i
                for i in range(start, min(start + ROWS_OF_LOGITS, len(choices)))
                if tokens[i] is None and type(choices[i].next_token) is kind
            ]
            if group:
                logits = choices[group[0]].next_token.logits(torch.stack([choices[i].state for i in group]))
                for i, row in zip(group, logits):
                    tokens[i] = _sampled(choices[i], row)
    for choice, token in zip(choices, tokens):
        if isinstance(token, int):
            choice.next_token.chose(token)
    return [token for token in tokens if token is not None]


def _sampled(c: Choice, logits: Tensor) -> int | NotFinite:
    if c.must_be_finite and not usable(logits):
        return NotFinite(
            "the logits of the next token contain NaN or infinity, although its residual stream is finite."
        )
    return choose(logits, c.temperature, c.top_p, c.seed, c.position)


class LastLogits:
    """From the logits of the last position, of which nothing is recorded."""

    name = NEXT_LOGITS
    logits_at = slice(-1, None)
    live: Collection[str] = ()
    taps: Sequence[Tap] = ()

    def state(self, logits: Tensor) -> Tensor:
        return logits[0, -1]

    def is_usable(self, state: Tensor) -> bool:
        return usable(state)

    def continue_from(self, state: Tensor) -> None:
        """Nothing is recorded."""

    def start_after(self, other: NextToken, tokens: Sequence[int], n: int) -> None:
        """Nothing is recorded."""

    def screened(self, state: Tensor, temperature: float, top_p: float, seed: int, position: int) -> int | None:
        return choose(state, temperature, top_p, seed, position)

    def logits(self, states: Tensor) -> Tensor:
        return states

    def chose(self, token: int) -> None:
        """Nothing is recorded."""

    def summaries(self) -> dict[str, np.ndarray]:
        return {}


class FromLogits(LastLogits):
    """From all logits, which also give the predictions: log-probability, entropy and the top tokens."""

    live = ("logprob", "entropy", "top_ids", "top_logprobs")

    def __init__(self, source: ModelSource, prompt: Sequence[int]):
        self.predictions, self.token_logprobs = predictions(source, lens=False), TokenLogprobs(prompt)
        self.taps = (self.predictions, self.token_logprobs)

    def continue_from(self, state: Tensor) -> None:
        self.token_logprobs.start_after(state)

    def start_after(self, other: NextToken, tokens: Sequence[int], n: int) -> None:
        assert isinstance(other, FromLogits)
        self.predictions.rows = {name: list(rows) for name, rows in other.predictions.rows.items()}
        self.token_logprobs.take_over(other.token_logprobs, n)

    def chose(self, token: int) -> None:
        self.token_logprobs.append(token)

    def summaries(self) -> dict[str, np.ndarray]:
        return self.predictions.summaries() | self.token_logprobs.summaries()


class FromResidual:
    """From the normalized residual stream of the last position, by the screen of the unembedding.

    Where the screen is not certain, or this model has none, all logits are computed: the token is the same.
    """

    name = NEXT_RESIDUAL
    logits_at = slice(0, 0)
    live = ()

    def __init__(self, source: ModelSource):
        self.weights = source.model.weights
        self.last = _LastPosition()
        self.taps = (self.last,)

    def state(self, logits: Tensor) -> Tensor:
        return self.last.value

    def is_usable(self, state: Tensor) -> bool:
        return bool(state.isfinite().all())

    def continue_from(self, state: Tensor) -> None:
        """Nothing is recorded of the next token."""

    def start_after(self, other: NextToken, tokens: Sequence[int], n: int) -> None:
        """Nothing is recorded of the next token."""

    def screened(self, state: Tensor, temperature: float, top_p: float, seed: int, position: int) -> int | None:
        screen = _current_screen(self.weights)
        return screen.next_token(state, temperature, seed, position) if screen is not None and top_p == 1 else None

    def logits(self, states: Tensor) -> Tensor:
        return linear(states, self.weights.unembed)

    def chose(self, token: int) -> None:
        """Nothing is recorded of the next token."""

    def summaries(self) -> dict[str, np.ndarray]:
        return {}


class _LastPosition(Tap):
    """Keeps the normalized residual stream (d_model) of the last position of each pass."""

    def __init__(self) -> None:
        self.value = torch.empty(0)

    def reads(self, name: str) -> bool:
        return name == NORMALIZED

    def __call__(self, name: str, x: Tensor, offset: int = 0) -> Tensor:
        if name == NORMALIZED:
            self.value = x[0, -1].detach().clone()
        return x


def next_token(source: ModelSource, prompt: Sequence[int], top_p: float) -> NextToken:
    """How a generation that starts now gets its tokens: by the screen if the model has one and no logits are needed.

    Nucleus sampling needs the probabilities of all tokens, and an edit of the logits needs the logits.
    """
    if _current_screen(source.model.weights) is None or top_p < 1 or edits_logits(source.edits):
        return FromLogits(source, prompt)
    return FromResidual(source)


def unrecorded_next_token(source: ModelSource) -> NextToken:
    """How a text gets its tokens if nothing is recorded of them."""
    return LastLogits() if edits_logits(source.edits) else FromResidual(source)


def _current_screen(weights: Weights) -> Screen | None:
    """The screen, unless the unembedding was replaced or changed in place since."""
    screen = weights.screen
    is_current = screen is not None and screen.unembed is weights.unembed and screen.is_current
    return screen if is_current else None


def edits_logits(edits: Sequence[Edit]) -> bool:
    """Whether one of the edits changes the logits."""
    return any(LOGITS in edit.points for edit in edits)
