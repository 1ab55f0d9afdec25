"""Batches of about so many tokens: problems of like length side by side, filled up to a multiple of 8.

Pool number p of worker w depends on the seed, p and w alone: a run that resumes goes on with what it would have seen.
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

POOL = 768  # problems that are drawn and sorted together
SPREAD = 0.5


@dataclass(frozen=True, slots=True)
class Batch:
    """`at` are flat positions whose next token is supervised, `target` those tokens, `row` the conversation of each."""

    ids: Tensor  # row pos
    at: Tensor
    target: Tensor
    real: Tensor  # 1 where a flat position is no padding
    place: Tensor  # row pos: where RoPE takes a token to stand

    @property
    def row(self) -> Tensor:
        return self.at // self.ids.shape[1]


def spread(ids: tuple[int, ...], rng: Random) -> list[int]:
    """Where each token is taken to stand: in one conversation of two with gaps between the clauses.

    So how far away a step or a word of the question is says little about what it is, and longer problems are less
    strange (after arXiv 2305.16843, which spreads single tokens). Inside a clause distances are what they are.
    """
    places, at, gaps = [], 0, rng.random() < SPREAD
    stops, end = _stops()
    for i in ids:
        places.append(at)
        at += 1
        if gaps and i in stops and rng.random() < 0.35:
            at += rng.randint(1, 10)
        if gaps and i == end and rng.random() < 0.5:
            at += rng.randint(0, 32)
    return places


@cache
def _stops() -> tuple[frozenset[int], int]:
    table = symbols()
    return frozenset(table[stop] for stop in (",", ";", ".", "?", "<|end|>", "<|message|>")), table["<|end|>"]


def batch(rendered: list[Rendered], rng: Random | None = None) -> Batch:
    """The conversations, each without its last token, which predicts nothing; `rng` spreads them.

    >>> from workbench.pocket.rendering import Rendered
    >>> b = batch([Rendered((5, 6, 7), (False, True, True), ())])
    >>> b.ids.shape, b.at.tolist(), b.target.tolist(), int(b.real.sum())
    (torch.Size([1, 8]), [0, 1], [6, 7], 2)
    """
    n_pos = (max(len(r.ids) for r in rendered) - 1 + 7) // 8 * 8
    ids = torch.full((len(rendered), n_pos), symbols()[PAD])
    target = torch.full((len(rendered), n_pos), -1)
    real = torch.zeros(len(rendered), n_pos)
    place = torch.arange(n_pos).repeat(len(rendered), 1)
    for row, r in enumerate(rendered):
        n = len(r.ids) - 1
        tokens = torch.tensor(r.ids)
        ids[row, :n] = tokens[:-1]
        target[row, :n] = torch.where(torch.tensor(r.supervised[1:]), tokens[1:], -1)
        real[row, :n] = 1
        if rng:
            place[row, :n] = torch.tensor(spread(r.ids[:n], rng))
    at = (target.view(-1) >= 0).nonzero().squeeze(1)
    return Batch(ids, at, target.view(-1)[at], real.view(-1), place)


def split(rendered: list[Rendered], tokens: int) -> list[list[Rendered]]:
    """The conversations by length, in batches of at most `tokens` with their padding (or one that is longer)."""
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
    """Batches of one pool in random order; the same arguments give the same batches."""
    rng = Random(f"{seed}/{worker}/{number}")
    batches = split([render(*draw(rng, progress, course)) for _ in range(POOL)], tokens)
    rng.shuffle(batches)
    return batches


@dataclass(slots=True)
class Place:
    """Where in its stream of batches a worker is: all that a resumed run needs to know."""

    pool: int = 0
    index: int = 0
    progress: float = 0.0  # when the pool was drawn

    def row(self) -> list[float]:
        """As numbers, for a tensor; `Place.of` takes them back."""
        return [self.pool, self.index, self.progress]

    @classmethod
    def of(cls, row: list[float]) -> "Place":
        return cls(int(row[0]), int(row[1]), row[2])


def stream(
    seed: int, worker: int, place: Place, tokens: int, progress: Callable[[], float], course: str = "first"
) -> Iterator[Batch]:
    """Batches without end from `place` on, which moves along; `progress` is asked when a new pool is drawn."""
    if place == Place():
        place.progress = progress()
    while True:
        batches = pool(seed, worker, place.pool, place.progress, tokens, course)
        while place.index < len(batches):
            rng = Random(f"{seed}/{worker}/{place.pool}/{place.index}")
            place.index += 1
            yield batch(batches[place.index - 1], rng)
        place.pool, place.index, place.progress = place.pool + 1, 0, progress()
