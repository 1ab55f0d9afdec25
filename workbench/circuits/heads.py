"""Attention heads from their weights: sinks, which tokens attend to which (QK), and which tokens they promote (OV).

After Elhage et al. 2021, "A Mathematical Framework for Transformer Circuits", extended to gpt-oss: biases, shared keys
and values, RoPE with YaRN's factor, the norms' scales, and sinks. The input of a head is taken to be token embeddings.
This is exact in the first layer; in higher layers it covers only the direct path.
"""

from collections.abc import Sequence

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from workbench.checks import check_items, check_type, check_whole, resolve_head, resolve_layer
from workbench.circuits.vocabulary import (
    compute_dtype,
    largest_pairs,
    logit_effects,
    read_embeddings,
    select_tokens,
    token_texts,
)
from workbench.errors import ArgumentError
from workbench.model.gpt_oss import rope_table
from workbench.model.kernels.rows import rotate
from workbench.model.model import Model
from workbench.units import with_units


def sink_logits(model: Model, *, keys: int | None = None) -> xr.Dataset:
    """The learned sink logit of each head, and its share of attention among keys that all score 0 (layer head).

    `logit` is the sink logit. `share` = e^logit / (e^logit + keys), with `keys` equal to the sliding window unless
    given. At 1 the head stays off until a key scores high, at 0 it always attends. The coordinate `kind` (layer) is the
    attention type.

    >>> sinks = wb.circuits.sink_logits(model)
    >>> sinks["logit"].dims, bool(((sinks["share"] > 0) & (sinks["share"] < 1)).all())
    (('layer', 'head'), True)

    Raises ArgumentError if `keys` is below 1.
    """
    check_type("sink_logits", model, Model)
    c = model.config
    keys = c.window if keys is None else check_whole("keys", keys, 1)
    logit = torch.stack([block.sinks for block in model.weights.blocks]).double().cpu().numpy()
    data = {
        "logit": (("layer", "head"), logit),
        "share": (("layer", "head"), 1 / (1 + keys * np.exp(-logit))),
    }
    coords = {"layer": np.arange(c.n_layers), "head": np.arange(c.n_heads), "kind": ("layer", list(c.layer_types))}
    dataset = xr.Dataset(data, coords, {"keys": keys})
    return with_units(dataset, logit="logits", share="probability")


@torch.inference_mode()
def ov_circuit(model: Model, layer: int, head: int, *, k: int = 20, tokens: Sequence[int] | None = None) -> xr.Dataset:
    """The OV circuit of a head: which tokens it promotes for each token it attends to.

    The circuit is W_E · norm · W_V · W_O · norm · W_U: a direct effect of the weights, for full attention on the source
    token (Elhage et al. 2021).

    Args:
        model: the model.
        layer: the layer.
        head: the head.
        k: number of pairs.
        tokens: token ids to consider as source and target; all unless given.

    Returns:
        Dataset:
        `logit` (pair), the largest effects: attending to `source` raises `target`; both as ids and texts
        (`source_text`, `target_text`). Logits are relative to the mean over the vocabulary, before the division by the
        norm of the stream;
        `always`, `always_text` and `always_logit` (rank), the tokens raised by the value bias, for any source. The
        bias is weighted by 1 - sink, so its effect varies with the context.
        `attrs["copying"]`, the sum of the circuit's eigenvalues over the sum of their absolute values: 1 for a head
        that raises the tokens it attends to, -1 for one that lowers them. `attrs["raised"]`, the share of tokens that
        raise themselves.

    >>> ov = wb.circuits.ov_circuit(model, 1, 0, k=5)
    >>> ov["logit"].dims, bool((np.diff(ov["logit"]) <= 0).all()), -1 <= ov.attrs["copying"] <= 1
    (('pair',), True, True)

    Raises:
        SelectionError: there is no such layer or head.
        PromptError: the model does not have a token id.
    """
    check_type("ov_circuit", model, Model)
    k = check_whole("k", k, 1)
    c = model.config
    layer = resolve_layer(layer, c.n_layers)
    block = model.weights.blocks[layer]
    head, ids = resolve_head(head, c.n_heads), select_tokens(model, tokens)
    values = _head_rows(head // (c.n_heads // c.n_kv_heads), c.d_head)
    token_values = read_embeddings(model, ids, block.ln1, block.whole("w_v")[values])  # token d_head
    output_weights = block.whole("w_o")[:, _head_rows(head, c.d_head)].to(compute_dtype(model))
    token_effects = logit_effects(model, ids, output_weights.T)  # token d_head
    logit, source, target = largest_pairs(token_values, token_effects, k, "OV circuit")
    eigenvalues = torch.linalg.eigvals(
        token_effects.double().T @ token_values.double()
    )  # AB and BA have the same nonzero eigenvalues
    total_magnitude = float(eigenvalues.abs().sum())
    always = (token_effects @ block.b_v[values].to(token_effects.dtype)).topk(min(k, len(ids)))
    data = {
        **_pairs(model, ids, {"source": source, "target": target}, logit),
        "always": ("rank", _take_ids(ids, always.indices)),
        "always_text": ("rank", token_texts(model, _take_ids(ids, always.indices))),
        "always_logit": ("rank", always.values.double().cpu().numpy()),
    }
    attrs = {
        "layer": layer,
        "head": head,
        "n_tokens": len(ids),
        "copying": float(eigenvalues.real.sum()) / total_magnitude if total_magnitude else float("nan"),
        "raised": float(((token_values * token_effects).sum(1) > 0).double().mean()),
    }
    dataset = xr.Dataset(data, {"pair": np.arange(len(logit)), "rank": np.arange(len(always.values))}, attrs)
    return with_units(dataset, "logits", source="token id", target="token id", always="token id")


@torch.inference_mode()
def qk_circuit(
    model: Model, layer: int, head: int, *, distance: int = 1, k: int = 20, tokens: Sequence[int] | None = None
) -> xr.Dataset:
    """The QK circuit of a head: the token pairs with the highest attention scores at one distance (pair).

    Args:
        model: the model.
        layer: the layer.
        head: the head.
        distance: how many tokens the key is before the query.
        k: number of pairs.
        tokens: token ids to consider as query and key; all unless given.

    Returns:
        Dataset (pair): `logit`, the score q · k / sqrt(d_head), with biases, RoPE and YaRN's squared factor; `query`
        and `key` as ids, `query_text` and `key_text` as texts. This is the input of the softmax, so `attrs["sink"]`,
        the head's sink logit, is on the same scale: a pair that scores below it gets little attention.

    >>> qk = wb.circuits.qk_circuit(model, 0, 0, distance=1, k=5)
    >>> qk["logit"].dims, bool((np.diff(qk["logit"]) <= 0).all())
    (('pair',), True)

    Raises:
        ArgumentError: the layer's attention does not reach this distance.
        SelectionError: there is no such layer or head.
        PromptError: the model does not have a token id.
    """
    check_type("qk_circuit", model, Model)
    k = check_whole("k", k, 1)
    c = model.config
    layer = resolve_layer(layer, c.n_layers)
    head, ids = resolve_head(head, c.n_heads), select_tokens(model, tokens)
    distance = check_whole("distance", distance, 0)
    reach = c.window if c.is_sliding(layer) else c.n_ctx
    if not distance < reach:
        raise ArgumentError(f"distance must be between 0 and {reach - 1} in layer {layer}, got {distance}.")
    query, key = (part(model, layer, head, ids) for part in (_queries, _keys))
    logit, query_index, key_index = largest_pairs(
        _rotated(model, query, distance), _rotated(model, key, 0), k, "QK circuit"
    )
    block = model.weights.blocks[layer]
    attrs = {
        "layer": layer,
        "head": head,
        "distance": distance,
        "n_tokens": len(ids),
        "sink": float(block.sinks[head]),
    }
    data = _pairs(model, ids, {"query": query_index, "key": key_index}, logit)
    dataset = xr.Dataset(data, {"pair": np.arange(len(logit))}, attrs)
    return with_units(dataset, "logits", query="token id", key="token id")


@torch.inference_mode()
def qk_distance(
    model: Model, distances: Sequence[int] = range(64), *, tokens: Sequence[int] | None = None
) -> xr.DataArray:
    """How attention scores depend on distance alone: the mean score over all token pairs (layer head distance).

    In logits, as in `qk_circuit`; NaN beyond the window of a sliding layer. A head that attends to the previous token
    whatever the tokens are has its peak at 1. The coordinate `sink` (layer head) is the sink logit, on the same scale.

    >>> scores = wb.circuits.qk_distance(model, range(20))
    >>> scores.dims, bool(np.isnan(scores.sel(layer=0, distance=slice(model.config.window, None))).all())
    (('layer', 'head', 'distance'), True)

    Raises ArgumentError for no distance or a negative one, PromptError for an id that the model does not have.
    """
    check_type("qk_distance", model, Model)
    c, ids = model.config, select_tokens(model, tokens)
    distances = [
        check_whole("a distance", distance, 0, c.n_ctx - 1) for distance in check_items("distances", distances)
    ]
    values = np.full((c.n_layers, c.n_heads, len(distances)), np.nan)
    for layer in range(c.n_layers):
        reachable = [i for i, distance in enumerate(distances) if not c.is_sliding(layer) or distance < c.window]
        for head in range(c.n_heads):
            # a score is linear in query and in key, so its mean over all pairs is the score of the means
            query, key = (part(model, layer, head, ids).mean(0, keepdim=True) for part in (_queries, _keys))
            rotated_queries = (
                torch.cat([_rotated(model, query, distances[i]) for i in reachable]) if reachable else query[:0]
            )
            values[layer, head, reachable] = (rotated_queries @ _rotated(model, key, 0).T)[:, 0].double().cpu()
    sinks = torch.stack([block.sinks for block in model.weights.blocks]).double().cpu().numpy()
    coords = {
        "layer": np.arange(c.n_layers),
        "head": np.arange(c.n_heads),
        "distance": np.asarray(distances),
        "sink": (("layer", "head"), sinks),
    }
    attrs = {"long_name": "mean score", "units": "logits", "n_tokens": len(ids)}
    return xr.DataArray(values, coords, ("layer", "head", "distance"), attrs=attrs)


def _head_rows(head: int, d_head: int) -> slice:
    """The slice of a head's rows."""
    return slice(head * d_head, (head + 1) * d_head)


def _queries(model: Model, layer: int, head: int, ids: Tensor) -> Tensor:
    """The query of each token (token d_head), divided by sqrt(d_head), before RoPE."""
    block, rows = model.weights.blocks[layer], _head_rows(head, model.config.d_head)
    q = read_embeddings(model, ids, block.ln1, block.whole("w_q")[rows])
    return (q + block.b_q[rows].to(q.dtype)) * model.config.d_head**-0.5


def _keys(model: Model, layer: int, head: int, ids: Tensor) -> Tensor:
    """The key of each token (token d_head), before RoPE."""
    block, c = model.weights.blocks[layer], model.config
    rows = _head_rows(head // (c.n_heads // c.n_kv_heads), c.d_head)
    k = read_embeddings(model, ids, block.ln1, block.whole("w_k")[rows])
    return k + block.b_k[rows].to(k.dtype)


def _rotated(model: Model, x: Tensor, position: int) -> Tensor:
    """x after RoPE at a position. Scores depend only on the difference of two positions."""
    cos, sin = rope_table(model.config, torch.tensor([position]), x)
    return rotate(x, cos[0], sin[0])


def _take_ids(ids: Tensor, indices: Tensor) -> np.ndarray:
    return ids[indices.cpu()].numpy()


def _pairs(model: Model, ids: Tensor, ends: dict[str, Tensor], logit: Tensor) -> dict:
    named = {name: _take_ids(ids, indices) for name, indices in ends.items()}
    data = {name: ("pair", token) for name, token in named.items()}
    data |= {f"{name}_text": ("pair", token_texts(model, token)) for name, token in named.items()}
    return data | {"logit": ("pair", logit.double().cpu().numpy())}
