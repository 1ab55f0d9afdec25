"""Gumbel noise for sampling tokens: each number depends on a seed, a position and a token alone.

The argmax of logits / temperature + noise is a sample from softmax(logits / temperature) (Gumbel-max trick, Maddison et
al. 2014). Because the generator is counter-based, a token can be sampled without the numbers of earlier tokens, and
from some of the logits alone. All operations are defined by IEEE 754, so every processor draws the same token.
"""

import numpy as np
import torch
from torch import Tensor

from workbench.model.kernels import native

# The second word of the generator's key, "Gumbel": a `numpy.random.Philox` that a user makes of the same seed gives
# other numbers
KEY = 0x6C65626D7547
WORD = 2**64


def gumbel(seed: int, position: int, n: int) -> Tensor:
    """n numbers in fp64 that follow the standard Gumbel distribution; number i is that of token i.

    With r the i-th number of 64 bits of Philox4x64-10 (Salmon et al. 2011) with the key (seed mod 2^64, KEY) and the
    counter (0, position, 0, 0), it is -log(-log u), where u = (floor(r / 2^12) + 1/2) / 2^52.

    >>> bool((gumbel(7, 100, 5) == gumbel(7, 100, 9)[:5]).all())
    True
    """
    if native.isa() is not None:
        return native.noise(seed % WORD, position, n)
    return torch.from_numpy(-logarithm(-logarithm(uniform(seed, position, n))))


def uniform(seed: int, position: int, n: int) -> np.ndarray:
    """n numbers between 0 and 1, uniformly distributed, neither 0 nor 1; see `gumbel`."""
    key, counter = np.array([seed % WORD, KEY], np.uint64), np.array([0, position, 0, 0], np.uint64)
    raw = np.random.Philox(key=key, counter=counter).random_raw(n)
    return ((raw >> np.uint64(12)) + 0.5) * 2.0**-52


def logarithm(x: np.ndarray) -> np.ndarray:
    """The logarithm of normal fp64 numbers above 0, by the operations of `positive_logarithm` in native.c."""
    m, e = np.frexp(x)  # m from 1/2 up to 1
    big = 2 * m > 1.4142135623730951
    m, e = np.where(big, m, 2 * m), (e - np.where(big, 0, 1)).astype(np.float64)
    t = (m - 1) / (m + 1)
    s, total = t * t, np.full_like(t, 1 / 19)
    for i in range(17, 0, -2):
        total = total * s + 1 / i
    return e * 0.6931471805599453 + 2 * t * total
