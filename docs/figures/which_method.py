"""Which method finds what a step depends on? AUROC against the true graphs, beside what mere nearness reaches."""

import numpy as np
import xarray as xr
from _runs import Sequence, main, pocket, read

import workbench as wb
from workbench.figures import Figure, bars

FAMILIES, N, LENGTH = ("variables", "hops", "lists"), 12, 5
METHODS = ("nearness", "attention", "suppression")


def draw() -> tuple[Figure, Sequence[wb.Trace]]:
    found, traces = {}, []
    for family in FAMILIES:
        scores, truth, of = {name: [] for name in METHODS}, [], []
        for number, (problem, parts, trace) in enumerate(read(family, N, LENGTH)):
            worked = [step.kind == "compute" for step in problem.steps]
            # of a step that only restates the question, a later one may as well read the question: no such pairs
            pairs = [(i, j) for i in range(len(parts)) for j in range(i) if worked[j] or j not in problem.edges[i]]
            rows, columns = np.array(pairs).T
            attention = wb.step_attention(trace, parts).mean(("layer", "head")).values
            effect = wb.suppression(pocket(), trace, parts)["effect"].values
            for name, matrix in zip(
                METHODS, (-np.subtract.outer(range(len(parts)), range(len(parts))), attention, effect)
            ):
                scores[name] += matrix[rows, columns].tolist()
            truth += [j in problem.edges[i] for i, j in pairs]
            of += [number] * len(pairs)
            traces.append(trace)
        for name in METHODS:
            s, t = np.array(scores[name]), np.array(truth)
            interval = wb.statistics.bootstrap(
                lambda at, s=s, t=t: wb.statistics.auroc(s[at], t[at]), len(s), of, resamples=500
            )
            found[name, family] = interval
    coords, dims = {"method": list(METHODS), "family": list(FAMILIES)}, ("method", "family")
    value, low, high = (
        np.array([[getattr(found[m, f], part) for f in FAMILIES] for m in METHODS]) for part in ("value", "low", "high")
    )
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
    return figure, traces


if __name__ == "__main__":
    main(__file__, draw)
