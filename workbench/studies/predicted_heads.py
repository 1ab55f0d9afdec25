"""What the weights alone say of heads, beside what runs show: who looks one token back, and who sinks.

Heads by their weights and by their runs.
"""

from collections.abc import Sequence
from functools import cache

import numpy as np
import xarray as xr

import workbench as wb
from workbench.figures import Figure, beside, scatter
from workbench.studies.held_out import texts

N, LENGTH, SEED, FAR = 6, 4, "weights", 64


def traces(model: wb.Model) -> list[wb.Trace]:
    """The texts that are measured."""
    return texts(model, N, LENGTH, SEED)


NAMES = {"previous": "mass on the previous token", "sink": "mass on the sink"}
KINDS = ("sliding", "full")


def predicted(model: wb.Model) -> np.ndarray:
    """From weights: the softmax of each head's mean scores by distance and its sink (name layer head)."""
    scores = wb.circuits.qk_distance(model, range(FAR))
    weight = scores.copy(data=np.exp(scores.fillna(-np.inf).values))
    sink = scores["sink"].copy(data=np.exp(scores["sink"].values))
    total = weight.sum("distance") + sink
    return np.array([(weight.sel(distance=1) / total).values, (sink / total).values])


@cache
def measure(model: wb.Model) -> xr.Dataset:
    """`weights` and `runs` with `low` and `high` over texts (name layer head); `rank`, Spearman's correlation over the
    heads of a kind of layer, and `p`, how often one of shuffled heads is as large (name kind).
    """
    seen = [
        [wb.attention.head_scores(t)["previous_token"].values, wb.attention.sink_mass(t).mean("query").values]
        for t in traces(model)
    ]
    told, sure, rng = predicted(model), wb.statistics.mean_interval(np.array(seen)), np.random.default_rng(0)
    rank, p = np.zeros((2, len(NAMES), len(KINDS)))
    for i, j in np.ndindex(rank.shape):
        of = [kind.startswith(KINDS[j]) for kind in traces(model)[0].config["layer_types"]]
        x, y = (np.argsort(np.argsort(values[i][of], None)) for values in (told, np.asarray(sure.value)))
        null = [np.corrcoef(rng.permutation(x), y)[0, 1] for _ in range(2000)]
        rank[i, j] = np.corrcoef(x, y)[0, 1]
        p[i, j] = (1 + (np.abs(null) >= abs(rank[i, j])).sum()) / (1 + len(null))
    dims = ("name", "layer", "head")
    data = {name: (dims, values) for name, values in zip(("weights", "runs", "low", "high"), (told, *sure[:3]))}
    data |= {"rank": (("name", "kind"), rank), "p": (("name", "kind"), p)}
    return xr.Dataset(data, {"name": list(NAMES), "kind": list(KINDS)}, {"n": len(seen)})


def draw(model: wb.Model) -> tuple[Figure, Sequence[wb.Trace]]:
    """The figure, and the traces behind it."""
    found, sheets, said = measure(model), [], []
    kinds = [kind.split("_")[0] for kind in traces(model)[0].config["layer_types"]]
    heads = [(layer, head) for layer in range(len(kinds)) for head in range(found.sizes["head"])]
    text = [f"layer {layer} head {head}" for layer, head in heads]
    for name, label in NAMES.items():
        one = found.sel(name=name)
        x = one["weights"].assign_attrs(long_name="said by the weights", units="share")
        y = one["runs"].assign_attrs(long_name="seen in runs", units="share")
        sheets.append(scatter(x, y, groups=[kinds[layer] for layer, _ in heads], text=text, title=label))
        said += [f"{label}, {k}: {float(r):.2f} (p = {float(p):.2g})" for k, r, p in zip(KINDS, one["rank"], one["p"])]
    figure = beside(
        *sheets,
        title="Weights alone name the heads that look one token back, and sinks where the window is short",
        note=f"n = {len(heads)} heads, means over {found.attrs['n']} held-out texts. From the weights: the softmax of "
        f"a head's mean scores by distance, up to {FAR}, and its sink. Spearman's correlation over the heads of a "
        f"kind, against shuffled heads: {'; '.join(said)}.",
        height=62,
    )
    return figure, traces(model)
