"""From logits to the probabilities that a token is drawn by."""

import torch
from torch import Tensor


def probabilities(logits: Tensor, temperature: float) -> Tensor:
    """softmax(logits / temperature) over the last axis. Where a temperature is too small to divide by, 0 included, the
    first of the likeliest tokens has all of the probability. Of finite logits (or minus infinity) it is finite.

    >>> probabilities(torch.tensor([1.0, 3.0, 3.0]), 1e-310)
    tensor([0., 1., 0.])
    """
    scaled = logits / temperature
    divided = scaled.amax(-1, keepdim=True).isfinite()
    likeliest = torch.zeros_like(logits).scatter(-1, logits.argmax(-1, keepdim=True), 1)
    return torch.where(divided, scaled.softmax(-1), likeliest)
