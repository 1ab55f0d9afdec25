"""Heads from their weights: sinks, which tokens look at which (QK), what is written for a token that is seen (OV).

After Elhage et al., A Mathematical Framework for Transformer Circuits (2021), for gpt-oss: its biases, its shared keys
and values, RoPE with YaRN's factor, the scales of its norms, and its sinks. A circuit takes embeddings for what a head
reads: in the first layer that is so, above it is the direct path and no more.
"""

from collections.abc import Sequence

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from workbench.checks import resolve_head, resolve_layer
from workbench.circuits.vocabulary import chosen, largest_pairs, reading, texts, wide, writing
from workbench.errors import ArgumentError
from workbench.model.gpt_oss import rope_table, rotate
from workbench.model.model import Model


def sink_logits(model: Model, *, keys: int | None = None) -> xr.Dataset:
    """The learned sink of each head (layer head): `logit`, and `share`, what it takes of keys that all score 0.

    share = e^logit / (e^logit + keys), with as many `keys` as a sliding window unless given: 1 is a head that keeps
    silent until a key scores high, 0 one that always speaks. The coordinate `kind` says which layers slide.

    >>> found = wb.circuits.sink_logits(model)
    >>> found["logit"].dims, bool(((found["share"] > 0) & (found["share"] < 1)).all())
    (('layer', 'head'), True)

    Raises ArgumentError without a key.
    """
    c = model.config
    keys = c.window if keys is None else keys
    if keys < 1:
        raise ArgumentError(f"keys must be at least 1, got {keys}.")
    logit = torch.stack([block.sinks for block in model.weights.blocks]).double().cpu().numpy()
    data = {
        "logit": (("layer", "head"), logit),
        "share": (("layer", "head"), 1 / (1 + keys * np.exp(-logit))),
    }
    coords = {"layer": np.arange(c.n_layers), "head": np.arange(c.n_heads), "kind": ("layer", list(c.layer_types))}
    found = xr.Dataset(data, coords, {"keys": keys})
    found["logit"].attrs["units"], found["share"].attrs["units"] = "logits", "probability"
    return found


@torch.inference_mode()
def ov_circuit(model: Model, layer: int, head: int, *, k: int = 20, tokens: Sequence[int] | None = None) -> xr.Dataset:
    """What a head writes into the logits for each token that it looks at: W_E · norm · W_V · W_O · norm · W_U.

    The largest `logit` of all pairs (pair): seeing `source` raises `target`; both as ids and as texts (`source_text`,
    `target_text`). Logits are above the mean over the vocabulary, for full attention on the source, and before the
    division by the size of the stream. `always`, `always_text`, `always_logit` (rank) are what the bias of the values
    raises whatever is seen: it is weighted by 1 - sink, and so no constant of the model. `attrs["copying"]` is the sum
    of the eigenvalues over the sum of their sizes (Elhage et al. 2021): 1 for a head that raises what it sees, -1 for
    one that lowers it. `attrs["raised"]` is the share of tokens that raise themselves. `tokens` are the ids between
    which is looked, all unless given.

    >>> found = wb.circuits.ov_circuit(model, 1, 0, k=5)
    >>> found["logit"].dims, bool((np.diff(found["logit"]) <= 0).all()), -1 <= found.attrs["copying"] <= 1
    (('pair',), True, True)

    Raises SelectionError if there is no such layer or head, PromptError for an id that the model does not have.
    """
    c = model.config
    block = model.weights.blocks[resolve_layer(layer, c.n_layers)]
    head, ids = resolve_head(head, c.n_heads), chosen(model, tokens)
    values = _of(head // (c.n_heads // c.n_kv_heads), c.d_head)
    read = reading(model, ids, block.ln1, block.whole("w_v")[values])  # token d_head
    writes = block.whole("w_o")[:, _of(head, c.d_head)].to(wide(model))
    written = writing(model, ids, writes.T)  # token d_head
    logit, source, target = largest_pairs(read, written, k, "OV circuit")
    eigenvalues = torch.linalg.eigvals(written.double().T @ read.double())  # the same but for zeros: AB and BA
    size = float(eigenvalues.abs().sum())
    always = (written @ block.b_v[values].to(written.dtype)).topk(min(k, len(ids)))
    data = {
        **_pairs(model, ids, {"source": source, "target": target}, logit),
        "always": ("rank", _ids(ids, always.indices)),
        "always_text": ("rank", texts(model, _ids(ids, always.indices))),
        "always_logit": ("rank", always.values.double().cpu().numpy()),
    }
    attrs = {
        "units": "logits",
        "layer": layer,
        "head": head,
        "n_tokens": len(ids),
        "copying": float(eigenvalues.real.sum()) / size if size else float("nan"),
        "raised": float(((read * written).sum(1) > 0).double().mean()),
    }
    return xr.Dataset(data, {"pair": np.arange(len(logit)), "rank": np.arange(len(always.values))}, attrs)


@torch.inference_mode()
def qk_circuit(
    model: Model, layer: int, head: int, *, distance: int = 1, k: int = 20, tokens: Sequence[int] | None = None
) -> xr.Dataset:
    """Which tokens a head looks at from which, at one distance: the largest `logit` of all pairs (pair).

    The score q · k / sqrt(d_head) of `query` and `key` (ids; `query_text`, `key_text`), the key `distance` tokens
    before the query: with both biases, both turned by RoPE, whose factor (YaRN's, squared) is in it. It is what meets
    the softmax, so `attrs["sink"]`, the head's sink, is on the same scale: a lower score than that is hardly looked at.
    `tokens` are the ids between which is looked, all unless given.

    >>> found = wb.circuits.qk_circuit(model, 0, 0, distance=1, k=5)
    >>> found["logit"].dims, bool((np.diff(found["logit"]) <= 0).all())
    (('pair',), True)

    Raises ArgumentError for a distance that the layer does not see, SelectionError if there is no such layer or head,
    PromptError for an id that the model does not have.
    """
    c = model.config
    layer = resolve_layer(layer, c.n_layers)
    head, ids = resolve_head(head, c.n_heads), chosen(model, tokens)
    seen = c.window if c.is_sliding(layer) else c.n_ctx
    if not 0 <= distance < seen:
        raise ArgumentError(f"distance must be between 0 and {seen - 1} in layer {layer}, got {distance}.")
    query, key = (part(model, layer, head, ids) for part in (_queries, _keys))
    logit, q, k_ = largest_pairs(_turned(model, query, distance), _turned(model, key, 0), k, "QK circuit")
    block = model.weights.blocks[layer]
    attrs = {
        "units": "logits",
        "layer": layer,
        "head": head,
        "distance": distance,
        "n_tokens": len(ids),
        "sink": float(block.sinks[head]),
    }
    return xr.Dataset(_pairs(model, ids, {"query": q, "key": k_}, logit), {"pair": np.arange(len(logit))}, attrs)


@torch.inference_mode()
def qk_distance(
    model: Model, distances: Sequence[int] = range(64), *, tokens: Sequence[int] | None = None
) -> xr.DataArray:
    """How each head's scores depend on the distance alone: their mean over all pairs of tokens (layer head distance).

    In logits, as `qk_circuit` gives them, and NaN where a sliding layer sees nothing. A head that looks one token back
    whatever it reads has its peak at 1. The sink of each head is a coordinate, on the same scale.

    >>> found = wb.circuits.qk_distance(model, range(20))
    >>> found.dims, bool(np.isnan(found.sel(layer=0, distance=slice(model.config.window, None))).all())
    (('layer', 'head', 'distance'), True)

    Raises ArgumentError for a negative distance, PromptError for an id that the model does not have.
    """
    c, ids = model.config, chosen(model, tokens)
    if not len(distances) or min(distances) < 0:
        raise ArgumentError(f"distances must be at least one number, none below 0, got {list(distances)[:5]}.")
    values = np.full((c.n_layers, c.n_heads, len(distances)), np.nan)
    for layer in range(c.n_layers):
        seen = [i for i, distance in enumerate(distances) if not c.is_sliding(layer) or distance < c.window]
        for head in range(c.n_heads):
            # the mean over all pairs is the product of the means, for a score is linear in both
            query, key = (part(model, layer, head, ids).mean(0, keepdim=True) for part in (_queries, _keys))
            there = torch.cat([_turned(model, query, distances[i]) for i in seen]) if seen else query[:0]
            values[layer, head, seen] = (there @ _turned(model, key, 0).T)[:, 0].double().cpu()
    sinks = torch.stack([block.sinks for block in model.weights.blocks]).double().cpu().numpy()
    coords = {
        "layer": np.arange(c.n_layers),
        "head": np.arange(c.n_heads),
        "distance": np.asarray(distances),
        "sink": (("layer", "head"), sinks),
    }
    attrs = {"long_name": "mean score", "units": "logits", "n_tokens": len(ids)}
    return xr.DataArray(values, coords, ("layer", "head", "distance"), attrs=attrs)


def _of(head: int, d_head: int) -> slice:
    """Where a head's numbers lie."""
    return slice(head * d_head, (head + 1) * d_head)


def _queries(model: Model, layer: int, head: int, ids: Tensor) -> Tensor:
    """The query of each token (token d_head), divided by sqrt(d_head), before RoPE."""
    block, rows = model.weights.blocks[layer], _of(head, model.config.d_head)
    q = reading(model, ids, block.ln1, block.whole("w_q")[rows])
    return (q + block.b_q[rows].to(q.dtype)) * model.config.d_head**-0.5


def _keys(model: Model, layer: int, head: int, ids: Tensor) -> Tensor:
    """The key of each token (token d_head), before RoPE."""
    block, c = model.weights.blocks[layer], model.config
    rows = _of(head // (c.n_heads // c.n_kv_heads), c.d_head)
    k = reading(model, ids, block.ln1, block.whole("w_k")[rows])
    return k + block.b_k[rows].to(k.dtype)


def _turned(model: Model, x: Tensor, position: int) -> Tensor:
    """As RoPE leaves it at a position; what two tokens have of each other depends on the difference alone."""
    cos, sin = rope_table(model.config, position, position + 1, x)
    return rotate(x, cos[0], sin[0])


def _ids(ids: Tensor, places: Tensor) -> np.ndarray:
    return ids[places.cpu()].numpy()


def _pairs(model: Model, ids: Tensor, ends: dict[str, Tensor], logit: Tensor) -> dict:
    named = {name: _ids(ids, places) for name, places in ends.items()}
    data = {name: ("pair", token) for name, token in named.items()}
    data |= {f"{name}_text": ("pair", texts(model, token)) for name, token in named.items()}
    return data | {"logit": ("pair", logit.double().cpu().numpy())}
