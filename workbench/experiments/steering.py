"""Steering: the direction in which two sets of places differ, and what adding more and more of it does to a run."""

import os
from collections.abc import Callable, Sequence

import numpy as np
import xarray as xr
from tqdm.auto import tqdm

from workbench import hooks
from workbench.edits.library import steer
from workbench.errors import EditError, HookNameError, PromptError
from workbench.experiments.attention_knockout import Places, positions_of
from workbench.experiments.checkpoint import SweepCheckpoint, model_inputs
from workbench.model.model import Model, Prompt
from workbench.traces import Trace

Metric = Callable[[Trace], float]


def steering_vector(
    positive: Sequence[tuple[Trace, Places]],
    negative: Sequence[tuple[Trace, Places]],
    layer: int,
    *,
    site: str = "resid_post",
) -> xr.DataArray:
    """The mean of the residual stream at `positive` places less that at `negative` (d_model), in the units of the stream.

    Each place is a trace and positions in it: a step, a message, a slice, numbers, or several of these; every position
    counts once. `attrs` tell where it is to be added (`point`), its `norm`, the mean norm of the stream at all these
    places (`stream_norm`), and how many positions (`n_positive`, `n_negative`) and traces (`n_traces`) it comes from. A
    direction found in places that differ by a token alone is that token: compare with places that share it.

    >>> chain = wb.steps(trace)
    >>> vector = wb.steering.steering_vector([(trace, chain[1:])], [(trace, chain[0])], layer=2)
    >>> vector.dims, vector.attrs["point"], bool(np.isclose(vector.attrs["norm"], np.linalg.norm(vector)))
    (('d_model',), 'blocks.2.hook_resid_post', True)

    Raises NotRecorded for a trace without residual streams (record="residuals"), SelectionError for layers and
    positions that it does not have, HookNameError for a site that is not d_model wide, PromptError if there is no
    place. (Difference of means: arXiv 2312.06681; of steps in chains of thought: arXiv 2506.18167)
    """
    point = hooks.full_name(site)
    if "*" not in point or hooks.axes(point) != ("pos", "d_model"):
        raise HookNameError(
            f"{site!r} is no stream of d_model numbers in every layer; resid_pre, resid_mid, resid_post are"
        )
    if not positive or not negative:
        raise PromptError("a difference needs places on both sides: (trace, positions) in `positive` and in `negative`")
    here = hooks.at_layer(point, layer)
    rows = [
        np.concatenate([trace[here][positions_of(places, len(trace))] for trace, places in side], dtype=np.float64)
        for side in (positive, negative)
    ]
    vector = rows[0].mean(0) - rows[1].mean(0)
    attrs = {
        "long_name": f"mean {site} of these places less those",
        "point": here,
        "norm": float(np.linalg.norm(vector)),
        "stream_norm": float(np.linalg.norm(np.concatenate(rows), axis=1).mean()),
        "n_positive": len(rows[0]),
        "n_negative": len(rows[1]),
        "n_traces": len({trace.id for trace, _ in [*positive, *negative]}),
    }
    return xr.DataArray(vector, {"d_model": np.arange(len(vector))}, ("d_model",), attrs=attrs)


def steering_effect(
    model: Model,
    prompt: Prompt,
    vector: xr.DataArray,
    metric: Metric,
    *,
    control_vectors: Sequence[xr.DataArray],
    scales: Sequence[float] = (-2.0, -1.0, 0.0, 1.0, 2.0),
    max_tokens: int = 0,
    positions: int | slice | Sequence[int] | None = None,
    n_random_controls: int = 8,
    record: str = "",
    seed: int = 0,
    resume: str | os.PathLike[str] | None = None,
) -> xr.Dataset:
    """The metric of a run that is steered by `scale * vector` (scale), next to what other directions do to it.

    `vector` is `wb.steering.steering_vector`'s, added where it was found, at all positions or at `positions`. Every
    figure is `metric(trace)` of a real run: the prompt is read, or with `max_tokens` gone on with, greedily; `record`
    is for what the metric reads. `random` (control scale) are `n_random_controls` random directions of the same norm,
    `unrelated` (contrast scale) other differences of means, which have nothing to do with the question, brought to the
    same norm: these often move behaviour as much as a vector that was meant to. `attrs` of `steered` hold the metric of
    the `plain` run, the `slope` by scale (least squares), that of each control and contrast (`null`, `null_unrelated`),
    and `p`, how often a random direction has as steep a one. At scale 0 every run is the plain one, bit for bit.
    `resume` is a file that keeps finished runs, as for `activation_patching`.

    >>> chain = wb.steps(trace)
    >>> read = model.trace(trace, record="residuals")
    >>> vector = wb.steering.steering_vector([(read, chain[-1])], [(read, chain[0])], layer=2)
    >>> other = wb.steering.steering_vector([(read, slice(0, 9))], [(read, slice(9, 18))], layer=2)
    >>> found = wb.steering.steering_effect(
    ...     model, trace, vector, lambda t: float(t["entropy"].mean()), control_vectors=[other], scales=[0, 1], n_random_controls=2
    ... )
    >>> found["random"].dims, bool((found["random"].sel(scale=0) == found["steered"].attrs["plain"]).all())
    (('control', 'scale'), True)

    Raises EditError for a vector that says no `point` or is all zeros, and without an unrelated contrast; PromptError
    as `model.generate` does, ResumeError as `activation_patching` does.
    """
    point = vector.attrs.get("point")
    norm = float(np.linalg.norm(vector))
    if point is None or not norm > 0:
        raise EditError(
            "steer by what wb.steering.steering_vector gives: a vector that is not zero, with its `point` in attrs"
        )
    if not len(control_vectors) or not all(np.linalg.norm(other) > 0 for other in control_vectors):
        raise EditError(
            "give an `unrelated` contrast or more: a wb.steering.steering_vector of places that should not matter"
        )
    dice = np.random.default_rng(seed)
    directions = {"steered": [np.asarray(vector)]}
    directions["random"] = list(dice.normal(size=(n_random_controls, len(vector))))
    directions["unrelated"] = [np.asarray(other) for other in control_vectors]

    def run() -> float:
        if max_tokens:
            return float(metric(model.generate(prompt, max_tokens=max_tokens, record=record)))
        return float(metric(model.trace(prompt, record=record)))

    found = {name: np.zeros((len(several), len(scales))) for name, several in directions.items()}
    todo = [
        (name, i, j) for name, several in directions.items() for i in range(len(several)) for j in range(len(scales))
    ]
    asked = {
        "what": "steering_effect",
        "tokens": model.to_tokens(prompt),
        "point": point,
        "norm": norm,
        "metric": metric,
    }
    asked |= {"directions": directions, "scales": list(scales), "max_tokens": max_tokens, "positions": positions}
    with SweepCheckpoint(resume, model_inputs(model) | asked | {"record": record}) as cells:
        if 0 not in cells:
            cells.put(0, run())
        plain = float(cells[0])
        for number, (name, i, j) in enumerate(tqdm(todo, desc="steering", unit="run", leave=False, disable=None), 1):
            if number not in cells:
                direction = directions[name][i] * (norm / np.linalg.norm(directions[name][i]))
                with model.edit(point, steer(direction, scales[j]), positions=positions):
                    cells.put(number, run())
            found[name][i, j] = cells[number]
    data = {
        "steered": ("scale", found["steered"][0]),
        "random": (("control", "scale"), found["random"]),
        "unrelated": (("contrast", "scale"), found["unrelated"]),
    }
    attrs = {"point": point, "norm": norm, "n": n_random_controls, "seed": seed, "max_tokens": max_tokens}
    made = xr.Dataset(data, {"scale": np.asarray(scales, float)}, attrs)
    own, null, contrast = (_slopes(np.asarray(scales, float), rows) for rows in found.values())
    p = (1 + int((np.abs(null) >= abs(own[0])).sum())) / (1 + len(null))
    made["steered"].attrs = {"plain": plain, "slope": float(own[0]), "null": null.tolist(), "p": p}
    made["steered"].attrs["null_unrelated"] = contrast.tolist()
    return made


def _slopes(scales: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """The slope of each row of values by scale, by least squares; 0 if there is one scale."""
    x = scales - scales.mean()
    return rows @ x / max(float(x @ x), np.finfo(float).tiny)
