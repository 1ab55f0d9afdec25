"""Weights in terms of tokens: products with the embeddings, effects on the logits, and the largest token pairs.

A matrix of tokens by tokens has 40 billion entries in gpt-oss. It is never formed, because both of its factors are
narrow.
"""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from workbench.checks import check_items, check_whole
from workbench.errors import PromptError
from workbench.model.kernels.rows import rms_norm
from workbench.model.model import Model
from workbench.progress import progress_bar

MAX_CHUNK_ELEMENTS = 1 << 24  # of one chunk of embeddings: 67 MB in fp32
TILE = 512, 1024  # rows and columns of a product at a time: 2 MB; larger tiles took four times as long on a CPU


def compute_dtype(model: Model) -> torch.dtype:
    """fp32; fp64 for a model in fp64."""
    return torch.promote_types(model.dtype, torch.float32)


def select_tokens(model: Model, tokens: Sequence[int] | None) -> Tensor:
    """The distinct token ids in `tokens`. None selects all that have a text.

    The last rows of gpt-oss's embedding have no text.

    Raises PromptError for an id that the model does not have.
    """
    n = model.config.d_vocab
    if tokens is None:
        return torch.arange(min(n, len(model.tokenizer)) if model.tokenizer else n)
    ids = torch.tensor(sorted({check_whole("a token id", token) for token in check_items("tokens", tokens, low=0)}))
    if not len(ids) or not 0 <= int(ids[0]) <= int(ids[-1]) < n:
        raise PromptError(f"tokens needs at least one id, each between 0 and {n - 1}, got {ids.tolist()[:5]}…")
    return ids


def read_embeddings(model: Model, ids: Tensor, norm: Tensor, matrix: Tensor) -> Tensor:
    """The product of `matrix` with the normalized embedding of each token (token row)."""
    rows = matrix.to(compute_dtype(model)).T
    parts = [
        rms_norm(model.weights.embed[part].to(rows.dtype), norm.to(rows.dtype), model.config.eps) @ rows
        for part in _chunks(model, ids, model.config.d_model)
    ]
    return torch.cat(parts)


def logit_effects(model: Model, ids: Tensor, vectors: Tensor) -> Tensor:
    """What each vector (row d_model) adds to the logit of each token (token row), minus the mean over tokens.

    This is the direct effect, through the final norm's scale and the unembedding. The division by the norm of the
    stream (one number per position) is left out. The mean is subtracted because adding the same value to all logits
    changes no prediction.
    """
    columns = (vectors.to(compute_dtype(model)) * model.weights.ln_final.to(compute_dtype(model))).T
    parts = [
        model.weights.unembed[part].to(columns.dtype) @ columns for part in _chunks(model, ids, model.config.d_model)
    ]
    logits = torch.cat(parts)
    return logits - logits.mean(0)


def largest_pairs(row_vectors: Tensor, column_vectors: Tensor, k: int, desc: str) -> tuple[Tensor, Tensor, Tensor]:
    """The k largest entries of row_vectors · column_vectorsᵀ: values, rows and columns, without the full product.

    The longest rows and columns are multiplied first, in tiles that fit the processor's cache. No entry is larger than
    the product of the lengths of its row and column, so the rest is skipped once this bound is below the k-th largest
    entry.
    """
    k = min(k, len(row_vectors) * len(column_vectors))
    (rows, row_lengths), (columns, column_lengths) = _longest_first(row_vectors), _longest_first(column_vectors)
    row_vectors, column_vectors = row_vectors[rows], column_vectors[columns]
    values = row_vectors.new_full((k,), -torch.inf)
    places = torch.zeros(2, k, dtype=torch.long, device=row_vectors.device)
    kth_value = -np.inf
    with progress_bar(total=len(row_vectors), desc=desc, unit="token") as bar:
        for i in range(0, len(row_vectors), TILE[0]):
            if row_lengths[i] * column_lengths[0] < kth_value:
                break
            for j in range(0, len(column_vectors), TILE[1]):
                if row_lengths[i] * column_lengths[j] < kth_value:
                    break
                product = row_vectors[i : i + TILE[0]] @ column_vectors[j : j + TILE[1]].T
                if float(product.max()) <= kth_value:
                    continue
                top = product.flatten().topk(min(k, product.numel()))
                indices = torch.stack((i + top.indices // product.shape[1], j + top.indices % product.shape[1]))
                values, best = torch.cat((values, top.values)).topk(k)
                places = torch.cat((places, indices), 1)[:, best]
                kth_value = float(values[-1])
            bar.update(min(TILE[0], len(row_vectors) - i))
    return values, rows[places[0]], columns[places[1]]


def _longest_first(vectors: Tensor) -> tuple[Tensor, list[float]]:
    """The order of vectors by length, and the lengths in that order, rounded up so that no entry is cut off."""
    length = vectors.norm(dim=1)
    order = length.argsort(descending=True)
    return order, (length[order] * (1 + 1e-5)).tolist()


def token_texts(model: Model, ids: np.ndarray) -> np.ndarray:
    """The text of each token; `<7>` without a tokenizer."""
    unique, inverse = np.unique(ids, return_inverse=True)
    text_of: Callable[[int], str] = lambda n: model.tokenizer.str_tokens([n])[0] if model.tokenizer else f"<{n}>"  # noqa: E731
    return np.array([text_of(int(n)) for n in unique], object)[inverse].reshape(ids.shape)


def _chunks(model: Model, ids: Tensor, width: int) -> Iterator[Tensor]:
    """The ids on the model's device, in chunks that fit into memory."""
    yield from ids.to(model.device).split(max(1, MAX_CHUNK_ELEMENTS // width))
