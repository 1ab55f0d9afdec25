"""Weights between tokens: what reads an embedding, what writes into logits, and the largest entries of such a product.

A matrix of tokens by tokens has 40 billion numbers in gpt-oss. None is ever made: both of its factors are narrow.
"""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from workbench.errors import PromptError
from workbench.model.kernels.rows import rms_norm
from workbench.model.model import Model

NUMBERS = 1 << 24  # of one piece of embeddings, at most: 67 MB in fp32
TILE = 512, 1024  # rows and columns of a product at a time: 2 MB; larger ones took four times as long on a CPU


def wide(model: Model) -> torch.dtype:
    """fp32, or fp64 for a model in fp64."""
    return torch.promote_types(model.dtype, torch.float32)


def chosen(model: Model, tokens: Sequence[int] | None) -> Tensor:
    """The ids in `tokens`, once each; without any, all that have a text (the last rows of gpt-oss's table have none).

    Raises PromptError for an id that the model does not have.
    """
    n = model.config.d_vocab
    if tokens is None:
        return torch.arange(min(n, len(model.tokenizer)) if model.tokenizer else n)
    ids = torch.tensor(sorted({int(token) for token in tokens}), dtype=torch.long)
    if not len(ids) or not 0 <= int(ids[0]) <= int(ids[-1]) < n:
        raise PromptError(f"`tokens` are ids from 0 to {n - 1}, one at least; these are {ids.tolist()[:5]}…")
    return ids


def reading(model: Model, ids: Tensor, norm: Tensor, matrix: Tensor) -> Tensor:
    """What the rows of `matrix` read in the normed embedding of each token (token row)."""
    rows = matrix.to(wide(model)).T
    parts = [
        rms_norm(model.weights.embed[part].to(rows.dtype), norm.to(rows.dtype), model.config.eps) @ rows
        for part in _pieces(model, ids, model.config.d_model)
    ]
    return torch.cat(parts)


def writing(model: Model, ids: Tensor, vectors: Tensor) -> Tensor:
    """What each vector (row d_model) adds to the logit of each token (token row), above the mean of these tokens.

    Straight through final norm and unembedding, before the division by the size of the stream, which is one number for
    a position. What is added to all logits changes no prediction, so it is taken away.
    """
    columns = (vectors.to(wide(model)) * model.weights.ln_final.to(wide(model))).T
    parts = [
        model.weights.unembed[part].to(columns.dtype) @ columns for part in _pieces(model, ids, model.config.d_model)
    ]
    logits = torch.cat(parts)
    return logits - logits.mean(0)


def largest_pairs(left: Tensor, right: Tensor, k: int, desc: str) -> tuple[Tensor, Tensor, Tensor]:
    """The k largest entries of left · rightᵀ: their values, rows and columns, without the whole of the product.

    The longest rows and columns meet first, in tiles that stay in the processor's cache. No entry is larger than the
    length of its row times that of its column, so the rest is left out as soon as that is less than what was found.
    """
    k = min(k, len(left) * len(right))
    (rows, down), (columns, across) = _longest_first(left), _longest_first(right)
    left, right = left[rows], right[columns]
    values = left.new_full((k,), -torch.inf)
    places = torch.zeros(2, k, dtype=torch.long, device=left.device)
    worst = -np.inf
    with tqdm(total=len(left), desc=desc, unit="token", leave=False, disable=None, delay=1) as bar:
        for i in range(0, len(left), TILE[0]):
            if down[i] * across[0] < worst:
                break
            for j in range(0, len(right), TILE[1]):
                if down[i] * across[j] < worst:
                    break
                product = left[i : i + TILE[0]] @ right[j : j + TILE[1]].T
                if float(product.max()) <= worst:
                    continue
                found = product.flatten().topk(min(k, product.numel()))
                where = torch.stack((i + found.indices // product.shape[1], j + found.indices % product.shape[1]))
                values, best = torch.cat((values, found.values)).topk(k)
                places = torch.cat((places, where), 1)[:, best]
                worst = float(values[-1])
            bar.update(min(TILE[0], len(left) - i))
    return values, rows[places[0]], columns[places[1]]


def _longest_first(vectors: Tensor) -> tuple[Tensor, list[float]]:
    """The order of the vectors by length, and their lengths in it; rounding must not cut off an entry."""
    length = vectors.norm(dim=1)
    order = length.argsort(descending=True)
    return order, (length[order] * (1 + 1e-5)).tolist()


def texts(model: Model, ids: np.ndarray) -> np.ndarray:
    """Each token as it is written; `<7>` without a tokenizer."""
    unique, place = np.unique(ids, return_inverse=True)
    said: Callable[[int], str] = lambda n: model.tokenizer.str_tokens([n])[0] if model.tokenizer else f"<{n}>"  # noqa: E731
    return np.array([said(int(n)) for n in unique], object)[place].reshape(ids.shape)


def _pieces(model: Model, ids: Tensor, width: int) -> Iterator[Tensor]:
    """The ids on the model's device, as many at a time as fit."""
    yield from ids.to(model.device).split(max(1, NUMBERS // width))
