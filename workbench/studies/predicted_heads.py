"""Can weights alone predict what heads do? Previous-token mass and sink mass, predicted from weights and measured."""

from collections.abc import Sequence
from functools import cache

import numpy as np
import xarray as xr

import workbench as wb
from workbench.figures import Figure, beside, scatter
from workbench.studies.held_out import chain_traces

N, LENGTH, SEED, MAX_DISTANCE = 6, 4, "weights", 64


def traces(model: wb.Model) -> list[wb.Trace]:
    """The traces that are measured."""
    return chain_traces(model, N, LENGTH, SEED)


NAMES = {"previous": "mass on the previous token", "sink": "mass on the sink"}
KINDS = ("sliding", "full")


def predicted(model: wb.Model) -> np.ndarray:
    """Predicted masses (name layer head): the softmax of each head's mean score at each distance and its sink."""
    scores = wb.circuits.qk_distance(model, range(MAX_DISTANCE))
    weight = scores.copy(data=np.exp(scores.fillna(-np.inf).values))
    sink = scores["sink"].copy(data=np.exp(scores["sink"].values))
    total = weight.sum("distance") + sink
    return np.array([(weight.sel(distance=1) / total).values, (sink / total).values])


@cache
def measure(model: wb.Model) -> xr.Dataset:
    """Predicted and measured masses of all heads.

    Returns a Dataset:
        weights (name layer head): the mass predicted from weights
        runs, low, high (name layer head): the measured mass, and its interval over texts
        rank (name kind): Spearman's correlation over the heads of a kind of layer
        p (name kind): the share of shuffles of heads with a correlation as large
    """
    measured = [
        [wb.attention.head_scores(t)["previous_token"].values, wb.attention.sink_mass(t).mean("query").values]
        for t in traces(model)
    ]
    from_weights, runs = predicted(model), wb.statistics.mean_interval(np.array(measured))
    rng = np.random.default_rng(0)
    rank, p = np.zeros((2, len(NAMES), len(KINDS)))
    for i, j in np.ndindex(rank.shape):
        of_kind = [kind.startswith(KINDS[j]) for kind in traces(model)[0].config["layer_types"]]
        x, y = (np.argsort(np.argsort(values[i][of_kind], None)) for values in (from_weights, np.asarray(runs.value)))
        null = [np.corrcoef(rng.permutation(x), y)[0, 1] for _ in range(2000)]
        rank[i, j] = np.corrcoef(x, y)[0, 1]
        p[i, j] = (1 + (np.abs(null) >= abs(rank[i, j])).sum()) / (1 + len(null))
    dims = ("name", "layer", "head")
    data = {name: (dims, values) for name, values in zip(("weights", "runs", "low", "high"), (from_weights, *runs[:3]))}
    data |= {"rank": (("name", "kind"), rank), "p": (("name", "kind"), p)}
    return xr.Dataset(data, {"name": list(NAMES), "kind": list(KINDS)}, {"n": len(measured)})


def draw(model: wb.Model) -> tuple[Figure, Sequence[wb.Trace]]:
    """The figure, and the traces behind it."""
    masses, sheets, correlations = measure(model), [], []
    kinds = [kind.split("_")[0] for kind in traces(model)[0].config["layer_types"]]
    heads = [(layer, head) for layer in range(len(kinds)) for head in range(masses.sizes["head"])]
    text = [f"layer {layer} head {head}" for layer, head in heads]
    for name, label in NAMES.items():
        one = masses.sel(name=name)
        x = one["weights"].assign_attrs(long_name="predicted from weights", units="share")
        y = one["runs"].assign_attrs(long_name="measured in runs", units="share")
        sheets.append(scatter(x, y, groups=[kinds[layer] for layer, _ in heads], text=text, title=label))
        rows = zip(KINDS, one["rank"], one["p"])
        correlations += [f"{label}, {kind}: {float(r):.2f} (p = {float(p):.2g})" for kind, r, p in rows]
    figure = beside(
        *sheets,
        title="Weights alone predict the previous-token heads, and sink mass where the window is short",
        note=f"n = {len(heads)} heads, means over {masses.attrs['n']} held-out texts. Predicted: the softmax of a "
        f"head's mean scores at distances up to {MAX_DISTANCE} and its sink. Spearman's correlation over the heads of "
        f"a kind of layer, against shuffled heads: {'; '.join(correlations)}.",
        height=62,
    )
    return figure, traces(model)
