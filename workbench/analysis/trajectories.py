"""The way a chain of thought takes through the residual stream, drawn on axes that other problems gave.

Axes fitted on the very path that they show would make any walk look like a journey: the first two components of a
random walk are half a cosine each (arXiv 1806.08805). So a basis remembers its problems, and refuses to show them.
"""

import hashlib
from collections.abc import Sequence

import numpy as np
import xarray as xr

from workbench.analysis.problem_groups import problem
from workbench.errors import ArgumentError, NotRecorded
from workbench.traces import Trace
from workbench.traces.steps import Step, steps

Segments = Sequence[Step | slice]


def resid_basis(
    traces: Sequence[Trace],
    segments: Sequence[Segments] | None = None,
    *,
    n_components: int = 3,
    site: str = "resid_post",
) -> xr.Dataset:
    """The directions in which steps of reasoning differ most, layer by layer: for `resid_trajectory` of other problems.

    A principal component analysis of the steps' means, one row a step; `segments` gives other stretches than the steps
    of the analysis channel, one list for each trace (slices of one position each fit it on tokens). `mean` (layer
    d_model); `direction` (layer component d_model), unit vectors at right angles, the largest first, each turned so
    that the problems go along it from their first step to their last; `explained` (layer component), its share of the
    variance between steps.

    >>> asked = [f"Mod 10: a={n}, b=a+4, c=b*2. Find c." for n in range(4)]
    >>> traces = [wb.trace(wb.chat(q, reasoning="high"), record="blocks.*.hook_resid_post") for q in asked]
    >>> basis = wb.residual.resid_basis(traces, n_components=2)
    >>> basis["direction"].dims, basis.attrs["n_problems"]
    (('layer', 'component', 'd_model'), 4)

    Raises NotRecorded if `site` was not recorded or there are no steps, ArgumentError if `n_components` need more steps.
    """
    if not traces or (segments is not None and len(segments) != len(traces)):
        raise ArgumentError(f"give at least one trace, and one list of segments for each: got {len(traces)} traces.")
    lists = [_spots(trace, None if segments is None else segments[i]) for i, trace in enumerate(traces)]
    rows = sum(map(len, lists))
    means, components, shares = [], [], []
    for layer in range(traces[0].config["n_layers"]):
        paths = [_means(trace[site, layer], spots) for trace, spots in zip(traces, lists)]
        x = np.concatenate(paths)
        if not 0 < n_components <= min(rows - 1, x.shape[1]):
            raise ArgumentError(
                f"{n_components} components need more than {n_components} steps of at least {n_components} numbers, "
                f"got {rows} steps of {x.shape[1]}. "
                "Give more traces or a smaller n_components."
            )
        _, size, axes = np.linalg.svd(x - x.mean(0), full_matrices=False)
        along = np.mean([path[-1] - path[0] for path in paths], 0) @ axes[:n_components].T
        means.append(x.mean(0))
        components.append(np.where(along < 0, -1, 1)[:, None] * axes[:n_components])
        shares.append(size[:n_components] ** 2 / max(float((size**2).sum()), 1e-300))
    data = {
        "mean": (("layer", "d_model"), np.stack(means)),
        "direction": (("layer", "component", "d_model"), np.stack(components)),
        "explained": (("layer", "component"), np.stack(shares)),
    }
    marks = sorted({_mark(trace) for trace in traces})
    attrs = {"site": site, "n": rows, "n_problems": len(marks), "problems": marks}
    found = xr.Dataset(data, {"layer": np.arange(len(means)), "component": np.arange(n_components)}, attrs)
    found["explained"].attrs["units"] = "share of variance"
    return found


def resid_trajectory(
    trace: Trace, basis: xr.Dataset, segments: Segments | None = None, *, n_shuffles: int = 1000, seed: int = 0
) -> xr.Dataset:
    """The path of a run along the components of a basis that other problems gave.

    `path` (layer step component) are the means of steps, or of `segments`; `tokens` (layer pos component) all
    positions, in the units of the residual stream. `explained` (layer component) is the share of the variance between
    this run's own steps that lies along each: small, if other problems go other ways. `progress` is the rank
    correlation of the place along a component with the order of the steps, 1 if each goes further, and `p` how often
    steps in random order do as well in either direction; NaN below three steps.

    >>> asked = [f"Mod 10: a={n}, b=a+4, c=b*2. Find c." for n in range(4)]
    >>> traces = [wb.trace(wb.chat(q, reasoning="high"), record="blocks.*.hook_resid_post") for q in asked]
    >>> walk = wb.residual.resid_trajectory(traces[0], wb.residual.resid_basis(traces[1:], n_components=2))
    >>> walk["path"].dims, walk.sizes["step"] == len(wb.steps(traces[0]))
    (('layer', 'step', 'component'), True)

    Raises ArgumentError if the problem was in the fit, or for a basis of another width; NotRecorded as `resid_basis`
    does.
    """
    if _mark(trace) in basis.attrs["problems"]:
        raise ArgumentError(
            f"this problem is one of the {basis.attrs['n_problems']} that the basis was fitted on, so its path would "
            "look better than it is: fit the basis on other problems"
        )
    spots, site = _spots(trace, segments), basis.attrs["site"]
    everywhere, paths, shares = [], [], []
    for layer in basis["layer"].values:
        x = np.asarray(trace[site, int(layer)], np.float64)
        if x.shape[1] != basis.sizes["d_model"]:
            raise ArgumentError(
                f"the basis has d_model={basis.sizes['d_model']} and this trace {x.shape[1]}: fit it on its own traces."
            )
        axes = basis["direction"].sel(layer=layer).values
        centre = basis["mean"].sel(layer=layer).values
        means = _means(x, spots)
        own = means - means.mean(0)
        with np.errstate(divide="ignore", invalid="ignore"):
            shares.append(((own @ axes.T) ** 2).sum(0) / (own**2).sum())
        everywhere.append((x - centre) @ axes.T)
        paths.append((means - centre) @ axes.T)
    path = np.stack(paths)
    progress, p = _progress(path, n_shuffles, seed)
    data = {
        "path": (("layer", "step", "component"), path),
        "tokens": (("layer", "pos", "component"), np.stack(everywhere)),
        "explained": (("layer", "component"), np.stack(shares)),
        "progress": (("layer", "component"), progress),
        "p": (("layer", "component"), p),
    }
    coords = {
        "layer": basis["layer"].values,
        "component": basis["component"].values,
        "start": ("step", [spot[0] for spot in spots]),
        "stop": ("step", [spot[-1] + 1 for spot in spots]),
    }
    attrs = {"site": site, "n_problems": basis.attrs["n_problems"], "n_shuffles": n_shuffles}
    found = xr.Dataset(data, coords, attrs)
    for name, units in (("path", "1"), ("tokens", "1"), ("explained", "share of variance"), ("progress", "1")):
        found[name].attrs["units"] = units
    return found


def step_cosine(
    trace: Trace, segments: Segments | None = None, *, basis: xr.Dataset | None = None, site: str = "resid_post"
) -> xr.DataArray:
    """How alike in direction the residual streams of two steps are, by their means (layer step key_step): 1 is alike.

    All steps share a large part, so plain cosines are near 1; with `basis` (see `resid_basis`) the mean of other
    problems' steps is taken away first, and its `site` is used. Neighbours stand beside the diagonal, which is 1.

    >>> trace = wb.trace(wb.chat("What is 12+30?", reasoning="high"), record="blocks.*.hook_resid_post")
    >>> cosine = wb.residual.step_cosine(trace)
    >>> cosine.dims, bool(np.allclose(np.diagonal(cosine, axis1=1, axis2=2), 1))
    (('layer', 'step', 'key_step'), True)

    Raises ArgumentError if the problem was in the fit, NotRecorded as `resid_basis` does.
    """
    if basis is not None:
        if _mark(trace) in basis.attrs["problems"]:
            raise ArgumentError("this problem is one of those that the basis was fitted on: fit it on other problems")
        site = basis.attrs["site"]
    spots, values = _spots(trace, segments), []
    for layer in range(trace.config["n_layers"]):
        means = _means(trace[site, layer], spots)
        if basis is not None:
            means = means - basis["mean"].sel(layer=layer).values
        with np.errstate(divide="ignore", invalid="ignore"):
            unit = means / np.linalg.norm(means, axis=-1, keepdims=True)
        values.append(unit @ unit.T)
    dims = ("layer", "step", "key_step")
    centred = "the mean step of other problems" if basis is not None else "0"
    attrs = {"long_name": "cosine", "units": "1", "site": site, "centre": centred}
    return xr.DataArray(np.stack(values), {"layer": np.arange(len(values))}, dims, attrs=attrs)


def _spots(trace: Trace, segments: Segments | None) -> list[np.ndarray]:
    """The positions of each part."""
    every = np.arange(len(trace))
    spots = [every[slice(part.start, part.stop)] for part in (steps(trace) if segments is None else segments)]
    if not spots or not all(map(len, spots)):
        raise NotRecorded(
            "the trace has no steps (nothing was thought in it), or a part is empty: give `segments`, as slices"
        )
    return spots


def _means(x: np.ndarray, spots: list[np.ndarray]) -> np.ndarray:
    return np.stack([x[spot].mean(0, dtype=np.float64) for spot in spots])


def _mark(trace: Trace) -> str:
    """What a basis remembers of a problem."""
    return hashlib.sha256(repr(problem(trace)).encode()).hexdigest()[:16]


def _progress(path: np.ndarray, n_shuffles: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Spearman's correlation with the order of the steps (layer component), and how often chance reaches it."""
    n = path.shape[1]
    if n < 3:
        empty = np.full((len(path), path.shape[2]), np.nan)
        return empty, empty.copy()
    ranks = path.argsort(1).argsort(1) - (n - 1) / 2  # ties do not happen with means of fp32 numbers
    order = np.arange(n) - (n - 1) / 2
    size = (order**2).sum()
    rho = np.einsum("lsc,s->lc", ranks, order) / size
    rng = np.random.default_rng(seed)
    mixed = np.stack([rng.permutation(order) for _ in range(n_shuffles)])
    chance = np.einsum("lsc,rs->rlc", ranks, mixed) / size
    return rho, (1 + (np.abs(chance) >= np.abs(rho) - 1e-12).sum(0)) / (n_shuffles + 1)
