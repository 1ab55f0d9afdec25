"""Greedy text for many prompts at once, by workbench's own forward pass: prompts of one length share a batch."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from tqdm.auto import tqdm

from workbench.model.cache import KVCache
from workbench.model.gpt_oss import forward
from workbench.model.model import Model
from workbench.taps import Tap

ROWS = 64


@torch.inference_mode()
def write(
    model: Model, prompts: Sequence[Sequence[int]], *, max_tokens: int = 320, tap: Tap | None = None, desc: str = ""
) -> list[str]:
    """What the model writes after each prompt, as text, up to a stop token (which is part of it) or `max_tokens`.

    The same as `model.generate(prompt, temperature=0)` for each of them, but for logits that tie within rounding.
    """
    assert model.tokenizer is not None
    written: list[list[int]] = [[] for _ in prompts]
    stops = torch.tensor(sorted(model.stop_ids))
    with tqdm(total=len(prompts), desc=desc, leave=False, disable=None) as bar:
        for rows in alike(prompts):
            left = torch.tensor(rows)
            ids = torch.tensor([list(prompts[row]) for row in rows])
            cache = KVCache(model.config)
            for _ in range(max_tokens):
                ids = forward(model.config, model.weights, ids, tap, cache, slice(-1, None))[:, -1:].argmax(-1)
                for row, token in zip(left.tolist(), ids[:, 0].tolist()):
                    written[row].append(token)
                going = ~torch.isin(ids[:, 0], stops)
                if not going.all():
                    if not going.any():
                        break
                    left, ids = left[going], ids[going]
                    cache = cache.select(going.nonzero()[:, 0])
            bar.update(len(rows))
    return [model.tokenizer.decode(ids) for ids in written]


@torch.inference_mode()
def read(model: Model, texts: Sequence[Sequence[int]], tap: Tap | None = None) -> Iterator[tuple[list[int], Tensor]]:
    """Numbers of texts of one length, and the likeliest next token at each of their positions, row pos."""
    for rows in alike(texts):
        ids = torch.tensor([list(texts[row]) for row in rows])
        yield rows, forward(model.config, model.weights, ids, tap).argmax(-1)


def alike(texts: Sequence[Sequence[int]]) -> Iterator[list[int]]:
    """The numbers of the texts, in groups of one length.

    >>> list(alike([(1, 2), (1,), (3, 4)]))
    [[1], [0, 2]]
    """
    by_length: dict[int, list[int]] = {}
    for number, text in enumerate(texts):
        by_length.setdefault(len(text), []).append(number)
    for _, rows in sorted(by_length.items()):
        for i in range(0, len(rows), ROWS):
            yield rows[i : i + ROWS]
