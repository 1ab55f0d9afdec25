"""Sampling probabilities from logits."""

import torch
from torch import Tensor


def probabilities(logits: Tensor, temperature: float) -> Tensor:
    """softmax(logits / temperature) over the last axis.

    If the temperature is 0 or too small to divide by, the first of the most likely tokens gets probability 1. The
    probabilities are finite if the logits are finite or -inf.

    >>> probabilities(torch.tensor([1.0, 3.0, 3.0]), 1e-310)
    tensor([0., 1., 0.])
    """
    scaled = logits / temperature
    divisible = scaled.amax(-1, keepdim=True).isfinite()
    most_likely = torch.zeros_like(logits).scatter(-1, logits.argmax(-1, keepdim=True), 1)
    return torch.where(divisible, scaled.softmax(-1), most_likely)
