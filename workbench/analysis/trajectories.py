"""The path of a chain of thought through the residual stream, on axes fitted on other problems.

Axes fitted on the path itself make any walk look structured: the first two principal components of a random walk are
half a cosine each (arXiv 1806.08805). A basis therefore records its problems and refuses to show them.
"""

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr

from workbench import hooks
from workbench.analysis.problem_groups import problem
from workbench.analysis.trace_lists import trace_list
from workbench.checks import check_count, check_items, check_seed, check_type, check_whole
from workbench.errors import ArgumentError, HookNameError, NotRecorded
from workbench.text import visible
from workbench.traces import Trace
from workbench.traces.steps import Step, segment_slices
from workbench.units import with_units

Segments = Sequence[Step | slice]


def resid_basis(
    traces: Sequence[Trace],
    segments: Sequence[Segments] | None = None,
    *,
    n_components: int = 3,
    site: str = "resid_post",
) -> xr.Dataset:
    """The directions in which reasoning steps differ most, layer by layer: a basis for `resid_trajectory`.

    This is a principal component analysis of the mean residual streams of the steps, with one row per step.

    Args:
        traces: runs of the problems to fit on.
        segments: other segments than the steps of the analysis channel, one list for each trace. Slices of one position
            each fit the basis on tokens.
        n_components: number of components; at most the number of steps - 1.
        site: a hook point of every layer with one vector per position.

    Returns:
        Dataset over (layer):
        `mean` (layer d_model), the mean over steps;
        `direction` (layer component d_model), orthonormal vectors in order of variance, with signs chosen so that the
        problems on average move in the positive direction from first to last step;
        `explained` (layer component), each component's share of the variance between steps.
        `attrs["problems"]` are hashes of the problems, by which `resid_trajectory` refuses them.

    >>> questions = [f"Mod 10: a={n}, b=a+4, c=b*2. Find c." for n in range(4)]
    >>> traces = [wb.trace(wb.chat(q, reasoning="high"), record="blocks.*.hook_resid_post") for q in questions]
    >>> basis = wb.residual.resid_basis(traces, n_components=2)
    >>> basis["direction"].dims, basis.attrs["n_problems"]
    (('layer', 'component', 'd_model'), 4)

    Raises:
        NotRecorded: `site` was not recorded, or there are no steps.
        ArgumentError: there are too few steps for `n_components`.
    """
    traces = trace_list("resid_basis", traces)
    n_components, site = check_whole("n_components", n_components, 1), _checked_site(site)
    segments = None if segments is None else check_items("segments", segments)
    if segments is not None and len(segments) != len(traces):
        raise ArgumentError(
            f"segments must be one list for each of the {len(traces)} traces, got {len(segments)} lists."
        )
    lists = [_positions(trace, None if segments is None else segments[i]) for i, trace in enumerate(traces)]
    rows = sum(map(len, lists))
    means, components, explained = [], [], []
    for layer in range(traces[0].config["n_layers"]):
        paths = [_means(trace[site, layer], segment_positions) for trace, segment_positions in zip(traces, lists)]
        x = np.concatenate(paths)
        if not n_components <= min(rows - 1, x.shape[1]):
            raise ArgumentError(
                f"{n_components} components need more than {n_components} steps of at least {n_components} numbers, "
                f"got {rows} steps of {x.shape[1]}. "
                "Give more traces or a smaller n_components."
            )
        _, singular_values, axes = np.linalg.svd(x - x.mean(0), full_matrices=False)
        drift = np.mean([path[-1] - path[0] for path in paths], 0) @ axes[:n_components].T
        means.append(x.mean(0))
        components.append(np.where(drift < 0, -1, 1)[:, None] * axes[:n_components])
        explained.append(singular_values[:n_components] ** 2 / max(float((singular_values**2).sum()), 1e-300))
    data = {
        "mean": (("layer", "d_model"), np.stack(means)),
        "direction": (("layer", "component", "d_model"), np.stack(components)),
        "explained": (("layer", "component"), np.stack(explained)),
    }
    problem_hashes = sorted({_problem_hash(trace) for trace in traces})
    attrs = {"site": site, "n": rows, "n_problems": len(problem_hashes), "problems": problem_hashes}
    dataset = xr.Dataset(data, {"layer": np.arange(len(means)), "component": np.arange(n_components)}, attrs)
    return with_units(dataset, mean="activation", direction="1", explained="share of variance")


def resid_trajectory(
    trace: Trace, basis: xr.Dataset, segments: Segments | None = None, *, n_shuffles: int = 1000, seed: int = 0
) -> xr.Dataset:
    """The path of a run's steps along the components of a basis that was fitted on other problems.

    Args:
        trace: a run of a problem that is not in the basis.
        basis: from `resid_basis`.
        segments: other segments than the steps of the analysis channel.
        n_shuffles: random orders of the steps for `p`.
        seed: of these orders.

    Returns:
        Dataset over (layer):
        `path` (layer step component), the step means, in units of the residual stream;
        `tokens` (layer pos component), the same for all positions;
        `explained` (layer component), the share of the variance between this run's steps along each component. It is
        small if other problems move in other directions;
        `progress` (layer component), the rank correlation (Spearman) of position along the component with step number;
        `p` (layer component), how often steps in random order have an absolute correlation as large. Both are NaN for
        fewer than three steps.
        The coordinates `start` and `stop` (step) are the steps' token positions.

    A path describes what changes from step to step in general, including position in the text. It does not show that
    the model uses these directions.

    >>> questions = [f"Mod 10: a={n}, b=a+4, c=b*2. Find c." for n in range(4)]
    >>> traces = [wb.trace(wb.chat(q, reasoning="high"), record="blocks.*.hook_resid_post") for q in questions]
    >>> path = wb.residual.resid_trajectory(traces[0], wb.residual.resid_basis(traces[1:], n_components=2))
    >>> path["path"].dims, path.sizes["step"] == len(wb.steps(traces[0]))
    (('layer', 'step', 'component'), True)

    Raises:
        ArgumentError: the basis was fitted on this problem, or on another width.
        NotRecorded: as for `resid_basis`.
    """
    check_type("resid_trajectory", trace, Trace)
    _check_basis("resid_trajectory", basis)
    n_shuffles, seed = check_count("n_shuffles", n_shuffles), check_seed(seed)
    if _problem_hash(trace) in basis.attrs["problems"]:
        raise ArgumentError(
            f"the basis was fitted on {basis.attrs['n_problems']} problems including this one, so its path would look "
            "better than it is; fit the basis on other problems"
        )
    segment_positions, site = _positions(trace, segments), basis.attrs["site"]
    token_paths, paths, explained = [], [], []
    for layer in basis["layer"].values:
        x = np.asarray(trace[site, int(layer)], np.float64)
        if x.shape[1] != basis.sizes["d_model"]:
            raise ArgumentError(
                f"the basis has d_model={basis.sizes['d_model']} and this trace has {x.shape[1]}; "
                "fit a basis on traces of this model."
            )
        axes = basis["direction"].sel(layer=layer).values
        center = basis["mean"].sel(layer=layer).values
        means = _means(x, segment_positions)
        centered = means - means.mean(0)
        with np.errstate(divide="ignore", invalid="ignore"):
            explained.append(((centered @ axes.T) ** 2).sum(0) / (centered**2).sum())
        token_paths.append((x - center) @ axes.T)
        paths.append((means - center) @ axes.T)
    path = np.stack(paths)
    progress, p = _progress(path, n_shuffles, seed)
    data = {
        "path": (("layer", "step", "component"), path),
        "tokens": (("layer", "pos", "component"), np.stack(token_paths)),
        "explained": (("layer", "component"), np.stack(explained)),
        "progress": (("layer", "component"), progress),
        "p": (("layer", "component"), p),
    }
    coords = {
        "layer": basis["layer"].values,
        "component": basis["component"].values,
        "start": ("step", [positions[0] for positions in segment_positions]),
        "stop": ("step", [positions[-1] + 1 for positions in segment_positions]),
    }
    attrs = {"site": site, "n_problems": basis.attrs["n_problems"], "n_shuffles": n_shuffles}
    return with_units(xr.Dataset(data, coords, attrs), "1", explained="share of variance", p="probability")


def step_cosine(
    trace: Trace, segments: Segments | None = None, *, basis: xr.Dataset | None = None, site: str = "resid_post"
) -> xr.DataArray:
    """Cosine similarity of the mean residual streams of two steps (layer step key_step); 1 means the same direction.

    All steps share a large component, so plain cosines are near 1. With `basis`, the mean step of other problems is
    subtracted first. The diagonal is 1.

    Args:
        trace: the run.
        segments: other segments than the steps of the analysis channel.
        basis: from `resid_basis`, fitted on other problems; its site is used.
        site: a hook point of every layer with one vector per position, if there is no `basis`.

    Returns:
        DataArray (layer step key_step) of cosines. `attrs["center"]` says what was subtracted.

    >>> trace = wb.trace(wb.chat("What is 12+30?", reasoning="high"), record="blocks.*.hook_resid_post")
    >>> cosine = wb.residual.step_cosine(trace)
    >>> cosine.dims, bool(np.allclose(np.diagonal(cosine, axis1=1, axis2=2), 1))
    (('layer', 'step', 'key_step'), True)

    Raises:
        ArgumentError: the basis was fitted on this problem.
        NotRecorded: as for `resid_basis`.
    """
    check_type("step_cosine", trace, Trace)
    site = _checked_site(site)
    if basis is not None:
        _check_basis("step_cosine", basis)
        if _problem_hash(trace) in basis.attrs["problems"]:
            raise ArgumentError("the basis was fitted on this problem; fit it on other problems")
        site = basis.attrs["site"]
    segment_positions, values = _positions(trace, segments), []
    for layer in range(trace.config["n_layers"]):
        means = _means(trace[site, layer], segment_positions)
        if basis is not None:
            means = means - basis["mean"].sel(layer=layer).values
        with np.errstate(divide="ignore", invalid="ignore"):
            unit = means / np.linalg.norm(means, axis=-1, keepdims=True)
        values.append(unit @ unit.T)
    dims = ("layer", "step", "key_step")
    subtracted = "the mean step of other problems" if basis is not None else "0"
    attrs = {"long_name": "cosine", "units": "1", "site": site, "center": subtracted}
    return xr.DataArray(np.stack(values), {"layer": np.arange(len(values))}, dims, attrs=attrs)


def _checked_site(site: Any) -> str:
    """A hook point of every layer with one vector per position, by its name. Raises HookNameError for another."""
    point = hooks.full_name(site)
    if "*" not in point or len(hooks.axes(point)) != 2 or hooks.axes(point)[0] != "pos":
        raise HookNameError(
            f"site must be a hook point of every layer with one vector per position, such as 'resid_post', "
            f"got {visible(repr(site))}."
        )
    return site


def _check_basis(function: str, basis: Any) -> None:
    """Raises ArgumentTypeError for anything but a Dataset, ArgumentError for one that is not from `resid_basis`."""
    check_type(function, basis, xr.Dataset, "wb.residual.resid_basis")
    missing = [name for name in ("mean", "direction") if name not in basis]
    missing += [name for name in ("problems", "n_problems", "site") if name not in basis.attrs]
    if missing:
        raise ArgumentError(
            f"basis must be the Dataset of wb.residual.resid_basis; this one has no {', '.join(missing)}."
        )


def _positions(trace: Trace, segments: Segments | None) -> list[np.ndarray]:
    """The positions of each segment."""
    all_positions = np.arange(len(trace))
    segment_positions = [all_positions[part] for part in segment_slices(trace, segments)]
    if not segment_positions or not all(map(len, segment_positions)):
        raise NotRecorded(
            "this trace has no steps (no chain of thought), or a segment is empty; give `segments` as slices"
        )
    return segment_positions


def _means(x: np.ndarray, segment_positions: list[np.ndarray]) -> np.ndarray:
    return np.stack([x[positions].mean(0, dtype=np.float64) for positions in segment_positions])


def _problem_hash(trace: Trace) -> str:
    """The hash by which a basis recognizes a problem."""
    return hashlib.sha256(repr(problem(trace)).encode()).hexdigest()[:16]


def _progress(path: np.ndarray, n_shuffles: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Spearman's correlation with the order of the steps (layer component), and its p-value under shuffled orders."""
    n = path.shape[1]
    if n < 3:
        empty = np.full((len(path), path.shape[2]), np.nan)
        return empty, empty.copy()
    ranks = path.argsort(1).argsort(1) - (n - 1) / 2  # ties do not happen with means of fp32 numbers
    order = np.arange(n) - (n - 1) / 2
    size = (order**2).sum()
    rho = np.einsum("lsc,s->lc", ranks, order) / size
    rng = np.random.default_rng(seed)
    shuffled_orders = np.stack([rng.permutation(order) for _ in range(n_shuffles)])
    null_rho = np.einsum("lsc,rs->rlc", ranks, shuffled_orders) / size
    return rho, (1 + (np.abs(null_rho) >= np.abs(rho) - 1e-12).sum(0)) / (n_shuffles + 1)
