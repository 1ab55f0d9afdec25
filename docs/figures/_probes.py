"""Probes for values at the ends of steps, fitted on other problems."""

from functools import cache

import numpy as np
import xarray as xr
from _runs import Sequence, read

import workbench as wb

FAMILIES, N, LENGTH, RECORD = ("hops", "variables"), 100, 4, "blocks.*.hook_resid_post"
PLACES = {  # what is read off: of which steps the value, counted from the last; at the end of which; tokens before it
    "the answer, two steps before": [(-1, -3, 1)],
    "the answer, a step before": [(-1, -2, 1)],
    "the answer, a token before": [(-1, -1, 2)],
    "any value, a step before": [(-1, -2, 1), (-2, -3, 1), (-3, -4, 1)],
}


@cache
def measure(family: str, place: str, seed: str = "fresh") -> xr.Dataset:
    traces, labels = [], []
    for problem, parts, trace in read(family, N, LENGTH, RECORD, seed):
        label: list[str | None] = [None] * len(trace)
        for of, at, back in PLACES[place]:
            label[parts[at].stop - back] = problem.steps[of].value
        traces.append(trace)
        labels.append(label)
    return wb.linear_probe(traces, labels, shuffles=50)


def scores(
    trace: wb.Trace, at: Sequence[int], family: str, place: str, layer: int, seed: str = "fresh"
) -> xr.DataArray:
    """What that probe says at places of another run (place label): 1 is yes, the share of a label is nothing."""
    known, reads = read(family, N, LENGTH, RECORD, seed), PLACES[place]
    stream = [np.asarray(one.trace["resid_post", layer]) for one in known]
    seen = np.stack([x[one.parts[end].stop - back] for one, x in zip(known, stream) for _, end, back in reads])
    values = np.array([one.problem.steps[of].value for one in known for of, *_ in reads])
    toward = measure(family, place, seed)["direction"].sel(layer=layer)
    share = np.array([np.mean(values == label) for label in toward["label"].values])
    said = (np.asarray(trace["resid_post", layer])[list(at)] - seen.mean(0)) @ toward.values.T + share
    return xr.DataArray(said, {"label": toward["label"].values}, ("place", "label"))
