"""Routers and experts from their weights: which tokens an expert is preferred for, and which it promotes.

An expert's number means nothing outside its layer.
"""

from collections.abc import Sequence

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from workbench.checks import check_items, check_type, check_whole, resolve_index, resolve_layer
from workbench.circuits.vocabulary import (
    MAX_CHUNK_ELEMENTS,
    compute_dtype,
    logit_effects,
    read_embeddings,
    select_tokens,
    token_texts,
)
from workbench.model.kernels.lora import Adapted, plain
from workbench.model.kernels.packed import dense
from workbench.model.model import Model
from workbench.progress import progress_bar
from workbench.units import with_units


@torch.inference_mode()
def router_tokens(model: Model, layer: int, *, k: int = 10, tokens: Sequence[int] | None = None) -> xr.Dataset:
    """Which tokens each expert is preferred for, by the router's weights on token embeddings, without context.

    The router's input is taken to be the token embedding. In layer 0 only the attention output is missing from it. In
    higher layers the embedding is only one part of the residual stream.

    Args:
        model: the model.
        layer: the layer.
        k: number of tokens per expert.
        tokens: token ids to consider; all unless given.

    Returns:
        Dataset:
        `token`, `text` and `preference` (expert rank), the tokens whose router logit for this expert (bias included) is
        highest above the mean over experts, in logits. The mean is subtracted because it does not change routing;
        `share` (expert), the share of tokens for which the expert would run; shares sum to the number of active
        experts;
        `direction` (expert d_model), the direction in the residual stream that leads to the expert: the router's row
        times the norm's scale, minus the mean row.

    >>> preferred = wb.circuits.router_tokens(model, 0, k=3)
    >>> preferred["token"].dims, round(float(preferred["share"].sum()), 6) == model.config.n_active
    (('expert', 'rank'), True)

    Raises:
        SelectionError: there is no such layer.
        PromptError: the model does not have a token id.
    """
    check_type("router_tokens", model, Model)
    k = check_whole("k", k, 1)
    c = model.config
    layer, ids = resolve_layer(layer, c.n_layers), select_tokens(model, tokens)
    block = model.weights.blocks[layer]
    rows = block.whole("w_router").to(compute_dtype(model))
    logits = read_embeddings(model, ids, block.ln2, rows) + block.b_router.to(rows.dtype)  # token expert
    counts = torch.zeros(c.n_experts, dtype=torch.float64, device=logits.device)
    counts += torch.bincount(logits.topk(c.n_active, -1).indices.flatten(), minlength=c.n_experts)
    top = (logits - logits.mean(1, keepdim=True)).topk(min(k, len(ids)), dim=0)
    token = ids[top.indices.T.cpu()].numpy()
    direction = (rows - rows.mean(0)) * block.ln2.to(rows.dtype)
    data = {
        "token": (("expert", "rank"), token),
        "text": (("expert", "rank"), token_texts(model, token)),
        "preference": (("expert", "rank"), top.values.T.double().cpu().numpy()),
        "share": (("expert",), (counts / len(ids)).cpu().numpy()),
        "direction": (("expert", "d_model"), direction.double().cpu().numpy()),
    }
    coords = {"expert": np.arange(c.n_experts), "rank": np.arange(token.shape[1])}
    dataset = xr.Dataset(data, coords, {"layer": layer, "n_tokens": len(ids)})
    return with_units(dataset, token="token id", preference="logits", share="share of tokens", direction="1")


@torch.inference_mode()
def expert_logit_effects(
    model: Model,
    layer: int,
    expert: int,
    *,
    neurons: Sequence[int] | None = None,
    k: int = 10,
    tokens: Sequence[int] | None = None,
) -> xr.Dataset:
    """Which tokens an expert makes more or less likely: each neuron and the bias, directly through the unembedding.

    These are direct effects of the weights. They ignore later layers and say nothing about when a neuron is active.

    Args:
        model: the model.
        layer: the layer.
        expert: the expert.
        neurons: the neurons; None for all.
        k: number of tokens per neuron.
        tokens: token ids to consider; all unless given.

    Returns:
        Dataset:
        `raised`, `raised_text` and `raised_logit` (neuron rank), the tokens whose logit rises most if the neuron's
        activation is 1;
        `lowered`, `lowered_text` and `lowered_logit`, those whose logit falls most. Activations of gpt-oss's SwiGLU,
        (up + 1) · gate · sigmoid(1.702 gate), can have either sign;
        `norm` (neuron), the length of the neuron's output vector;
        `bias`, `bias_text` and `bias_logit` (rank), the effect of the output bias, which is added whenever the expert
        runs.
        Logits are relative to the mean over the vocabulary, before the expert's routing weight and the division by the
        norm of the stream.

    >>> effects = wb.circuits.expert_logit_effects(model, 5, 0, neurons=[0, 1], k=3)
    >>> ordered = effects["raised_logit"] >= effects["lowered_logit"]
    >>> effects["raised"].dims, effects["bias_text"].shape, bool(ordered.all())
    (('neuron', 'rank'), (3,), True)

    Raises:
        SelectionError: there is no such layer, expert or neuron.
        PromptError: the model does not have a token id.
    """
    check_type("expert_logit_effects", model, Model)
    k = check_whole("k", k, 1)
    c = model.config
    layer, ids = resolve_layer(layer, c.n_layers), select_tokens(model, tokens)
    expert = resolve_index("expert", expert, c.n_experts)
    neuron_list = range(c.d_mlp) if neurons is None else check_items("neurons", neurons)
    neuron_ids = [resolve_index("neuron", neuron, c.d_mlp) for neuron in neuron_list]
    experts, k = model.weights.blocks[layer].experts, min(k, len(ids))
    columns = _whole(experts.down, expert, compute_dtype(model))[:, neuron_ids].T  # neuron d_model
    raised, lowered = [], []
    chunks = columns.split(max(1, MAX_CHUNK_ELEMENTS // len(ids)))
    for chunk in progress_bar(chunks, desc="neurons"):
        logits = logit_effects(model, ids, chunk)  # token neuron
        raised.append(_extreme(logits, k, 1.0))
        lowered.append(_extreme(logits, k, -1.0))
    bias = _extreme(logit_effects(model, ids, experts.down_bias[expert][None]), k, 1.0)
    data = {
        **_named(model, ids, "raised", ("neuron", "rank"), raised),
        **_named(model, ids, "lowered", ("neuron", "rank"), lowered),
        **_named(model, ids, "bias", ("rank",), [bias]),
        "norm": (("neuron",), columns.norm(dim=1).double().cpu().numpy()),
    }
    attrs = {"layer": layer, "expert": expert, "n_tokens": len(ids)}
    dataset = xr.Dataset(data, {"neuron": neuron_ids, "rank": np.arange(k)}, attrs)
    return with_units(dataset, "logits", raised="token id", lowered="token id", bias="token id", norm="activation")


def _whole(matrices, expert: int, dtype: torch.dtype) -> Tensor:
    """One expert's matrix (out in), including the change of an adapter if it has one."""
    if not isinstance(matrices, Adapted):
        return dense(matrices, expert, dtype).to(dtype)
    change = matrices.b[expert].to(dtype) @ matrices.a[expert].to(dtype)
    return dense(plain(matrices), expert, dtype).to(dtype) + matrices.scale * change


def _extreme(logits: Tensor, k: int, sign: float) -> tuple[Tensor, Tensor]:
    """The k largest (sign 1) or smallest (-1) logits of each column and their indices (column rank)."""
    top = (sign * logits).topk(k, dim=0)
    return sign * top.values.T, top.indices.T


def _named(model: Model, ids: Tensor, name: str, dims: tuple[str, ...], extremes: list[tuple[Tensor, Tensor]]) -> dict:
    values, indices = (torch.cat(part).cpu() for part in zip(*extremes))
    token = ids[indices].numpy()
    data = {name: token, f"{name}_text": token_texts(model, token), f"{name}_logit": values.double().numpy()}
    return {key: (dims, value if len(dims) == 2 else value[0]) for key, value in data.items()}
