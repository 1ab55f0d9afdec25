"""Which method finds what a step depends on? AUROC against the true graphs, compared with the nearness baseline.

The title was chosen on the problems of the seed "figures"; the figure shows other problems.
"""

from collections.abc import Sequence
from functools import cache, partial

import numpy as np
import xarray as xr

import workbench as wb
from workbench.analysis.statistics import Interval
from workbench.figures import Figure, bars
from workbench.studies.dependency_methods import area, score_steps
from workbench.studies.held_out import bounds, traced_problems

FAMILIES, N, LENGTH = ("variables", "hops", "lists"), 6, 6  # receiver heads need seven steps
COMPARED = ("nearness", "receiver heads", "attention", "suppression")


@cache
def measure(model: wb.Model, seed: str = "fresh") -> dict[tuple[str, str], Interval]:
    """AUROC of each method in each family, over all pairs of steps."""
    areas = {}
    for family in FAMILIES:
        scores, truth, clusters = {name: [] for name in COMPARED}, [], []
        for number, (problem, steps, trace) in enumerate(traced_problems(model, family, N, LENGTH, seed=seed)):
            computed = [step.kind == "compute" for step in problem.steps]
            # a step that restates the question can be bypassed by attending to the question: no true pairs with it
            pairs = [(i, j) for i in range(len(steps)) for j in range(i) if computed[j] or j not in problem.edges[i]]
            for name in COMPARED:
                scores[name] += score_steps(name, model, trace, steps)[tuple(np.array(pairs).T)].tolist()
            truth += [j in problem.edges[i] for i, j in pairs]
            clusters += [number] * len(pairs)
        for name in COMPARED:
            statistic = partial(area, np.array(scores[name]), np.array(truth))
            areas[name, family] = wb.statistics.bootstrap_interval(statistic, len(clusters), clusters, resamples=500)
    return areas


def draw(model: wb.Model) -> tuple[Figure, Sequence[wb.Trace]]:
    """The figure, and the traces behind it."""
    areas, coords, dims = measure(model), {"method": list(COMPARED), "family": list(FAMILIES)}, ("method", "family")
    value, low, high = bounds([[areas[m, f] for f in FAMILIES] for m in COMPARED])
    figure = bars(
        xr.DataArray(value, coords, dims, attrs={"long_name": "AUROC"}),
        by="method",
        low=low,
        high=high,
        null=0.5,
        title="In chains this short, nearness finds what a step uses nearly as well as any method",
        note=f"n = {N} held-out problems of length {LENGTH} per family; 95 % intervals, cluster bootstrap over "
        "problems. Steps mostly use nearby steps, so nearness is the baseline to beat.",
    )
    return figure, [one.trace for family in FAMILIES for one in traced_problems(model, family, N, LENGTH, seed="fresh")]
