"""Is the answer in the residual stream before it is generated? Linear probes for values at the ends of earlier steps.

The probes are tested on problems they were not fitted on.
The figure's title was chosen from problems of the seed "figures"; the figure itself shows other problems.
"""

from collections.abc import Sequence
from functools import cache

import numpy as np
import xarray as xr

import workbench as wb
from workbench.figures import WIDTHS, Figure, beside, line
from workbench.studies.held_out import traced_problems

FAMILIES, N, LENGTH, RECORD = ("hops", "variables"), 100, 4, "blocks.*.hook_resid_post"
# Target -> (step whose value is predicted, step at whose end the probe is applied, tokens back from that end); steps
# are counted from the last one.
TARGETS = {
    "the answer, two steps before": [(-1, -3, 1)],
    "the answer, a step before": [(-1, -2, 1)],
    "the answer, a token before": [(-1, -1, 2)],
    "any value, a step before": [(-1, -2, 1), (-2, -3, 1), (-3, -4, 1)],
}


# Family -> the target by which its layer is chosen: in hops names are looked up, in variables values are computed.
CHOSEN_BY = {"hops": "any value, a step before", "variables": "the answer, a token before"}


def layer_of(model: wb.Model, family: str) -> int:
    """The layer to report for a family: the first within 0.02 of the best accuracy, on problems of another seed."""
    accuracy = measure(model, family, CHOSEN_BY[family], "figures")["accuracy"].values
    return int(np.argmax(accuracy > accuracy.max() - 0.02))


@cache
def measure(model: wb.Model, family: str, target: str, seed: str = "fresh") -> xr.Dataset:
    """`wb.probes.linear_probe` for one of `TARGETS`, over the problems of a family."""
    traces, labels = [], []
    for problem, steps, trace in traced_problems(model, family, N, LENGTH, RECORD, seed):
        label: list[str | None] = [None] * len(trace)
        for predicted, at, back in TARGETS[target]:
            label[steps[at].stop - back] = problem.steps[predicted].value
        traces.append(trace)
        labels.append(label)
    return wb.probes.linear_probe(traces, labels, n_shuffles=50)


def scores(
    model: wb.Model,
    trace: wb.Trace,
    positions: Sequence[int],
    family: str,
    target: str,
    layer: int,
    seed: str = "fresh",
) -> xr.DataArray:
    """The probe's scores at positions of another run (position label).

    A score of 1 means that the value is this label. Without evidence, the score is the label's share among the fitted
    values.

    Args:
        model: The model.
        trace: A run with recorded residuals.
        positions: Where to apply the probe.
        family: The family of problems that the probe was fitted on.
        target: One of `TARGETS`.
        layer: The layer whose residual stream is the probe's input.
        seed: The seed of the problems that the probe was fitted on.
    """
    fitted, target_steps = traced_problems(model, family, N, LENGTH, RECORD, seed), TARGETS[target]
    resid = [np.asarray(traced.trace["resid_post", layer]) for traced in fitted]
    inputs = np.stack(
        [x[traced.steps[at].stop - back] for traced, x in zip(fitted, resid) for _, at, back in target_steps]
    )
    values = np.array([traced.problem.steps[predicted].value for traced in fitted for predicted, *_ in target_steps])
    direction = measure(model, family, target, seed)["direction"].sel(layer=layer)
    share = np.array([np.mean(values == label) for label in direction["label"].values])
    score = (np.asarray(trace["resid_post", layer])[list(positions)] - inputs.mean(0)) @ direction.values.T + share
    return xr.DataArray(score, {"label": direction["label"].values}, ("position", "label"))


def draw(model: wb.Model) -> tuple[Figure, Sequence[wb.Trace]]:
    """The figure, and the traces behind it."""
    panels, traces = [], []
    for family in FAMILIES:
        probes = [measure(model, family, target) for target in TARGETS]
        value, low, high = (np.stack([probe[name] for probe in probes]) for name in ("accuracy", "low", "high"))
        null = max(float(probe["null"].max()) for probe in probes)
        coords = {"target": list(TARGETS), "layer": probes[0]["layer"].values}
        attrs = {"long_name": "accuracy of a linear probe", "units": "1"}
        accuracy = xr.DataArray(value, coords, ("target", "layer"), attrs=attrs)
        panels.append(line(accuracy, by="target", low=low, high=high, null=null, title=family))
        traces += [traced.trace for traced in traced_problems(model, family, N, LENGTH, RECORD, "fresh")]
    figure = beside(
        *panels,
        title="The next name is often decodable one step before it is generated; the next value is not",
        note=f"n = {N} held-out problems of length {LENGTH} per family, five folds of problems; 95 % intervals "
        "(Wilson). The dashed line is the highest 95th percentile of shuffled answers.",
        width=WIDTHS["page"],
        height=75,
    )
    return figure, traces
