"""What or who? The effect of hiding a step: what experts compute on, how they are weighted, and which of them run."""

import numpy as np
import xarray as xr
from _runs import Sequence, main, pocket, read

import workbench as wb
from workbench.figures import Figure, bars

FAMILIES, N, LENGTH = ("hops", "swaps", "lists"), 10, 4
PARTS = {"content": "content", "reweighting": "other weights", "rerouting": "other experts"}


def draw() -> tuple[Figure, Sequence[wb.Trace]]:
    found, traces = [], []
    for family in FAMILIES:
        rows = []
        for problem, parts, trace in read(family, N, LENGTH):
            effect = wb.suppression(pocket(), trace, parts, routes=True)
            used = [(i, j) for i, sources in problem.edges.items() for j in sources]
            i, j = np.array(used).T
            rows.append([float(effect[name].values[i, j].mean()) for name in PARTS])
            traces.append(trace)
        found.append(wb.statistics.mean(np.array(rows)))
    coords, dims = {"family": list(FAMILIES), "part": list(PARTS.values())}, ("family", "part")
    attrs = {"long_name": "effect on a step that uses it", "units": "nats"}
    figure = bars(
        xr.DataArray(np.array([f.value for f in found]), coords, dims, attrs=attrs),
        by="part",
        low=xr.DataArray(np.array([f.low for f in found]), coords, dims),
        high=xr.DataArray(np.array([f.high for f in found]), coords, dims),
        title="A hidden step changes what experts compute on, more than which experts compute",
        note=f"n = {N} held-out problems of length {LENGTH} a family; 95 % intervals over problems. Means over the "
        "pairs of steps that truly depend on each other; the three parts sum to the effect.",
    )
    return figure, traces


if __name__ == "__main__":
    main(__file__, draw)
