"""Sampling of many continuations of one or several texts, which are generated together."""

from collections.abc import Sequence

import numpy as np

from workbench.model.model import Model
from workbench.recording.continuations import continue_texts
from workbench.recording.decoding import Settings


def rollouts(
    model: Model,
    tokens: Sequence[int],
    n: int,
    *,
    max_tokens: int = 512,
    temperature: float = 1.0,
    seed: int = 0,
) -> list[list[int]]:
    """`n` continuations of `tokens`, each up to a stop token (included) or `max_tokens`.

    At temperature 0 the most likely token is taken each time. Continuation i equals
    `model.generate(tokens, temperature=temperature, seed=row_seeds(seed, n)[i])`, and does not depend on `n`, if the
    products of the model do not depend on the number of rows; otherwise except where logits tie within rounding.

    >>> prompt = model.to_tokens("What is 12+30?")
    >>> a, b = rollouts(model, prompt, 2, temperature=0, max_tokens=20)
    >>> a == b == model.generate(prompt, max_tokens=20).tokens[len(prompt):]
    True

    Raises PromptError as `model.generate` does, and NotFinite at any temperature.
    """
    return side_by_side(model, [tokens], n, seeds=[seed], max_tokens=max_tokens, temperature=temperature)[0]


def side_by_side(
    model: Model,
    texts: Sequence[Sequence[int]],
    n: int,
    *,
    seeds: Sequence[int],
    max_tokens: int = 512,
    temperature: float = 1.0,
    desc: str = "generating",
) -> list[list[list[int]]]:
    """The `rollouts` of several texts with their `seeds`, generated together: `n` continuations of each text."""
    stop = tuple(sorted(model.stop_ids))
    prompts = [tokens for tokens in texts for _ in range(n)]
    settings = [
        Settings(max_tokens, temperature, 1.0, row_seed, stop) for seed in seeds for row_seed in row_seeds(seed, n)
    ]
    generated = continue_texts(model, prompts, settings, desc=desc)
    return [generated[i : i + n] for i in range(0, len(generated), n)]


def row_seeds(seed: int, n: int) -> list[int]:
    """The seeds of n continuations that are sampled together. The first ones do not depend on n.

    >>> row_seeds(0, 2) == row_seeds(0, 3)[:2]
    True
    """
    words = np.random.SeedSequence(seed).generate_state(n, np.uint64)
    return [int(word) >> 1 for word in words]  # `model.generate` takes seeds below 2^63
