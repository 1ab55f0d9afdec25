"""A wrong step: what each head carries of seeing it, and what its last token has to have in sight."""

from functools import cache

import numpy as np
import torch
from _mistakes import Pair, chances, pairs
from _runs import pocket

import workbench as wb

FAMILIES, LENGTH, N, SEED = ("variables", "swaps"), 3, 10, "fresh"
HIDDEN = ("nothing", "the token before", "the whole step", "earlier steps", "the question")


@cache
def read(family: str, n: int = N, seed: str = SEED) -> list[tuple[Pair, wb.Trace]]:
    """Problems with a step that is written up to a wrong value, and those texts as they are read."""
    return [(pair, pocket().trace(pair.wrong, record="")) for pair in pairs(family, n, LENGTH, seed)]


def places(trace: wb.Trace, start: int, hidden: str) -> list[int]:
    """The positions that the last token of a step, which begins at `start`, is not to look at."""
    last, (question, thought) = len(trace) - 1, trace.spans[-2:]
    bounds = {
        "nothing": (last, last),
        "the token before": (last - 1, last),
        "the whole step": (start, last),
        "earlier steps": (thought.content_start, start),
        "the question": (question.content_start, question.content_stop),
    }
    return list(range(*bounds[hidden]))


def blinded(pair: Pair, trace: wb.Trace) -> np.ndarray:
    """How likely ". Wait" is after a wrong step whose last token does not see something (hidden)."""

    def fn(x: torch.Tensor) -> torch.Tensor:  # hidden head query key
        for row, hidden in enumerate(HIDDEN):
            x[row, ..., places(trace, pair.start, hidden)] = -torch.inf
        return x

    return chances(pair.wrong, len(HIDDEN), "blocks.*.attn.hook_attn_scores", fn)


@cache
def measure(n: int = N, seed: str = SEED):
    """By family: the share of the gap that each head carries (problem layer head), and how likely ". Wait" is after a
    wrong step whose last token does not see something (problem hidden)."""
    carried, waits = {}, {}
    for family in FAMILIES:
        asked, gap = read(family, n, seed), wb.logit_gap(pocket(), ".", ",")
        carried[family] = np.stack(
            [wb.patch_sweep(pocket(), p.wrong, p.right, gap, site="z", by_head=True).values for p, _ in asked]
        )
        waits[family] = np.stack([blinded(*one) for one in asked])
    return carried, waits
