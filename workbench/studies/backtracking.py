"""Can it be made to take a step back, and kept from it? More and more of what wrong and right steps differ by.

Steering by what wrong and right steps differ by, beside directions that should not matter.
"""

from collections.abc import Sequence
from functools import cache

import numpy as np
import torch
import xarray as xr

import workbench as wb
from workbench.figures import Figure, beside, line
from workbench.studies.about_to_backtrack import FAMILIES, LENGTH, read
from workbench.studies.wrong_steps import chances, pairs

LAYER, N, SEED, RANDOM = 4, 14, "dosed", 8
SCALES = np.arange(-4, 5)
DIRECTIONS = ("wrong less right", "the other family's", "unrelated", "random")


@cache
def vector(model: wb.Model, family: str, layer: int = LAYER) -> xr.DataArray:
    """The mean stream at the last token of wrong steps less that of right ones, on other problems than are steered."""
    at = [(trace, len(trace) - 3) for trace in read(model, family)]
    return wb.steering.steering_vector(at[1::2], at[::2], layer)


@cache
def unrelated(model: wb.Model, family: str, layer: int = LAYER) -> list[xr.DataArray]:
    """Differences of right steps that should not matter: late less early in the text, high less low token ids."""
    at = [(trace, len(trace) - 3) for trace in read(model, family)[::2]]
    kinds = [sorted(at, key=lambda place: (place[1], place[0].id))]
    kinds += [sorted(at, key=lambda place: (place[0].tokens[place[1]], place[0].id))]
    half = len(at) // 2
    return [wb.steering.steering_vector(kind[half:], kind[:half], layer) for kind in kinds]


def dose(model: wb.Model, ids: list[int], vectors: np.ndarray, layer: int = LAYER) -> np.ndarray:
    """How likely ". Wait" is when each vector (direction d_model) is added at the last token, by SCALES."""
    moved = torch.as_tensor(vectors[:, None] * SCALES[:, None], dtype=torch.float32).flatten(0, 1)[:, None]
    found = chances(model, ids, len(moved), f"blocks.{layer}.hook_resid_post", lambda x: x + moved)
    return found.reshape(len(vectors), len(SCALES))


@cache
def measure(model: wb.Model, layer: int = LAYER, n: int = N, seed: str = SEED):
    """How likely ". Wait" is (family text problem direction scale); text: after a right step, after a wrong one."""
    found = np.zeros((len(FAMILIES), 2, n, len(DIRECTIONS), len(SCALES)))
    for f, family in enumerate(FAMILIES):
        own, dice = vector(model, family, layer), np.random.default_rng(0)
        others = [vector(model, FAMILIES[1 - f], layer), *unrelated(model, family, layer)]
        chance = dice.normal(size=(RANDOM, len(own)))
        every = np.stack([np.asarray(v, float) for v in (own, *others, *chance)])
        every *= float(own.attrs["norm"]) / np.linalg.norm(every, axis=1, keepdims=True)
        for i, pair in enumerate(pairs(family, n, LENGTH, seed)):
            for t, ids in enumerate((pair.right, pair.wrong)):
                p = dose(model, ids, every, layer)
                found[f, t, i] = p[0], p[1], p[2:4].mean(0), p[4:].mean(0)
    return found


def draw(model: wb.Model) -> tuple[Figure, Sequence[wb.Trace]]:
    """The figure, and the traces behind it."""
    mean = wb.statistics.mean_interval(np.moveaxis(measure(model), 2, 0))
    figures = []
    for f, family in enumerate(FAMILIES):
        for t, text in enumerate(("after a right step", "after a wrong step")):
            value, low, high = (getattr(mean, end)[f, t] for end in ("value", "low", "high"))
            scale = ("scale", SCALES, {"long_name": "times the difference"})
            curve = xr.DataArray(value, {"direction": list(DIRECTIONS), "scale": scale}, ("direction", "scale"))
            curve.attrs["long_name"] = "p of “. Wait”"
            figures.append(line(curve, by="direction", low=low, high=high, title=f"{family}, {text}"))
    sheet, fitted = beside(*figures), len(read(model, FAMILIES[0])) // 2
    figure = Figure(
        panels=sheet.panels,
        columns=2,
        width=wb.figures.WIDTHS["page"],
        height=130,
        title="One direction makes pocket take back what is right, and keep what is wrong",
        note=f"n = {N} held-out problems a family, others than the {fitted} whose difference of "
        f"means it is; added at the last token of the step, after layer {LAYER}; all directions of one length. "
        f"Unrelated: mean of late less early and of high less low token ids; random: mean of {RANDOM}. Bands: 95 % "
        "intervals over problems.",
    )
    return figure, [trace for family in FAMILIES for trace in read(model, family)]
