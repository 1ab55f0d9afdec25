"""One chain of thought on one axis: where the next token was open, where attention sinks, how close routes were."""

from collections.abc import Sequence

import numpy as np
import xarray as xr

import workbench as wb
from workbench.figures import Figure, strip
from workbench.studies.held_out import read


def draw(model: wb.Model) -> tuple[Figure, Sequence[wb.Trace]]:
    """The figure, and the traces behind it."""
    [one] = read(model, "hops", 1, 4, "attention lens")
    trace = one.trace
    entropy = xr.DataArray(np.asarray(trace["entropy"]), dims="pos", attrs={"units": "nats"})
    lanes = {
        "entropy of the next token": entropy,
        "attention on the sinks, mean of all heads": wb.attention.sink_mass(trace)
        .mean(("layer", "head"))
        .assign_attrs(units="share"),
        "smallest router margin of all layers": wb.routing.router_margin(trace)
        .min("layer")
        .assign_attrs(units="logits"),
        "layer from which on the prediction stays": wb.lens.prediction_depth(trace).assign_attrs(units="layer"),
    }
    figure = strip(
        lanes,
        trace,
        title="A chain of thought of pocket, token by token",
        note="One held-out problem of passing things on, read as it should be solved; no interval, n = 1. A column "
        "says what was found at that token, about the token after it.",
    )
    return figure, [trace]
