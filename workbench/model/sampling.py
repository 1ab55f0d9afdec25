"""Sampling tokens from logits."""

import torch
from torch import Tensor

from workbench.model.kernels.noise import gumbel


def choose(logits: Tensor, temperature: float, top_p: float, seed: int, position: int) -> int:
    """The token id at a position: sampled from the smallest set of tokens with mass `top_p`.

    It is the argmax of logits / temperature + Gumbel noise in fp64, the first one of equals. The noise depends on seed,
    position and token alone, so a run can be continued anywhere, and a text's tokens do not depend on the texts beside
    it. If the temperature is 0 or too small to divide by, the token is the first of the most likely ones.

    Args:
        logits: of each token of the vocabulary; finite or -inf.
        temperature: at least 0.
        top_p: above 0 and at most 1; 1 samples from all tokens.
        seed: any whole number.
        position: of the sampled token in the whole text.

    Returns:
        The token id.

    >>> [choose(torch.tensor([0.0, 1.0, 1.0]), 0.7, 1.0, seed=0, position=i) for i in range(100, 108)]
    [2, 2, 2, 0, 2, 2, 0, 2]
    """
    if temperature == 0:
        return int(logits.argmax())
    logits = logits.detach().to("cpu", torch.float64)
    scaled = logits / temperature
    if not scaled.amax().isfinite():
        return int(logits.argmax())
    if top_p < 1:
        p, token_ids = scaled.softmax(-1).sort(descending=True, stable=True)
        enough = int((p.cumsum(0) - p < top_p).sum())
        scaled[token_ids[enough:]] = -torch.inf
    return int((scaled + gumbel(seed, position, len(scaled))).argmax())
