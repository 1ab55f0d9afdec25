"""Sampling of many continuations of one text, in one batch from one KV cache."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from workbench.model.cache import KVCache
from workbench.model.model import Model
from workbench.model.prefill import chunks
from workbench.model.sampling import choose
from workbench.recording.not_finite import not_finite, usable


@torch.inference_mode()
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
    `model.generate(tokens, temperature=temperature, seed=row_seeds(seed, n)[i])`, except where logits tie within
    rounding, and does not depend on `n`.

    >>> prompt = model.to_tokens("What is 12+30?")
    >>> a, b = rollouts(model, prompt, 2, temperature=0, max_tokens=20)
    >>> a == b == model.generate(prompt, max_tokens=20).tokens[len(prompt):]
    True

    Raises PromptError and NotFinite as `model.generate` does.
    """
    [continuations] = side_by_side(model, [tokens], n, max_tokens=max_tokens, temperature=temperature, seed=seed)
    return continuations


@torch.inference_mode()
def side_by_side(
    model: Model,
    texts: Sequence[Sequence[int]],
    n: int,
    *,
    max_tokens: int = 512,
    temperature: float = 1.0,
    seed: int = 0,
) -> list[list[list[int]]]:
    """`rollouts` for several texts of equal length: `n` continuations of each in one batch, each with its own seed."""
    for tokens in texts:
        model.check_prompt(tokens, max_tokens)
    seeds = row_seeds(seed, len(texts) * n)
    cache = KVCache(model.config, whole=False)
    ids = torch.tensor([list(tokens) for tokens in texts], device=model.device)
    for start, stop in chunks(ids.shape[1] - 1):
        model.forward(ids[:, start:stop], None, cache, slice(0, 0))
    cache, ids = cache.fork(n), ids[:, -1:].repeat_interleave(n, 0)
    rows, generated = torch.arange(len(ids)), [[] for _ in range(len(ids))]
    stops = torch.tensor(sorted(model.stop_ids))
    for position in range(len(texts[0]), len(texts[0]) + max_tokens):
        logits = model.forward(ids, None, cache)[:, -1]
        if not usable(logits):
            row_index = int((~logits.amax(-1).isfinite()).nonzero()[0])
            raise not_finite(model, [*texts[int(rows[row_index]) // n], *generated[int(rows[row_index])]])
        next_ids = _draw(logits, temperature, [seeds[row] for row in rows.tolist()], position)
        for row, token in zip(rows.tolist(), next_ids.tolist()):
            generated[row].append(token)
        unfinished = ~torch.isin(next_ids, stops)
        if not unfinished.any():
            break
        if not unfinished.all():
            rows, next_ids = rows[unfinished], next_ids[unfinished]
            cache = cache.select(unfinished.nonzero()[:, 0].to(model.device))
        ids = next_ids[:, None].to(model.device)
    return [generated[i : i + n] for i in range(0, len(generated), n)]


def row_seeds(seed: int, n: int) -> list[int]:
    """The seeds of n continuations that are sampled together. The first ones do not depend on n.

    >>> row_seeds(0, 2) == row_seeds(0, 3)[:2]
    True
    """
    words = np.random.SeedSequence(seed).generate_state(n, np.uint64)
    return [int(word) >> 1 for word in words]  # `model.generate` takes seeds below 2^63


def _draw(logits: Tensor, temperature: float, seeds: Sequence[int], position: int) -> Tensor:
    """The token of each row at a position; a row's token depends on its logits and seed alone."""
    if temperature == 0:
        return logits.argmax(-1).cpu()
    return torch.tensor([choose(row, temperature, 1.0, seed, position) for row, seed in zip(logits.cpu(), seeds)])
