"""Sampling of many continuations of one or several texts, which are generated together."""

from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np

from workbench.model.model import Model
from workbench.recording.continuations import continue_texts
from workbench.recording.decoding import Settings
from workbench.recording.generation import stops

Answer = TypeVar("Answer")


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
    stop = stops(model, ())
    prompts = [tokens for tokens in texts for _ in range(n)]
    settings = [
        Settings(max_tokens, temperature, 1.0, row_seed, stop) for seed in seeds for row_seed in row_seeds(seed, n)
    ]
    generated = continue_texts(model, prompts, settings, desc=desc)
    return [generated[i : i + n] for i in range(0, len(generated), n)]


def answers_after(
    model: Model,
    texts: Sequence[Sequence[int]],
    n: int,
    answer_of: Callable[[Sequence[int]], Answer],
    *,
    seed: int,
    max_tokens: int,
    temperature: float,
    desc: str = "generating",
) -> list[list[Answer]]:
    """The answers in `n` continuations of each text, generated together; `answer_of` reads a text and its continuation.

    Args:
        model: the model.
        texts: token ids of each text.
        n: the number of continuations of each.
        answer_of: the answer in token ids.
        seed: of the whole sample; each text has its own seed from it and from its place.
        max_tokens: the largest number of tokens of a continuation.
        temperature: of the sampling.
        desc: the label of the progress bar.
    """
    continuations = side_by_side(
        model,
        texts,
        n,
        seeds=[(seed * 100_003 + number) % 2**63 for number in range(len(texts))],
        max_tokens=max_tokens,
        temperature=temperature,
        desc=desc,
    )
    return [[answer_of([*text, *row]) for row in rows] for text, rows in zip(texts, continuations)]


def row_seeds(seed: int, n: int) -> list[int]:
    """The seeds of n continuations that are sampled together. The first ones do not depend on n.

    >>> row_seeds(0, 2) == row_seeds(0, 3)[:2]
    True
    """
    words = np.random.SeedSequence(seed).generate_state(n, np.uint64)
    return [int(word) >> 1 for word in words]  # `model.generate` takes seeds below 2^63
