"""Does the model know the answer without thinking?

Probability of the answer at low effort, and at high effort before and after thinking.
"""

from collections.abc import Sequence
from functools import cache

import numpy as np
import xarray as xr

import workbench as wb
from workbench.analysis.statistics import Interval
from workbench.figures import Figure, bars
from workbench.pocket.families import CHAINS, CONTROLS
from workbench.pocket.rendering import render
from workbench.studies.held_out import bounds, traced_problems

FAMILIES, N, LENGTH = (*CHAINS, *CONTROLS), 12, 4
WHEN = ("low effort", "high, before thinking", "high, after thinking")


@cache
def measure(model: wb.Model, seed: str = "fresh") -> dict[str, Interval]:
    """By family, the mean probability of the right answer (when)."""
    by_family = {}
    for family in FAMILIES:
        rows = []
        for traced in traced_problems(model, family, N, LENGTH, "", seed):
            low = model.trace(list(render(traced.problem, "low").ids), record="")
            p_low = float(np.exp(np.asarray(low["logprob"])[low.spans[-1].content].sum()))
            p_high = wb.reasoning.forced_answer(model, traced.trace, segments=wb.steps(traced.trace)[-1:])["p"].values[
                :, 0
            ]
            rows.append([p_low, *p_high])
        by_family[family] = wb.statistics.mean_interval(np.array(rows))
    return by_family


def draw(model: wb.Model) -> tuple[Figure, Sequence[wb.Trace]]:
    """The figure, and the traces behind it."""
    value, low, high = bounds(measure(model).values())
    attrs = {"long_name": "probability of the right answer", "units": "1"}
    figure = bars(
        xr.DataArray(value.T, {"when": list(WHEN), "family": list(FAMILIES)}, ("when", "family"), attrs=attrs),
        by="when",
        low=low.T,
        high=high.T,
        title="Multi-step problems need the chain of thought; look-ups do not",
        note=f"n = {N} held-out problems of length {LENGTH} per family; 95 % intervals over problems. Prefill of the "
        "reference solutions; at high effort, forced answers before the first and after the last step.",
    )
    return figure, [
        traced.trace for family in FAMILIES for traced in traced_problems(model, family, N, LENGTH, "", "fresh")
    ]
