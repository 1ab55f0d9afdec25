"""Many continuations of one text, drawn side by side from one cache."""

from collections.abc import Sequence

import torch
from torch import Tensor

from workbench.model.cache import KVCache
from workbench.model.model import Model
from workbench.model.prefill import chunks
from workbench.model.sampling import probabilities
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
    """`n` continuations of `tokens`, each up to a stop token (which is part of it) or `max_tokens`.

    Drawn at `temperature`; the likeliest token each time at 0. The same seed draws the same, on one kind of machine.

    >>> prompt = model.to_tokens("What is 12+30?")
    >>> a, b = rollouts(model, prompt, 2, temperature=0, max_tokens=20)
    >>> a == b == model.generate(prompt, max_tokens=20).tokens[len(prompt):]
    True

    Raises PromptError and NotFinite as `model.generate` does.
    """
    [written] = side_by_side(model, [tokens], n, max_tokens=max_tokens, temperature=temperature, seed=seed)
    return written


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
    """The same for several texts of one length: `n` continuations of each, all in one batch."""
    for tokens in texts:
        model.check_prompt(tokens, max_tokens)
    dice = torch.Generator().manual_seed(seed)
    cache = KVCache(model.config, whole=False)
    ids = torch.tensor([list(tokens) for tokens in texts], device=model.device)
    for start, stop in chunks(ids.shape[1] - 1):
        model.forward(ids[:, start:stop], None, cache, slice(0, 0))
    cache, ids = cache.fork(n), ids[:, -1:].repeat_interleave(n, 0)
    rows, written = torch.arange(len(ids)), [[] for _ in range(len(ids))]
    stops = torch.tensor(sorted(model.stop_ids))
    for _ in range(max_tokens):
        logits = model.forward(ids, None, cache)[:, -1]
        if not usable(logits):
            bad = int((~logits.amax(-1).isfinite()).nonzero()[0])
            raise not_finite(model, [*texts[int(rows[bad]) // n], *written[int(rows[bad])]])
        drawn = _draw(logits, temperature, dice)
        for row, token in zip(rows.tolist(), drawn.tolist()):
            written[row].append(token)
        going = ~torch.isin(drawn, stops)
        if not going.any():
            break
        if not going.all():
            rows, drawn = rows[going], drawn[going]
            cache = cache.select(going.nonzero()[:, 0].to(model.device))
        ids = drawn[:, None].to(model.device)
    return [written[i : i + n] for i in range(0, len(written), n)]


def _draw(logits: Tensor, temperature: float, dice: torch.Generator) -> Tensor:
    logits = logits.float().cpu()
    if temperature == 0:
        return logits.argmax(-1)
    return torch.multinomial(probabilities(logits, temperature), 1, generator=dice)[:, 0]
