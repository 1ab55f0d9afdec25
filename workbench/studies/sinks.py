"""The mean sink mass of each head, and whether its learned sink logit predicts it."""

from collections.abc import Sequence
from functools import cache

import numpy as np
import xarray as xr

import workbench as wb
from workbench.figures import Figure, beside, heatmap, scatter
from workbench.pocket.families import CHAINS
from workbench.studies.held_out import chain_traces

N, LENGTH, SEED = 6, 4, "anatomy"


def traces(model: wb.Model) -> list[wb.Trace]:
    """The traces that are measured."""
    return chain_traces(model, N, LENGTH, SEED)


@cache
def measure(model: wb.Model) -> xr.Dataset:
    """By layer and head: sink `mass` with `low` and `high` (95 % over texts), learned `logit`, and `range` over texts.

    `attrs["r"]` is the correlation of mass and logit over heads; `attrs["p"]` is its permutation p-value over heads.
    """
    masses = np.array([wb.attention.sink_mass(trace).mean("query").values for trace in traces(model)])
    mean, logit = wb.statistics.mean_interval(masses), np.asarray(traces(model)[0]["sinks"], float)
    kinds = [f"{i} {kind.split('_')[0]}" for i, kind in enumerate(traces(model)[0].config["layer_types"])]
    columns = {"mass": mean.value, "low": mean.low, "high": mean.high, "logit": logit, "range": np.ptp(masses, 0)}
    rng, x, y = np.random.default_rng(0), logit.ravel(), np.asarray(mean.value).ravel()
    r = np.corrcoef(x, y)[0, 1]
    null = np.array([np.corrcoef(rng.permutation(x), y)[0, 1] for _ in range(2000)])
    p = (1 + (abs(null) >= abs(r)).sum()) / (1 + len(null))
    attrs = {"n": len(masses), "r": float(r), "p": float(p)}
    return xr.Dataset({name: (("layer", "head"), column) for name, column in columns.items()}, {"layer": kinds}, attrs)


def draw(model: wb.Model) -> tuple[Figure, Sequence[wb.Trace]]:
    """The figure, and the traces behind it."""
    measured = measure(model)
    mass = measured["mass"].assign_attrs(long_name="sink mass", units="share")
    heads = [(layer, head) for layer in range(mass.sizes["layer"]) for head in range(mass.sizes["head"])]
    figure = beside(
        heatmap(mass, written=True, low=0, high=1, title="mean over all queries"),
        scatter(
            measured["logit"].assign_attrs(long_name="learned sink (logit)"),
            mass,
            groups=[str(mass["layer"].values[layer]).split()[1] for layer, _ in heads],
            text=[f"layer {layer} head {head}" for layer, head in heads],
            title="each head",
        ),
        title="Heads of pocket that are mostly closed, and their learned sinks",
        note=f"n = {measured.attrs['n']} held-out texts of {len(CHAINS)} families; a head's mean differs between texts "
        f"by {float(measured['range'].max()):.2f} at most. Logit and mass of the {len(heads)} heads correlate with "
        f"r = {measured.attrs['r']:.2f} (shuffled heads: p = {measured.attrs['p']:.2g}): a head's sink mass depends on "
        "its keys too. Every sink logit is 2 before training.",
        height=62,
    )
    return figure, traces(model)
