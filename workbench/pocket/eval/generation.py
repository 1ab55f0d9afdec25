"""Greedy generation for many prompts at once, with workbench's forward pass: prompts of one length share a batch."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from workbench.model.cache import KVCache
from workbench.model.gpt_oss import forward
from workbench.model.model import Model
from workbench.progress import progress_bar
from workbench.taps import Tap

ROWS = 64


@torch.inference_mode()
def generate(
    model: Model, prompts: Sequence[Sequence[int]], *, max_tokens: int = 320, tap: Tap | None = None, desc: str = ""
) -> list[str]:
    """The greedy continuation of each prompt as text, up to and including a stop token, or `max_tokens`.

    Equal to `model.generate(prompt, temperature=0)` for each prompt, except where logits tie within rounding.

    Args:
        model: The model.
        prompts: Token ids of each prompt.
        max_tokens: The largest number of tokens per continuation.
        tap: Edits or records values at hook points.
        desc: The label of the progress bar.
    """
    assert model.tokenizer is not None
    generated: list[list[int]] = [[] for _ in prompts]
    stops = torch.tensor(sorted(model.stop_ids))
    with progress_bar(total=len(prompts), desc=desc) as bar:
        for rows in groups_by_length(prompts):
            active = torch.tensor(rows)
            ids = torch.tensor([list(prompts[row]) for row in rows])
            cache = KVCache(model.config)
            for _ in range(max_tokens):
                ids = forward(model.config, model.weights, ids, tap, cache, slice(-1, None))[:, -1:].argmax(-1)
                for row, token in zip(active.tolist(), ids[:, 0].tolist()):
                    generated[row].append(token)
                unfinished = ~torch.isin(ids[:, 0], stops)
                if not unfinished.all():
                    if not unfinished.any():
                        break
                    active, ids = active[unfinished], ids[unfinished]
                    cache = cache.select(unfinished.nonzero()[:, 0])
            bar.update(len(rows))
    return [model.tokenizer.decode(ids) for ids in generated]


@torch.inference_mode()
def most_likely(
    model: Model, texts: Sequence[Sequence[int]], tap: Tap | None = None
) -> Iterator[tuple[list[int], Tensor]]:
    """For each group of texts of one length: their indices, and the most likely next token at each place (row pos)."""
    for rows in groups_by_length(texts):
        ids = torch.tensor([list(texts[row]) for row in rows])
        yield rows, forward(model.config, model.weights, ids, tap).argmax(-1)


def groups_by_length(texts: Sequence[Sequence[int]]) -> Iterator[list[int]]:
    """The indices of the texts, in groups of at most ROWS texts of one length, shortest first.

    >>> list(groups_by_length([(1, 2), (1,), (3, 4)]))
    [[1], [0, 2]]
    """
    by_length: dict[int, list[int]] = {}
    for number, text in enumerate(texts):
        by_length.setdefault(len(text), []).append(number)
    for _, rows in sorted(by_length.items()):
        for i in range(0, len(rows), ROWS):
            yield rows[i : i + ROWS]
