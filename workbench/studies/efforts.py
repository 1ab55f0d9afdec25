"""Does it know without thinking? How likely the answer is at low effort, and at high effort before and after."""

from collections.abc import Sequence
from functools import cache

import numpy as np
import xarray as xr

import workbench as wb
from workbench.analysis.statistics import Interval
from workbench.figures import Figure, bars
from workbench.pocket.families import CHAINS, CONTROLS
from workbench.pocket.rendering import render
from workbench.studies.held_out import bounds, read

FAMILIES, N, LENGTH = (*CHAINS, *CONTROLS), 12, 4
WHEN = ("low effort", "high, before it thinks", "high, when it has thought")


@cache
def measure(model: wb.Model, seed: str = "fresh") -> dict[str, Interval]:
    """For each family the mean probability of the right answer (when)."""
    found = {}
    for family in FAMILIES:
        rows = []
        for one in read(model, family, N, LENGTH, "", seed):
            low = model.trace(list(render(one.problem, "low").ids), record="")
            said = float(np.exp(np.asarray(low["logprob"])[low.spans[-1].content].sum()))
            rows.append(
                [
                    said,
                    *wb.reasoning.forced_answer(model, one.trace, segments=wb.steps(one.trace)[-1:])["p"].values[:, 0],
                ]
            )
        found[family] = wb.statistics.mean_interval(np.array(rows))
    return found


def draw(model: wb.Model) -> tuple[Figure, Sequence[wb.Trace]]:
    """The figure, and the traces behind it."""
    found = measure(model)
    value, low, high = bounds(found.values())
    attrs = {"long_name": "probability of the right answer", "units": "1"}
    figure = bars(
        xr.DataArray(value.T, {"when": list(WHEN), "family": list(FAMILIES)}, ("when", "family"), attrs=attrs),
        by="when",
        low=low.T,
        high=high.T,
        title="Chains need the thinking; what is only looked up does not",
        note=f"n = {N} held-out problems of length {LENGTH} a family; 95 % intervals over problems. Read as they are "
        "to be solved; at high effort the model is made to answer at once, or after all steps.",
    )
    return figure, [one.trace for family in FAMILIES for one in read(model, family, N, LENGTH, "", "fresh")]
