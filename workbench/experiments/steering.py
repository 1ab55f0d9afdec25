"""Steering: a direction from a difference of means, and what adding multiples of it does to a run."""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from typing import Any

import numpy as np
import xarray as xr

from workbench import hooks
from workbench.analysis.trace_lists import trace_list
from workbench.checks import (
    check_axes,
    check_callable,
    check_count,
    check_items,
    check_layer,
    check_number,
    check_real,
    check_seed,
    check_type,
    check_whole,
)
from workbench.edits.edit import Edit
from workbench.edits.library import Steer, steer
from workbench.edits.positions import positions_of as edited_positions
from workbench.errors import ArgumentError, ArgumentTypeError, EditError, HookNameError, PromptError
from workbench.experiments.attention_knockout import Places, positions_of
from workbench.experiments.checkpoint import SweepCheckpoint, model_inputs
from workbench.model.model import Model, Prompt
from workbench.progress import progress_bar
from workbench.recording.decoding import Settings
from workbench.recording.generation import stops
from workbench.recording.many import Request, traces_of
from workbench.recording.source import ModelSource
from workbench.text import shown
from workbench.traces import Trace
from workbench.units import with_units

TraceMetric = Callable[[Trace], float]


def steering_vector(
    positive: Sequence[tuple[Trace, Places]],
    negative: Sequence[tuple[Trace, Places]],
    layer: int,
    *,
    site: str = "resid_post",
) -> xr.DataArray:
    """The mean residual stream at `positive` positions minus that at `negative` ones (d_model).

    The vector is in units of the stream. It is a difference of means (Contrastive Activation Addition, arXiv
    2312.06681; for steps of chains of thought arXiv 2506.18167). If the two sides differ in their tokens, the direction
    is that of the tokens: choose positions that share them. Whether the model uses the direction is what
    `wb.steering.steering_effect` tests.

    Args:
        positive: pairs of a trace and positions in it (a step, a message, a slice, numbers, or several of these).
        negative: the same for the other side. Every position has the same weight.
        layer: the layer.
        site: a hook point with d_model values per position in every layer.

    Returns:
        DataArray (d_model). `attrs["point"]` is the hook point to add it at, `attrs["norm"]` its length,
        `attrs["stream_norm"]` the mean length of the stream at all these positions. `attrs["n_positive"]`,
        `attrs["n_negative"]` and `attrs["n_traces"]` count positions and traces.

    >>> chain = wb.steps(trace)
    >>> vector = wb.steering.steering_vector([(trace, chain[1:])], [(trace, chain[0])], layer=2)
    >>> vector.dims, vector.attrs["point"], bool(np.isclose(vector.attrs["norm"], np.linalg.norm(vector)))
    (('d_model',), 'blocks.2.hook_resid_post', True)

    Raises:
        NotRecorded: a trace has no residual streams (record="residuals").
        SelectionError: a layer or position that a trace does not have.
        HookNameError: the site is not d_model wide in every layer.
        PromptError: one side has no positions.
        ArgumentTypeError: an item is not a pair of a trace and positions.
    """
    point = hooks.full_name(site)
    if "*" not in point or hooks.axes(point) != ("pos", "d_model"):
        raise HookNameError(
            "site must have d_model values per position in every layer (resid_pre, resid_mid, resid_post), "
            f"got {shown(site)}"
        )
    positive = check_items("positive", positive, low=0)
    negative = check_items("negative", negative, low=0)
    if not positive or not negative:
        raise PromptError(
            "a difference of means needs positions on both sides; give (trace, positions) in `positive` and `negative`"
        )
    for item in [*positive, *negative]:
        if not (isinstance(item, Sequence) and len(item) == 2 and isinstance(item[0], Trace)):
            raise ArgumentTypeError(
                f"positive and negative must be lists of pairs (trace, positions), got a {type(item).__name__}. "
                "Give pairs, as in [(trace, slice(0, 9))]."
            )
    traces = trace_list("steering_vector", [trace for trace, _ in [*positive, *negative]])
    layer_point = hooks.at_layer(point, check_layer(layer, traces[0].config["n_layers"]))
    rows = [
        np.concatenate(
            [trace[layer_point][positions_of(places, len(trace))] for trace, places in side], dtype=np.float64
        )
        for side in (positive, negative)
    ]
    vector = rows[0].mean(0) - rows[1].mean(0)
    attrs = {
        "long_name": f"mean {site}, positive - negative",
        "units": "activation",
        "point": layer_point,
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
    metric: TraceMetric,
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
    """A metric of runs steered by multiples of a vector (scale), next to random and unrelated vectors.

    Each value is `metric(trace)` of a real run with scale · vector added at the vector's hook point; with `max_tokens`,
    the runs are generated together. The controls matter: unrelated differences of means often change behavior as much
    as the intended vector.

    Args:
        model: the model.
        prompt: the prompt to run.
        vector: from `wb.steering.steering_vector`.
        metric: a function from a Trace to a number.
        control_vectors: at least one other difference of means, of positions that should not matter for the metric.
            They are scaled to the length of `vector`.
        scales: the factors.
        max_tokens: number of tokens to generate, greedily; 0 runs the prompt only.
        positions: where the vector is added; all positions unless given.
        n_random_controls: number of random directions of the same length.
        record: what the metric needs recorded.
        seed: of the random directions.
        resume: a file that keeps finished runs. The same call continues from it after an interruption.

    Returns:
        Dataset over (scale):
        `steered`, the metric with the vector;
        `random` (control scale), with random directions;
        `unrelated` (contrast scale), with `control_vectors`.
        `attrs` of `steered`: `plain`, the metric without steering; a run at scale 0 gives exactly this value; `slope`,
        by least squares over scales; `null` and `null_unrelated`, the slopes of the random and of the unrelated
        vectors; `p`, the p-value: the share of random directions whose slope is at least as steep.

    >>> chain = wb.steps(trace)
    >>> read = model.trace(trace, record="residuals")
    >>> vector = wb.steering.steering_vector([(read, chain[-1])], [(read, chain[0])], layer=2)
    >>> other = wb.steering.steering_vector([(read, slice(0, 9))], [(read, slice(9, 18))], layer=2)
    >>> mean_entropy = lambda t: float(t["entropy"].mean())
    >>> effect = wb.steering.steering_effect(
    ...     model, trace, vector, mean_entropy, control_vectors=[other], scales=[0, 1], n_random_controls=2
    ... )
    >>> effect["random"].dims, bool((effect["random"].sel(scale=0) == effect["steered"].attrs["plain"]).all())
    (('control', 'scale'), True)

    Raises:
        EditError: the vector has no `point` or is zero, or there is no control vector that is not zero.
        PromptError: as for `model.generate`.
        ResumeError: the file holds another experiment, or is damaged.
        FileError: the file cannot be written.
    """
    check_type("steering_effect", model, Model)
    check_type("steering_effect", vector, xr.DataArray)
    check_axes("vector", vector, ("d_model",))
    metric, seed = check_callable("metric", metric), check_seed(seed)
    control_vectors = check_items("control_vectors", control_vectors, low=0)
    for other in control_vectors:
        check_type("steering_effect", other, xr.DataArray)
        check_axes("a control vector", other, ("d_model",))
        if len(other) != len(vector):
            raise ArgumentError(f"control_vectors must be as long as vector, {len(vector)}, got {len(other)}.")
    scales = [check_number("a scale", scale) for scale in check_items("scales", scales)]
    n_random_controls = check_count("n_random_controls", n_random_controls, 0)
    max_tokens = check_whole("max_tokens", max_tokens, 0)
    edited_positions(positions)
    hooks.split_request(record)
    point = vector.attrs.get("point")
    norm = float(np.linalg.norm(vector))
    if point is None or not 0 < norm < np.inf:
        raise EditError(
            "vector must be nonzero and have its hook point in attrs['point'], as wb.steering.steering_vector gives"
        )
    if not control_vectors or not all(0 < np.linalg.norm(other) < np.inf for other in control_vectors):
        raise EditError(
            "control_vectors must hold at least one nonzero vector, such as wb.steering.steering_vector of positions "
            "that should not matter"
        )
    rng = np.random.default_rng(seed)
    directions = {"steered": [np.asarray(vector)]}
    directions["random"] = list(rng.normal(size=(n_random_controls, len(vector))))
    directions["unrelated"] = [np.asarray(other) for other in control_vectors]

    values = {name: np.zeros((len(vectors), len(scales))) for name, vectors in directions.items()}
    runs = [
        (name, i, j) for name, vectors in directions.items() for i in range(len(vectors)) for j in range(len(scales))
    ]
    inputs = {
        "what": "steering_effect",
        "tokens": model.to_tokens(prompt),
        "point": point,
        "norm": norm,
        "metric": metric,
    }
    inputs |= {"directions": directions, "scales": list(scales), "max_tokens": max_tokens, "positions": positions}
    with SweepCheckpoint(resume, model_inputs(model) | inputs | {"record": record}) as cells:
        steers: dict[int, Steer | None] = {0: None}  # by number of the cell
        for cell_id, (name, i, j) in enumerate(runs, 1):
            steers[cell_id] = steer(directions[name][i] * (norm / np.linalg.norm(directions[name][i])), scales[j])
        missing = {cell_id: each for cell_id, each in steers.items() if cell_id not in cells}
        if max_tokens:
            traces = _generated(model, prompt, list(missing.values()), point, positions, record, max_tokens)
        else:
            traces = _read(model, prompt, list(missing.values()), point, positions, record)
        for cell_id, trace in zip(missing, traces):
            cells.put(cell_id, check_real("the value of metric", metric(trace)))
        plain = float(cells[0])
        for cell_id, (name, i, j) in enumerate(runs, 1):
            values[name][i, j] = cells[cell_id]
    data = {
        "steered": ("scale", values["steered"][0]),
        "random": (("control", "scale"), values["random"]),
        "unrelated": (("contrast", "scale"), values["unrelated"]),
    }
    attrs = {"point": point, "norm": norm, "n": n_random_controls, "seed": seed, "max_tokens": max_tokens}
    dataset = xr.Dataset(data, {"scale": np.asarray(scales, float)}, attrs)
    slope, random_slopes, control_slopes = (_slopes(np.asarray(scales, float), rows) for rows in values.values())
    p = (1 + int((np.abs(random_slopes) >= abs(slope[0])).sum())) / (1 + len(random_slopes))
    dataset["steered"].attrs = {"plain": plain, "slope": float(slope[0]), "null": random_slopes.tolist(), "p": p}
    dataset["steered"].attrs["null_unrelated"] = control_slopes.tolist()
    return with_units(dataset, "metric")


def _read(
    model: Model, prompt: Prompt, steers: Sequence[Steer | None], point: str, positions: Any, record: str
) -> Iterator[Trace]:
    """The trace of the prompt under each edit at `point`; None is no edit."""
    for edit in progress_bar(steers, desc="steering", unit="run"):
        with model.edit(point, edit, positions=positions) if edit else nullcontext():
            trace = model.trace(prompt, record=record)
        yield trace


def _generated(
    model: Model,
    prompt: Prompt,
    steers: Sequence[Steer | None],
    point: str,
    positions: Any,
    record: str,
    max_tokens: int,
) -> Iterator[Trace]:
    """The trace of a greedy generation under each edit, all generated together."""
    if not steers:
        return
    source, (tokens, notes) = ModelSource(model), model.render(prompt)
    request = Request(tokens, Settings(max_tokens, 0.0, 1.0, 0, stops(model, ())), notes)
    points = hooks.match(point, model.config.n_layers)
    edits = [[Edit(point, edit, points, model.config, positions)] if edit else [] for edit in steers]
    rows = [(source.for_row(*each), request) for each in edits]
    for edit, trace in zip(steers, traces_of(model, rows, hooks.split_request(record))):
        if edit and not trace.edits[-1]["n_calls"]:
            raise EditError(f"the edit at {point!r} never fired: no run reaches the positions {shown(positions)}.")
        yield trace


def _slopes(scales: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """The least-squares slope of each row over scales; 0 if there is only one scale."""
    x = scales - scales.mean()
    return rows @ x / max(float(x @ x), np.finfo(float).tiny)
