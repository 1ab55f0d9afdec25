"""How a generation gets its next token: from the logits of the last position, or from its residual stream.

The logits of a large model are a third of the bytes of a decoded token. Without them, the screen of the unembedding
(kernels/screen.py) finds the same token, and the predictions of the trace come from the replay, which computes all
logits anyway.
"""

from collections.abc import Collection, Sequence
from typing import Protocol

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

    def choose(self, state: Tensor, temperature: float, top_p: float, seed: int, position: int) -> int:
        """The token id at `position`, as `sampling.choose` draws it from the logits."""
        ...

    def summaries(self) -> dict[str, np.ndarray]:
        """The arrays of `live`."""
        ...


class FromLogits:
    """From all logits, which also give the predictions: log-probability, entropy and the top tokens."""

    name = NEXT_LOGITS
    logits_at = slice(-1, None)
    live = ("logprob", "entropy", "top_ids", "top_logprobs")

    def __init__(self, source: ModelSource, prompt: Sequence[int]):
        self.predictions, self.token_logprobs = predictions(source, lens=False), TokenLogprobs(prompt)
        self.taps = (self.predictions, self.token_logprobs)

    def state(self, logits: Tensor) -> Tensor:
        return logits[0, -1]

    def is_usable(self, state: Tensor) -> bool:
        return usable(state)

    def continue_from(self, state: Tensor) -> None:
        self.token_logprobs.start_after(state)

    def choose(self, state: Tensor, temperature: float, top_p: float, seed: int, position: int) -> int:
        token = choose(state, temperature, top_p, seed, position)
        self.token_logprobs.append(token)
        return token

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

    def choose(self, state: Tensor, temperature: float, top_p: float, seed: int, position: int) -> int:
        screen = _current_screen(self.weights)
        if screen is not None and top_p == 1:
            token = screen.next_token(state, temperature, seed, position)
            if token is not None:
                return token
        logits = linear(state[None], self.weights.unembed)[0]
        if temperature and not usable(logits):
            raise NotFinite(
                "the logits of the next token contain NaN or infinity, although its residual stream is finite."
            )
        return choose(logits, temperature, top_p, seed, position)

    def summaries(self) -> dict[str, np.ndarray]:
        return {}


class _LastPosition(Tap):
    """Keeps the normalized residual stream (d_model) of the last position of each pass."""

    def __init__(self) -> None:
        self.value = torch.empty(0)

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


def _current_screen(weights: Weights) -> Screen | None:
    """The screen, unless the unembedding was replaced or changed in place since."""
    screen = weights.screen
    is_current = screen is not None and screen.unembed is weights.unembed and screen.is_current
    return screen if is_current else None


def edits_logits(edits: Sequence[Edit]) -> bool:
    """Whether one of the edits changes the logits."""
    return any(LOGITS in edit.points for edit in edits)
