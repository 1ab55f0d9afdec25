"""Steering by what wrong and right steps differ by, beside directions that should not matter."""

from functools import cache

import numpy as np
import torch
import xarray as xr
from _mistakes import chances, pairs
from about_to_backtrack import FAMILIES, LENGTH, read

import workbench as wb

LAYER, N, SEED, RANDOM = 4, 14, "dosed", 8
SCALES = np.arange(-4, 5)
DIRECTIONS = ("wrong less right", "the other family's", "unrelated", "random")


@cache
def vector(family: str, layer: int = LAYER) -> xr.DataArray:
    """The mean stream at the last token of wrong steps less that of right ones, on other problems than are steered."""
    at = [(trace, len(trace) - 3) for trace in read(family)]
    return wb.steering_vector(at[1::2], at[::2], layer)


@cache
def unrelated(family: str, layer: int = LAYER) -> list[xr.DataArray]:
    """Differences of right steps that should not matter: late less early in the text, high less low token ids."""
    at = [(trace, len(trace) - 3) for trace in read(family)[::2]]
    kinds = [sorted(at, key=lambda place: (place[1], place[0].id))]
    kinds += [sorted(at, key=lambda place: (place[0].tokens[place[1]], place[0].id))]
    half = len(at) // 2
    return [wb.steering_vector(kind[half:], kind[:half], layer) for kind in kinds]


def dose(ids: list[int], vectors: np.ndarray, layer: int = LAYER) -> np.ndarray:
    """How likely ". Wait" is when each vector (direction d_model) is added at the last token, by SCALES."""
    moved = torch.as_tensor(vectors[:, None] * SCALES[:, None], dtype=torch.float32).flatten(0, 1)[:, None]
    found = chances(ids, len(moved), f"blocks.{layer}.hook_resid_post", lambda x: x + moved)
    return found.reshape(len(vectors), len(SCALES))


@cache
def measure(layer: int = LAYER, n: int = N, seed: str = SEED):
    """How likely ". Wait" is (family text problem direction scale); text: after a right step, after a wrong one."""
    found = np.zeros((len(FAMILIES), 2, n, len(DIRECTIONS), len(SCALES)))
    for f, family in enumerate(FAMILIES):
        own, dice = vector(family, layer), np.random.default_rng(0)
        others = [vector(FAMILIES[1 - f], layer), *unrelated(family, layer)]
        chance = dice.normal(size=(RANDOM, len(own)))
        every = np.stack([np.asarray(v, float) for v in (own, *others, *chance)])
        every *= float(own.attrs["norm"]) / np.linalg.norm(every, axis=1, keepdims=True)
        for i, pair in enumerate(pairs(family, n, LENGTH, seed)):
            for t, ids in enumerate((pair.right, pair.wrong)):
                p = dose(ids, every, layer)
                found[f, t, i] = p[0], p[1], p[2:4].mean(0), p[4:].mean(0)
    return found
