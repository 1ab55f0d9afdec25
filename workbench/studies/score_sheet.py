"""One chain of thought on one token axis: entropy of the next token, sink mass, router margin, prediction depth."""

from collections.abc import Sequence

import numpy as np
import xarray as xr

import workbench as wb
from workbench.figures import Figure, strip
from workbench.studies.held_out import traced_problems


def draw(model: wb.Model) -> tuple[Figure, Sequence[wb.Trace]]:
    """The figure, and the traces behind it."""
    [one] = traced_problems(model, "hops", 1, 4, "attention lens")
    trace = one.trace
    entropy = xr.DataArray(np.asarray(trace["entropy"]), dims="pos", attrs={"units": "nats"})
    lanes = {
        "entropy of the next token": entropy,
        "sink mass, mean of all heads": wb.attention.sink_mass(trace)
        .mean(("layer", "head"))
        .assign_attrs(units="share"),
        "smallest router margin of all layers": wb.routing.router_margin(trace)
        .min("layer")
        .assign_attrs(units="logits"),
        "prediction depth": wb.lens.prediction_depth(trace).assign_attrs(units="layer"),
    }
    figure = strip(
        lanes,
        trace,
        title="A chain of thought of pocket, token by token",
        note="The reference solution of one held-out problem of the family hops; no interval, n = 1. A column is "
        "measured at that token and refers to the prediction of the next one.",
    )
    return figure, [trace]
