"""Can backtracking be induced and suppressed? Steering by the mean difference of wrong and right steps, by dose.

Control directions of the same norm: the other family's difference, unrelated differences, and random directions.
"""

from collections.abc import Sequence
from functools import cache

import numpy as np
import torch
import xarray as xr

import workbench as wb
from workbench.figures import Figure, beside, line
from workbench.studies.about_to_backtrack import FAMILIES, LENGTH, step_traces
from workbench.studies.wrong_steps import wait_probabilities, wrong_step_pairs

N, SEED, RANDOM = 14, "dosed", 8
SCALES = np.arange(-4, 5)
DIRECTIONS = ("wrong minus right", "the other family's", "unrelated", "random")


def steered_layer(model: wb.Model) -> int:
    """The last layer but one: after the last, a direction is little more than the logits of "." and ","."""
    return model.config.n_layers - 2


@cache
def vector(model: wb.Model, family: str, layer: int | None = None) -> xr.DataArray:
    """Mean residual stream at the last token of wrong minus right steps, on problems other than the steered ones."""
    layer = steered_layer(model) if layer is None else layer
    positions = [(trace, len(trace) - 3) for trace in step_traces(model, family)]
    return wb.steering.steering_vector(positions[1::2], positions[::2], layer)


@cache
def unrelated(model: wb.Model, family: str) -> list[xr.DataArray]:
    """Control differences among right steps: late minus early positions, and high minus low token ids."""
    layer = steered_layer(model)
    positions = [(trace, len(trace) - 3) for trace in step_traces(model, family)[::2]]
    orders = [sorted(positions, key=lambda at: (at[1], at[0].id))]
    orders += [sorted(positions, key=lambda at: (at[0].tokens[at[1]], at[0].id))]
    half = len(positions) // 2
    return [wb.steering.steering_vector(order[half:], order[:half], layer) for order in orders]


def dose(model: wb.Model, ids: list[int], vectors: np.ndarray) -> np.ndarray:
    """Probability of ". Wait" (direction scale) with SCALES times each vector (direction d_model) at the last token."""
    offsets = torch.as_tensor(vectors[:, None] * SCALES[:, None], dtype=torch.float32).flatten(0, 1)[:, None]
    point = f"blocks.{steered_layer(model)}.hook_resid_post"
    p = wait_probabilities(model, ids, len(offsets), point, lambda x: x + offsets)
    return p.reshape(len(vectors), len(SCALES))


@cache
def measure(model: wb.Model, n: int = N, seed: str = SEED):
    """Probability of ". Wait" (family text problem direction scale); text: after a right step, after a wrong one."""
    probability = np.zeros((len(FAMILIES), 2, n, len(DIRECTIONS), len(SCALES)))
    for f, family in enumerate(FAMILIES):
        own, rng = vector(model, family), np.random.default_rng(0)
        others = [vector(model, FAMILIES[1 - f]), *unrelated(model, family)]
        random = rng.normal(size=(RANDOM, len(own)))
        vectors = np.stack([np.asarray(v, float) for v in (own, *others, *random)])
        vectors *= float(own.attrs["norm"]) / np.linalg.norm(vectors, axis=1, keepdims=True)
        for i, pair in enumerate(wrong_step_pairs(family, n, LENGTH, seed)):
            for t, ids in enumerate((pair.right, pair.wrong)):
                p = dose(model, ids, vectors)
                probability[f, t, i] = p[0], p[1], p[2:4].mean(0), p[4:].mean(0)
    return probability


def draw(model: wb.Model) -> tuple[Figure, Sequence[wb.Trace]]:
    """The figure, and the traces behind it."""
    mean = wb.statistics.mean_interval(np.moveaxis(measure(model), 2, 0))
    figures = []
    for f, family in enumerate(FAMILIES):
        for t, text in enumerate(("after a right step", "after a wrong step")):
            value, low, high = (getattr(mean, bound)[f, t] for bound in ("value", "low", "high"))
            scale = ("scale", SCALES, {"long_name": "multiple of the difference"})
            curve = xr.DataArray(value, {"direction": list(DIRECTIONS), "scale": scale}, ("direction", "scale"))
            curve.attrs["long_name"] = "p of “. Wait”"
            figures.append(line(curve, by="direction", low=low, high=high, title=f"{family}, {text}"))
    sheet, fitted = beside(*figures), len(step_traces(model, FAMILIES[0])) // 2
    figure = Figure(
        panels=sheet.panels,
        columns=2,
        width=wb.figures.WIDTHS["page"],
        height=130,
        title="One direction makes pocket take back right steps and keep wrong ones",
        note=f"n = {N} held-out problems per family, none of them among the {fitted} that the difference of means was "
        f"computed on; it is added at the last token of the step, after layer {steered_layer(model)}; all directions "
        "have the same norm. Unrelated: mean of two differences, late minus early positions and high minus low token "
        f"ids; random: mean of {RANDOM}. Bands: 95 % intervals over problems.",
    )
    return figure, [trace for family in FAMILIES for trace in step_traces(model, family)]
