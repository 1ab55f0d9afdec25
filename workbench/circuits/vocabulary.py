"""Weights between tokens: what reads an embedding, what writes into logits, and the largest entries of such a product.

A matrix of tokens by tokens has 40 billion numbers in gpt-oss. None is ever made: both of its factors are narrow.
"""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from workbench.errors import NotRecorded, PromptError
from workbench.runner.gpt_oss import rms_norm
from workbench.runner.model import Model

NUMBERS = 1 << 24  # of one piece of a product, at most: 67 MB in fp32


def wide(model: Model) -> torch.dtype:
    """fp32, or fp64 for a model in fp64."""
    return torch.promote_types(model.dtype, torch.float32)


def in_range(number: int, n: int, what: str) -> int:
    """`number`, counted from the end if it is negative. Raises NotRecorded if there is none."""
    if not -n <= number < n:
        raise NotRecorded(f"there is no {what} {number}; this model has 0 to {n - 1}")
    return number % n


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

    The longest rows come first. No row can reach more than its length times the longest column, so the rest is left
    out as soon as that is less than what was found.
    """
    k = min(k, len(left) * len(right))
    length = left.norm(dim=1)
    order = length.argsort(descending=True)
    reach = length[order] * right.norm(dim=1).max() * (1 + 1e-5)  # rounding must not cut off an entry
    values = left.new_full((k,), -torch.inf)
    places = torch.zeros(2, k, dtype=torch.long, device=left.device)
    step = max(1, NUMBERS // len(right))
    with tqdm(total=len(left), desc=desc, unit="token", leave=False, disable=None, delay=1) as bar:
        for start in range(0, len(left), step):
            if float(reach[start]) < float(values[-1]):
                break
            rows = order[start : start + step]
            product = left[rows] @ right.T
            row, column = (product > values[-1]).nonzero(as_tuple=True)
            if len(row) > 4 * k:  # most often in the first piece
                row, column = _of_flat(product.flatten().topk(min(k, product.numel())).indices, len(right))
            values, best = torch.cat((values, product[row, column])).topk(k)
            places = torch.cat((places, torch.stack((rows[row], column))), 1)[:, best]
            bar.update(len(rows))
    return values, places[0], places[1]


def texts(model: Model, ids: np.ndarray) -> np.ndarray:
    """Each token as it is written; `<7>` without a tokenizer."""
    unique, place = np.unique(ids, return_inverse=True)
    said: Callable[[int], str] = lambda n: model.tokenizer.pieces([n])[0] if model.tokenizer else f"<{n}>"  # noqa: E731
    return np.array([said(int(n)) for n in unique], object)[place].reshape(ids.shape)


def _of_flat(flat: Tensor, width: int) -> tuple[Tensor, Tensor]:
    return flat // width, flat % width


def _pieces(model: Model, ids: Tensor, width: int) -> Iterator[Tensor]:
    """The ids on the model's device, as many at a time as fit."""
    yield from ids.to(model.device).split(max(1, NUMBERS // width))
