"""Batches of about the same number of tokens: problems of similar length, padded to a multiple of 8.

Pool p of worker w depends only on the seed, p and w, so a resumed run sees the same batches as an uninterrupted one.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from random import Random

import torch
from torch import Tensor

from workbench.pocket.rendering import Rendered, render
from workbench.pocket.train.mix import draw
from workbench.pocket.vocabulary import PAD, symbols

POOL = 768  # problems that are drawn and sorted by length together
SPREAD = 0.5  # the share of conversations with gaps between clauses


@dataclass(frozen=True, slots=True)
class Batch:
    """One batch of conversations, with the supervised positions as indices into the flattened (row pos)."""

    ids: Tensor  # row pos
    at: Tensor  # flat positions whose next token is supervised
    target: Tensor  # those next tokens
    real: Tensor  # 1 where a flat position is not padding
    position_ids: Tensor  # row pos: the positions that RoPE uses

    @property
    def row(self) -> Tensor:
        """The row of each supervised position."""
        return self.at // self.ids.shape[1]


def spread(ids: tuple[int, ...], rng: Random) -> list[int]:
    """Position ids of the tokens; in half of the conversations, with random gaps between clauses.

    With gaps, the distance to a step or a word of the question carries little information about it, and longer problems
    are closer to the training distribution (after arXiv 2305.16843, which spreads single tokens). Distances within a
    clause are unchanged.
    """
    position_ids, position, gaps = [], 0, rng.random() < SPREAD
    stops, end = _stops()
    for i in ids:
        position_ids.append(position)
        position += 1
        if gaps and i in stops and rng.random() < 0.35:
            position += rng.randint(1, 10)
        if gaps and i == end and rng.random() < 0.5:
            position += rng.randint(0, 32)
    return position_ids


@cache
def _stops() -> tuple[frozenset[int], int]:
    table = symbols()
    return frozenset(table[stop] for stop in (",", ";", ".", "?", "<|end|>", "<|message|>")), table["<|end|>"]


def batch(rendered: list[Rendered], rng: Random | None = None) -> Batch:
    """A batch of conversations, each without its last token, which predicts nothing; `rng` is for `spread`.

    >>> from workbench.pocket.rendering import Rendered
    >>> b = batch([Rendered((5, 6, 7), (False, True, True), ())])
    >>> b.ids.shape, b.at.tolist(), b.target.tolist(), int(b.real.sum())
    (torch.Size([1, 8]), [0, 1], [6, 7], 2)
    """
    n_pos = (max(len(r.ids) for r in rendered) - 1 + 7) // 8 * 8
    ids = torch.full((len(rendered), n_pos), symbols()[PAD])
    target = torch.full((len(rendered), n_pos), -1)
    real = torch.zeros(len(rendered), n_pos)
    position_ids = torch.arange(n_pos).repeat(len(rendered), 1)
    for row, r in enumerate(rendered):
        n = len(r.ids) - 1
        tokens = torch.tensor(r.ids)
        ids[row, :n] = tokens[:-1]
        target[row, :n] = torch.where(torch.tensor(r.supervised[1:]), tokens[1:], -1)
        real[row, :n] = 1
        if rng:
            position_ids[row, :n] = torch.tensor(spread(r.ids[:n], rng))
    at = (target.view(-1) >= 0).nonzero().squeeze(1)
    return Batch(ids, at, target.view(-1)[at], real.view(-1), position_ids)


def split(rendered: list[Rendered], tokens: int) -> list[list[Rendered]]:
    """The conversations by length, in batches of at most `tokens` tokens with padding (or one longer conversation)."""
    ordered = sorted(rendered, key=lambda r: len(r.ids))
    batches: list[list[Rendered]] = [[]]
    for r in ordered:
        if batches[-1] and (len(batches[-1]) + 1) * (len(r.ids) + 7) > tokens:
            batches.append([])
        batches[-1].append(r)
    return batches


def pool(
    seed: int, worker: int, number: int, progress: float, tokens: int, course: str = "first"
) -> list[list[Rendered]]:
    """The batches of one pool, in random order; the same arguments give the same batches."""
    rng = Random(f"{seed}/{worker}/{number}")
    batches = split([render(*draw(rng, progress, course)) for _ in range(POOL)], tokens)
    rng.shuffle(batches)
    return batches


@dataclass(slots=True)
class Place:
    """A worker's position in its stream of batches; all that is needed to resume it."""

    pool: int = 0
    index: int = 0
    progress: float = 0.0  # of the run when the pool was drawn

    def row(self) -> list[float]:
        """The fields as numbers, for a tensor; `Place.of` is the inverse."""
        return [self.pool, self.index, self.progress]

    @classmethod
    def of(cls, row: list[float]) -> "Place":
        return cls(int(row[0]), int(row[1]), row[2])


def stream(
    seed: int, worker: int, place: Place, tokens: int, progress: Callable[[], float], course: str = "first"
) -> Iterator[Batch]:
    """An endless stream of batches.

    Args:
        seed: The seed of the run.
        worker: The worker's number.
        place: Where to start; updated with every batch.
        tokens: The largest number of tokens per batch.
        progress: Gives the progress of the run, 0 to 1, when a new pool is drawn.
        course: The course of training, which decides the mix of problems.
    """
    if place == Place():
        place.progress = progress()
    while True:
        batches = pool(seed, worker, place.pool, place.progress, tokens, course)
        while place.index < len(batches):
            rng = Random(f"{seed}/{worker}/{place.pool}/{place.index}")
            place.index += 1
            yield batch(batches[place.index - 1], rng)
        place.pool, place.index, place.progress = place.pool + 1, 0, progress()
