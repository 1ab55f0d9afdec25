"""Small models for the tests of the model."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from unittest import mock

import torch

from tests.checkpoints import Random
from workbench.model.model import Model
from workbench.recording.taps import Recorder


@cache
def tiny(seed: int = 0) -> Model:
    """A random gpt-oss without a tokenizer and without stop tokens; fp32; window 12."""
    model = Model(Random(seed=seed).transformers(torch.float32))
    model.stop_ids = frozenset()
    return model


def lead(x: torch.Tensor, k: int = 1) -> float:
    """By how much the k-th largest number of a row exceeds the next one, in the row where it does so least.

    Where this is about the size of rounding, another processor may choose the other one. A test that compares choices
    of two programs takes inputs where it is large, and says so.
    """
    top = x.double().topk(k + 1, -1).values
    return float((top[..., k - 1] - top[..., k]).min())


def some_tokens(n: int, seed: int = 0, n_vocab: int = 170) -> list[int]:
    return torch.randint(0, n_vocab, (n,), generator=torch.Generator().manual_seed(seed)).tolist()


@contextmanager
def ctrl_c_in_pass(n: int, point: str = "blocks.1.mlp.router.hook_out") -> Iterator[None]:
    """Presses Ctrl-C in the n-th pass that records `point`, in the middle of the model; no manifest tells of it."""
    see, left = Recorder.__call__, [n]

    def press(recorder, name, x, offset=0):
        if name == point:
            left[0] -= 1
            if left[0] == 0:
                signal.raise_signal(signal.SIGINT)
        return see(recorder, name, x, offset)

    with mock.patch.object(Recorder, "__call__", press):
        yield
