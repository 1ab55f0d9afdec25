"""What does a model look at to see that it was wrong? Heads that carry it, and what has to be in sight.

A wrong step: what each head carries of seeing it, and what its last token has to have in sight.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import cache

import numpy as np
import torch
import xarray as xr

import workbench as wb
from workbench.figures import Figure, Panel, bars, heatmap
from workbench.studies.held_out import bounds
from workbench.studies.wrong_steps import Pair, chances, pairs

FAMILIES, LENGTH, N, SEED = ("variables", "swaps"), 3, 10, "fresh"
HIDDEN = ("nothing", "the token before", "the whole step", "earlier steps", "the question")


@cache
def read(model: wb.Model, family: str, n: int = N, seed: str = SEED) -> list[tuple[Pair, wb.Trace]]:
    """Problems with a step that is written up to a wrong value, and those texts as they are read."""
    return [(pair, model.trace(pair.wrong, record="")) for pair in pairs(family, n, LENGTH, seed)]


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


def blinded(model: wb.Model, pair: Pair, trace: wb.Trace) -> np.ndarray:
    """How likely ". Wait" is after a wrong step whose last token does not see something (hidden)."""

    def fn(x: torch.Tensor) -> torch.Tensor:  # hidden head query key
        for row, hidden in enumerate(HIDDEN):
            x[row, ..., places(trace, pair.start, hidden)] = -torch.inf
        return x

    return chances(model, pair.wrong, len(HIDDEN), "blocks.*.attn.hook_attn_scores", fn)


@cache
def measure(model: wb.Model, n: int = N, seed: str = SEED):
    """By family: the share of the gap that each head carries (problem layer head), and how likely ". Wait" is after a
    wrong step whose last token does not see something (problem hidden).
    """
    carried, waits = {}, {}
    for family in FAMILIES:
        asked, gap = read(model, family, n, seed), wb.patching.logit_diff(model, ".", ",")
        carried[family] = np.stack(
            [
                wb.patching.activation_patching(model, p.wrong, p.right, gap, site="z", by_head=True).values
                for p, _ in asked
            ]
        )
        waits[family] = np.stack([blinded(model, *one) for one in asked])
    return carried, waits


def draw(model: wb.Model) -> tuple[Figure, Sequence[wb.Trace]]:
    """The figure, and the traces behind it."""
    carried, waits = measure(model)
    panels: list[Panel] = []
    for family, rows in carried.items():
        many = xr.DataArray(rows.mean(0), dims=("layer", "head"), attrs={"long_name": "share of the gap"})
        sure = wb.statistics.westfall_young(rows) < 0.05
        [panel] = heatmap(many, marked=sure, marked_name="p < 0.05").panels
        panels.append(replace(panel, title=f"{family}: heads, patched one by one"))
    means = {family: wb.statistics.mean_interval(rows) for family, rows in waits.items()}
    coords = {"family": list(means), "hidden": list(HIDDEN)}
    value, low, high = bounds(means.values())
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
    return figure, [trace for family in FAMILIES for _, trace in read(model, family)]
