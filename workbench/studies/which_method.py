"""Which method finds what a step depends on? AUROC against the true graphs, beside what mere nearness reaches.

The title was chosen on the problems of the seed "figures"; what is drawn are others.
"""

from collections.abc import Sequence
from functools import cache, partial

import numpy as np
import xarray as xr

import workbench as wb
from workbench.analysis.statistics import Interval
from workbench.figures import Figure, bars
from workbench.studies.dependency_methods import METHODS, area
from workbench.studies.held_out import bounds, read

FAMILIES, N, LENGTH = ("variables", "hops", "lists"), 6, 6  # receiver heads need seven steps
SHOWN = ("nearness", "receiver heads", "attention", "suppression")


@cache
def measure(model: wb.Model, seed: str = "fresh") -> dict[tuple[str, str], Interval]:
    """AUROC of each method in each family, over all pairs of steps."""
    found = {}
    for family in FAMILIES:
        scores, truth, of = {name: [] for name in SHOWN}, [], []
        for number, (problem, parts, trace) in enumerate(read(model, family, N, LENGTH, seed=seed)):
            worked = [step.kind == "compute" for step in problem.steps]
            # of a step that only restates the question, a later one may as well read the question: no such pairs
            pairs = [(i, j) for i in range(len(parts)) for j in range(i) if worked[j] or j not in problem.edges[i]]
            for name in SHOWN:
                scores[name] += METHODS[name](model, trace, parts)[tuple(np.array(pairs).T)].tolist()
            truth += [j in problem.edges[i] for i, j in pairs]
            of += [number] * len(pairs)
        for name in SHOWN:
            statistic = partial(area, np.array(scores[name]), np.array(truth))
            found[name, family] = wb.statistics.bootstrap_interval(statistic, len(of), of, resamples=500)
    return found


def draw(model: wb.Model) -> tuple[Figure, Sequence[wb.Trace]]:
    """The figure, and the traces behind it."""
    found, coords, dims = measure(model), {"method": list(SHOWN), "family": list(FAMILIES)}, ("method", "family")
    value, low, high = bounds([[found[m, f] for f in FAMILIES] for m in SHOWN])
    figure = bars(
        xr.DataArray(value, coords, dims, attrs={"long_name": "AUROC"}),
        by="method",
        low=low,
        high=high,
        null=0.5,
        title="In chains this short, nearness finds what a step uses nearly as well as any method",
        note=f"n = {N} held-out problems of length {LENGTH} a family; 95 % intervals, cluster bootstrap over problems. "
        "Steps use what is near, so nearness is what a method has to beat.",
    )
    return figure, [one.trace for family in FAMILIES for one in read(model, family, N, LENGTH, seed="fresh")]
