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
    """The smallest difference, over rows, between the k-th largest number of a row and the next one.

    If it is about as small as a rounding error, another processor may choose differently. A test that compares the
    choices of two programs uses inputs for which it is large, and asserts it.
    """
    top = x.double().topk(k + 1, -1).values
    return float((top[..., k - 1] - top[..., k]).min())


def some_tokens(n: int, seed: int = 0, n_vocab: int = 170) -> list[int]:
    return torch.randint(0, n_vocab, (n,), generator=torch.Generator().manual_seed(seed)).tolist()


@contextmanager
def ctrl_c_in_pass(n: int, point: str = "blocks.1.mlp.router.hook_out") -> Iterator[None]:
    """Raise SIGINT in the n-th pass that records `point`, in the middle of the model; no manifest mentions it."""
    record, remaining = Recorder.__call__, [n]

    def press(recorder, name, x, offset=0):
        if name == point:
            remaining[0] -= 1
            if remaining[0] == 0:
                signal.raise_signal(signal.SIGINT)
        return record(recorder, name, x, offset)

    with mock.patch.object(Recorder, "__call__", press):
        yield
