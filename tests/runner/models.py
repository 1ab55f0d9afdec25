"""Small models for the tests of this room."""

from functools import cache

import torch

from tests.checkpoints import Random
from workbench.runner.model import Model


@cache
def tiny(seed: int = 0) -> Model:
    """A random gpt-oss without a tokenizer and without stop tokens; fp32; window 12."""
    model = Model(Random(seed=seed).transformers(torch.float32))
    model.stop_ids = frozenset()
    return model


def some_tokens(n: int, seed: int = 0, n_vocab: int = 170) -> list[int]:
    return torch.randint(0, n_vocab, (n,), generator=torch.Generator().manual_seed(seed)).tolist()
