"""What does a model look at to see that it was wrong? Heads that carry it, and what has to be in sight."""

from dataclasses import replace
from functools import cache

import numpy as np
import torch
import xarray as xr
from _mistakes import Pair, chances, pairs
from _runs import Sequence, main, pocket

import workbench as wb
from workbench.figures import Figure, Panel, bars, heatmap

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


def draw() -> tuple[Figure, Sequence[wb.Trace]]:
    carried, waits = measure()
    panels: list[Panel] = []
    for family, rows in carried.items():
        many = xr.DataArray(rows.mean(0), dims=("layer", "head"), attrs={"long_name": "share of the gap"})
        sure = wb.statistics.max_t(rows) < 0.05
        [panel] = heatmap(many, marked=sure, marked_name="p < 0.05").panels
        panels.append(replace(panel, title=f"{family}: heads, patched one by one"))
    means = {family: wb.statistics.mean(rows) for family, rows in waits.items()}
    coords = {"family": list(means), "hidden": list(HIDDEN)}
    value, low, high = (np.array([getattr(m, end) for m in means.values()]) for end in ("value", "low", "high"))
    seen = xr.DataArray(value, coords, ("family", "hidden"), attrs={"long_name": "p of “. Wait”"})
    panels += bars(seen, by="family", low=low, high=high).panels
    figure = Figure(
        panels=panels,
        rows=(1, 1, 1.1),
        height=170,
        title="A wrong name is seen by looking at the token before it, a wrong number not by any one look",
        note=f"n = {N} held-out problems a family; a step that is written up to a wrong value. Above: what each head "
        "carries, at that token, of the logits of “.” against “,” (wrong value against right; rings: sign-flip test, "
        "max-T over 24 heads). Below: how likely “. Wait” is when that token does not see something; 95 % intervals.",
    )
    return figure, [trace for family in FAMILIES for _, trace in read(family)]


if __name__ == "__main__":
    main(__file__, draw)
