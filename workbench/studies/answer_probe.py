"""Is the answer in the residual stream before it is said? A probe on other problems, at the ends of earlier steps.

Probes for values at the ends of steps, fitted on other problems.
What is claimed was seen on the problems of the seed "figures"; what is drawn are others.
"""

from collections.abc import Sequence
from functools import cache

import numpy as np
import xarray as xr

import workbench as wb
from workbench.figures import WIDTHS, Figure, beside, line
from workbench.studies.held_out import read

FAMILIES, N, LENGTH, RECORD = ("hops", "variables"), 100, 4, "blocks.*.hook_resid_post"
PLACES = {  # what is read off: of which steps the value, counted from the last; at the end of which; tokens before it
    "the answer, two steps before": [(-1, -3, 1)],
    "the answer, a step before": [(-1, -2, 1)],
    "the answer, a token before": [(-1, -1, 2)],
    "any value, a step before": [(-1, -2, 1), (-2, -3, 1), (-3, -4, 1)],
}


@cache
def measure(model: wb.Model, family: str, place: str, seed: str = "fresh") -> xr.Dataset:
    """`wb.probes.linear_probe` for the values of steps, at one of `PLACES`."""
    traces, labels = [], []
    for problem, parts, trace in read(model, family, N, LENGTH, RECORD, seed):
        label: list[str | None] = [None] * len(trace)
        for of, at, back in PLACES[place]:
            label[parts[at].stop - back] = problem.steps[of].value
        traces.append(trace)
        labels.append(label)
    return wb.probes.linear_probe(traces, labels, shuffles=50)


def scores(
    model: wb.Model, trace: wb.Trace, at: Sequence[int], family: str, place: str, layer: int, seed: str = "fresh"
) -> xr.DataArray:
    """What that probe says at places of another run (place label): 1 is yes, the share of a label is nothing."""
    known, reads = read(model, family, N, LENGTH, RECORD, seed), PLACES[place]
    stream = [np.asarray(one.trace["resid_post", layer]) for one in known]
    seen = np.stack([x[one.parts[end].stop - back] for one, x in zip(known, stream) for _, end, back in reads])
    values = np.array([one.problem.steps[of].value for one in known for of, *_ in reads])
    toward = measure(model, family, place, seed)["direction"].sel(layer=layer)
    share = np.array([np.mean(values == label) for label in toward["label"].values])
    said = (np.asarray(trace["resid_post", layer])[list(at)] - seen.mean(0)) @ toward.values.T + share
    return xr.DataArray(said, {"label": toward["label"].values}, ("place", "label"))


def draw(model: wb.Model) -> tuple[Figure, Sequence[wb.Trace]]:
    """The figure, and the traces behind it."""
    panels, traces = [], []
    for family in FAMILIES:
        found = [measure(model, family, place) for place in PLACES]
        value, low, high = (np.stack([each[name] for each in found]) for name in ("accuracy", "low", "high"))
        null = max(float(each["null"].max()) for each in found)
        coords = {"read off": list(PLACES), "layer": found[0]["layer"].values}
        attrs = {"long_name": "accuracy of a linear probe", "units": "1"}
        accuracy = xr.DataArray(value, coords, ("read off", "layer"), attrs=attrs)
        panels.append(line(accuracy, by="read off", low=low, high=high, null=null, title=family))
        traces += [one.trace for one in read(model, family, N, LENGTH, RECORD, "fresh")]
    figure = beside(
        *panels,
        title="Nearly half of the next hops can be read off a step before they are said; no next value can",
        note=f"n = {N} held-out problems of length {LENGTH} a family, five folds of problems; 95 % intervals (Wilson). "
        "The dashed line is the highest 95th percentile of shuffled answers.",
        width=WIDTHS["page"],
        height=75,
    )
    return figure, traces
