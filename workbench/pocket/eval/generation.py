"""Greedy generation for many prompts at once, and one pass over many texts: those of one length share a batch."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from workbench.model.gpt_oss import forward
from workbench.model.model import Model
from workbench.recording.continuations import continue_texts
from workbench.recording.decoding import Settings
from workbench.recording.generation import stops
from workbench.taps import Tap

ROWS = 64


def generate(
    model: Model, prompts: Sequence[Sequence[int]], *, max_tokens: int = 320, tap: Tap | None = None, desc: str = ""
) -> list[str]:
    """The greedy continuation of each prompt as text, up to and including a stop token, or `max_tokens`.

    Equal to `model.generate(prompt, temperature=0)` for each prompt.

    Args:
        model: The model.
        prompts: Token ids of each prompt.
        max_tokens: The largest number of tokens per continuation.
        tap: Edits or records values at hook points; each prompt has a copy of it.
        desc: The label of the progress bar.
    """
    assert model.tokenizer is not None
    settings = Settings(max_tokens, temperature=0.0, top_p=1.0, seed=0, stop=stops(model, ()))
    generated = continue_texts(model, prompts, [settings] * len(prompts), tap=tap, desc=desc)
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
