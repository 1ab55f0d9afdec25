"""Heads by their weights and by their runs."""

from functools import cache, partial

import numpy as np
import xarray as xr
from _runs import pocket, texts

import workbench as wb

N, LENGTH, SEED, FAR = 6, 4, "weights", 64
traces = partial(texts, N, LENGTH, SEED)
NAMES = {"previous": "mass on the previous token", "sink": "mass on the sink"}
KINDS = ("sliding", "full")


def predicted() -> np.ndarray:
    """From weights: the softmax of each head's mean scores by distance and its sink (name layer head)."""
    scores = wb.qk_distance(pocket(), range(FAR))
    weight = np.exp(scores.fillna(-np.inf))
    total = weight.sum("distance") + np.exp(scores["sink"])
    return np.array([(weight.sel(distance=1) / total).values, (np.exp(scores["sink"]) / total).values])


@cache
def measure() -> xr.Dataset:
    """`weights` and `runs` with `low` and `high` over texts (name layer head); `rank`, Spearman's correlation over the
    heads of a kind of layer, and `p`, how often one of shuffled heads is as large (name kind)."""
    seen = [[wb.head_scores(t)["previous_token"].values, wb.sink_mass(t).mean("query").values] for t in traces()]
    told, sure, rng = predicted(), wb.statistics.mean(np.array(seen)), np.random.default_rng(0)
    rank, p = np.zeros((2, len(NAMES), len(KINDS)))
    for i, j in np.ndindex(rank.shape):
        of = [kind.startswith(KINDS[j]) for kind in traces()[0].config["layer_types"]]
        x, y = (np.argsort(np.argsort(values[i][of], None)) for values in (told, np.asarray(sure.value)))
        null = [np.corrcoef(rng.permutation(x), y)[0, 1] for _ in range(2000)]
        rank[i, j] = np.corrcoef(x, y)[0, 1]
        p[i, j] = (1 + (np.abs(null) >= abs(rank[i, j])).sum()) / (1 + len(null))
    dims = ("name", "layer", "head")
    data = {name: (dims, values) for name, values in zip(("weights", "runs", "low", "high"), (told, *sure[:3]))}
    data |= {"rank": (("name", "kind"), rank), "p": (("name", "kind"), p)}
    return xr.Dataset(data, {"name": list(NAMES), "kind": list(KINDS)}, {"n": len(seen)})
