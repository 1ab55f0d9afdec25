"""Where does attention go? Its split by layer: sink, self, first token, window, and beyond the window."""

from collections.abc import Sequence
from functools import cache

import numpy as np
import xarray as xr

import workbench as wb
from workbench.figures import Figure, stacked
from workbench.pocket.families import CHAINS
from workbench.studies.held_out import chain_traces

N, LENGTH, SEED = 6, 4, "anatomy"


def traces(model: wb.Model) -> list[wb.Trace]:
    """The traces that are measured."""
    return chain_traces(model, N, LENGTH, SEED)


PARTS = {
    "sink": "the sink",
    "self": "the token itself",
    "first": "the first token",
    "local": "the window",
    "beyond": "beyond the window",
}


def even(trace: wb.Trace) -> np.ndarray:
    """The share beyond the window if all attention outside the sink were spread evenly over the keys (layer head)."""
    query = np.arange(len(trace))
    share = np.maximum(query - trace.config["window"], 0) / (query + 1)  # the first token is counted separately
    return ((1 - np.asarray(trace["sink"], float)) * share).mean(-1)


@cache
def measure(model: wb.Model) -> xr.Dataset:
    """The shares of attention, averaged over queries, heads and texts.

    Returns a Dataset with attrs `n`, the number of texts:
        mean (part layer): the share of each part
        beyond (bound): the share beyond the window in full layers, with its interval
        even (bound): the same if attention were spread evenly
    """
    breakdowns = xr.concat([wb.attention.breakdown(trace) for trace in traces(model)], "text")
    kinds = [kind.split("_")[0] for kind in traces(model)[0].config["layer_types"]]
    mean = breakdowns[list(PARTS)].mean(("text", "head")).to_dataarray("part").assign_coords(part=list(PARTS.values()))
    full = [i for i, kind in enumerate(kinds) if kind == "full"]
    beyond = wb.statistics.mean_interval(breakdowns["beyond"].sel(layer=full).mean(("head", "layer")).values)
    spread = wb.statistics.mean_interval(np.array([even(trace)[full].mean() for trace in traces(model)]))
    coords = {"layer": [f"{i} {kind}" for i, kind in enumerate(kinds)], "bound": ["value", "low", "high"]}
    bounds = {"beyond": ("bound", np.array(beyond[:3])), "even": ("bound", np.array(spread[:3]))}
    return xr.Dataset({"mean": mean.drop_vars("layer")} | bounds, coords, {"n": len(traces(model))})


def draw(model: wb.Model) -> tuple[Figure, Sequence[wb.Trace]]:
    """The figure, and the traces behind it."""
    shares = measure(model)
    (value, low, high), even_share = shares["beyond"].values, float(shares["even"][0])
    window = traces(model)[0].config["window"]
    figure = stacked(
        shares["mean"].assign_attrs(long_name="share of attention", units="1"),
        by="part",
        title=f"{value:.0%} of the attention in full layers of pocket goes beyond the window",
        note=f"n = {shares.attrs['n']} texts of {len(CHAINS)} families, means over queries, heads and texts; window "
        f"{window}. Beyond it, in full layers: {value:.2f} ({low:.2f} to {high:.2f}, 95 %, over texts; "
        f"{even_share:.2f} if spread evenly); in sliding layers 0 by construction.",
        height=62,
    )
    return figure, traces(model)
