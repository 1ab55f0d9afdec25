"""Routers and experts from their weights: which tokens an expert is chosen for, and which it makes likelier.

An expert's number means nothing outside its layer.
"""

from collections.abc import Sequence

import numpy as np
import torch
import xarray as xr
from torch import Tensor
from tqdm.auto import tqdm

from workbench.checks import resolve_index, resolve_layer
from workbench.circuits.vocabulary import NUMBERS, chosen, reading, texts, wide, writing
from workbench.model.kernels.lora import Adapted
from workbench.model.kernels.packed import dense
from workbench.model.model import Model


@torch.inference_mode()
def router_tokens(model: Model, layer: int, *, k: int = 10, tokens: Sequence[int] | None = None) -> xr.Dataset:
    """Which tokens each expert is preferred for, by the router's rows on embeddings alone, without any context.

    `token`, `text` and `preference` (expert rank): the tokens for which the expert's logit, bias included, is furthest
    above the mean of all experts of the layer (to add the same to all changes no route). `share` (expert): of how many
    tokens it would be one of the experts that run; the sum is their number. `direction` (expert d_model): what in the
    residual stream leads to it, the router's row with the norm's scale in it, less the mean of all rows. In the first
    layer only attention is missing; above, it is what is left of the token itself.

    >>> found = wb.circuits.router_tokens(model, 0, k=3)
    >>> found["token"].dims, round(float(found["share"].sum()), 6) == model.config.n_active
    (('expert', 'rank'), True)

    Raises SelectionError if there is no such layer, PromptError for an id that the model does not have.
    """
    c = model.config
    layer, ids = resolve_layer(layer, c.n_layers), chosen(model, tokens)
    block = model.weights.blocks[layer]
    rows = block.whole("w_router").to(wide(model))
    logits = reading(model, ids, block.ln2, rows) + block.b_router.to(rows.dtype)  # token expert
    ran = torch.zeros(c.n_experts, dtype=torch.float64, device=logits.device)
    ran += torch.bincount(logits.topk(c.n_active, -1).indices.flatten(), minlength=c.n_experts)
    best = (logits - logits.mean(1, keepdim=True)).topk(min(k, len(ids)), dim=0)
    token = ids[best.indices.T.cpu()].numpy()
    direction = (rows - rows.mean(0)) * block.ln2.to(rows.dtype)
    data = {
        "token": (("expert", "rank"), token),
        "text": (("expert", "rank"), texts(model, token)),
        "preference": (("expert", "rank"), best.values.T.double().cpu().numpy()),
        "share": (("expert",), (ran / len(ids)).cpu().numpy()),
        "direction": (("expert", "d_model"), direction.double().cpu().numpy()),
    }
    coords = {"expert": np.arange(c.n_experts), "rank": np.arange(token.shape[1])}
    found = xr.Dataset(data, coords, {"layer": layer, "n_tokens": len(ids)})
    found["preference"].attrs["units"], found["share"].attrs["units"] = "logits", "share of tokens"
    return found


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
    """Which tokens an expert makes likelier: each of its neurons, and its bias, straight through the unembedding.

    For each neuron, `raised`, `raised_text` and `raised_logit` (neuron rank) are the tokens that it raises most when
    its activation is 1, `lowered…` those that it lowers most: gpt-oss's SwiGLU, (up + 1) · gate · sigmoid(1.702 gate),
    may have either sign. `norm` (neuron) is the length of what it writes. `bias`, `bias_text`, `bias_logit` (rank) is
    what the expert writes whenever it runs. Logits are above the mean over the vocabulary, before the expert's weight
    and the division by the size of the stream. `neurons` are all of the expert unless given.

    >>> found = wb.circuits.expert_logit_effects(model, 5, 0, neurons=[0, 1], k=3)
    >>> found["raised"].dims, found["bias_text"].shape, bool((found["raised_logit"] >= found["lowered_logit"]).all())
    (('neuron', 'rank'), (3,), True)

    Raises SelectionError if there is no such layer, expert or neuron, PromptError for an id that the model does not
    have.
    """
    c = model.config
    layer, ids = resolve_layer(layer, c.n_layers), chosen(model, tokens)
    expert = resolve_index("expert", expert, c.n_experts)
    every = [resolve_index("neuron", n, c.d_mlp) for n in (range(c.d_mlp) if neurons is None else neurons)]
    experts, k = model.weights.blocks[layer].experts, min(k, len(ids))
    columns = _whole(experts.down, expert, wide(model))[:, every].T  # neuron d_model
    raised, lowered = [], []
    pieces = columns.split(max(1, NUMBERS // len(ids)))
    for part in tqdm(pieces, desc="neurons", leave=False, disable=None, delay=1):
        logits = writing(model, ids, part)  # token neuron
        raised.append(_extreme(logits, k, 1.0))
        lowered.append(_extreme(logits, k, -1.0))
    bias = _extreme(writing(model, ids, experts.down_bias[expert][None]), k, 1.0)
    data = {
        **_named(model, ids, "raised", ("neuron", "rank"), raised),
        **_named(model, ids, "lowered", ("neuron", "rank"), lowered),
        **_named(model, ids, "bias", ("rank",), [bias]),
        "norm": (("neuron",), columns.norm(dim=1).double().cpu().numpy()),
    }
    attrs = {"units": "logits", "layer": layer, "expert": expert, "n_tokens": len(ids)}
    return xr.Dataset(data, {"neuron": every, "rank": np.arange(k)}, attrs)


def _whole(matrices, expert: int, dtype: torch.dtype) -> Tensor:
    """One expert's matrix [out, in], with an adapter's change where there is one."""
    if not isinstance(matrices, Adapted):
        return dense(matrices, expert, dtype).to(dtype)
    change = matrices.b[expert].to(dtype) @ matrices.a[expert].to(dtype)
    return dense(matrices.matrix, expert, dtype).to(dtype) + matrices.scale * change


def _extreme(logits: Tensor, k: int, sign: float) -> tuple[Tensor, Tensor]:
    """The k largest or smallest logits of each column, and where (column rank)."""
    found = (sign * logits).topk(k, dim=0)
    return sign * found.values.T, found.indices.T


def _named(model: Model, ids: Tensor, name: str, dims: tuple[str, ...], found: list[tuple[Tensor, Tensor]]) -> dict:
    values, places = (torch.cat(part).cpu() for part in zip(*found))
    token = ids[places].numpy()
    data = {name: token, f"{name}_text": texts(model, token), f"{name}_logit": values.double().numpy()}
    return {key: (dims, value if len(dims) == 2 else value[0]) for key, value in data.items()}
