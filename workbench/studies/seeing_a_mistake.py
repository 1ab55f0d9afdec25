"""What does the model need to detect a wrong step? Heads that carry the effect, and tokens that must stay visible.

Activation patching of each head, and attention of the step's last token masked to parts of the text.
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
from workbench.studies.wrong_steps import Pair, wait_probabilities, wrong_step_pairs

FAMILIES, LENGTH, N, SEED = ("variables", "swaps"), 3, 10, "fresh"
HIDDEN = ("nothing", "the token before", "the whole step", "earlier steps", "the question")


@cache
def wrong_step_traces(model: wb.Model, family: str, n: int = N, seed: str = SEED) -> list[tuple[Pair, wb.Trace]]:
    """Pairs of texts up to the value of a step, and the traces of the wrong ones."""
    return [(pair, model.trace(pair.wrong, record="")) for pair in wrong_step_pairs(family, n, LENGTH, seed)]


def masked_positions(trace: wb.Trace, start: int, hidden: str) -> list[int]:
    """The positions of the part `hidden` (one of HIDDEN) of a text whose last step begins at `start`."""
    last, (question, thought) = len(trace) - 1, trace.spans[-2:]
    bounds = {
        "nothing": (last, last),
        "the token before": (last - 1, last),
        "the whole step": (start, last),
        "earlier steps": (thought.content_start, start),
        "the question": (question.content_start, question.content_stop),
    }
    return list(range(*bounds[hidden]))


def wait_with_masking(model: wb.Model, pair: Pair, trace: wb.Trace) -> np.ndarray:
    """The probability of ". Wait" after a wrong step with parts of the text masked for its last token (hidden)."""

    def fn(x: torch.Tensor) -> torch.Tensor:  # hidden head query key
        for row, hidden in enumerate(HIDDEN):
            x[row, ..., masked_positions(trace, pair.start, hidden)] = -torch.inf
        return x

    return wait_probabilities(model, pair.wrong, len(HIDDEN), "blocks.*.attn.hook_attn_scores", fn)


@cache
def measure(model: wb.Model, n: int = N, seed: str = SEED):
    """By family: the share of the gap that each head carries (problem layer head), and the probability of ". Wait"
    after a wrong step with parts of the text masked for its last token (problem hidden).
    """
    carried, waits = {}, {}
    for family in FAMILIES:
        runs, metric = wrong_step_traces(model, family, n, seed), wb.patching.logit_diff(model, ".", ",")
        patched = [
            wb.patching.activation_patching(model, pair.wrong, pair.right, metric, site="z", by_head=True)
            for pair, _ in runs
        ]
        carried[family] = np.stack([shares.values for shares in patched])
        waits[family] = np.stack([wait_with_masking(model, pair, trace) for pair, trace in runs])
    return carried, waits


def draw(model: wb.Model) -> tuple[Figure, Sequence[wb.Trace]]:
    """The figure, and the traces behind it."""
    carried, waits = measure(model)
    panels: list[Panel] = []
    for family, rows in carried.items():
        share = xr.DataArray(rows.mean(0), dims=("layer", "head"), attrs={"long_name": "share of the gap"})
        significant = wb.statistics.westfall_young(rows) < 0.05
        [panel] = heatmap(share, marked=significant, marked_name="p < 0.05").panels
        panels.append(replace(panel, title=f"{family}: heads, patched one by one"))
    means = {family: wb.statistics.mean_interval(rows) for family, rows in waits.items()}
    coords = {"family": list(means), "hidden": list(HIDDEN)}
    value, low, high = bounds(means.values())
    p_wait = xr.DataArray(value, coords, ("family", "hidden"), attrs={"long_name": "p of “. Wait”"})
    panels += bars(p_wait, by="family", low=low, high=high).panels
    figure = Figure(
        panels=panels,
        rows=(1, 1, 1.1),
        height=170,
        title="Detecting a wrong name needs attention to the token before it; a wrong number needs no single part",
        note=f"n = {N} held-out problems per family; texts up to a wrong value. Top: the share of the logit difference "
        "of “.” and “,” (wrong value against right) that each head carries at that token; rings: sign-flip test, "
        f"max-T over {model.config.n_layers * model.config.n_heads} heads. Bottom: probability of “. Wait” with a part "
        "of the text masked for that token; 95 % intervals.",
    )
    return figure, [trace for family in FAMILIES for _, trace in wrong_step_traces(model, family)]
