"""What can be read off a residual stream with a straight line, and how much of that is worth saying.

A probe finds something in almost anything: it has as many numbers as the stream is wide. So a figure stands beside what
the same probe reaches on shuffled labels, on labels that mean nothing but hang on the token, and without the stream.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import xarray as xr
from tqdm.auto import tqdm

from workbench import hooks
from workbench.analysis import statistics
from workbench.analysis.problem_groups import problem
from workbench.checks import require
from workbench.errors import ArgumentError, HookNameError
from workbench.traces import Trace

CONTROLS = 10  # control tasks that are drawn
Fit = Callable[[np.ndarray, np.ndarray], Any]


def linear_probe(
    traces: Sequence[Trace],
    labels: Sequence[Sequence],
    *,
    site: str = "resid_post",
    layers: Sequence[int] | None = None,
    token_identity: Sequence[Sequence] | None = None,
    l2_penalty: float = 1.0,
    n_folds: int = 5,
    n_shuffles: int = 50,
    seed: int = 0,
) -> xr.Dataset:
    """How well a linear probe reads a label off each layer, on problems that it was not fitted on.

    `labels` has one list for each trace, and in it one label for each position; positions whose label is None are left
    out. `site` is any hook point of every layer with one vector a position. The probe is a ridge regression on the
    classes (scikit-learn's, on standardised numbers, the largest wins). It is fitted on all problems but a fold of
    them, and tried on that fold; runs with the same question are one problem.

    `accuracy` (layer), with `low` and `high`, 95 % bounds over problems (Wilson's where all are alike or each problem
    has one place; otherwise by bootstrap). Beside it: `null`, the 95th percentile on shuffled labels, and `p`, how
    often the best layer of a shuffle reaches the figure, so that it holds for the best layer too. Labels are dealt out
    anew within their problem, or among problems if each has one label only (`attrs["shuffled"]`). `control`: the same
    probe on labels drawn at random for each token, and `selectivity`, accuracy less that (Hewitt and Liang, arXiv
    1909.03368); NaN if all places have the same token. `baseline`: what token, position and length tell without any
    model, and `gain` over it with `gain_low` and `gain_high`, by paired bootstrap. For both, `token_identity` may give
    something else than the token at the place (the token before it, a name), in lists like `labels`.

    `direction` (layer label d_model) is fitted on all places: along it the label is read. That does not mean that the
    model reads it there: what can be decoded need not steer. Whether it does is an experiment,
    `wb.steering.steering_effect`.

    >>> traces = [wb.trace(f"What is {n}+30?", record="blocks.*.hook_resid_post", max_tokens=1) for n in range(12, 22)]
    >>> labels = [[piece == "+" for piece in trace.str_tokens] for trace in traces]
    >>> found = wb.probes.linear_probe(traces, labels, n_shuffles=20)
    >>> found["accuracy"].dims, float(found["accuracy"].max()), found["accuracy"].attrs["n_problems"]
    (('layer',), 1.0, 10)
    >>> float(found["baseline"])  # so this says nothing of the model: which token is a plus is seen without it
    1.0

    Raises ArgumentError if labels and positions are not equally many, with fewer than two labels, or with fewer
    problems than folds; HookNameError for a point that is not one vector a position; NotRecorded if it was not
    recorded; MissingDependency without scikit-learn.
    """
    ridge = _ridge(l2_penalty)
    axis = _axis(site)
    places = [np.array([i for i, label in enumerate(those) if label is not None], int) for those in labels]
    _same_length(traces, labels, "labels")
    if token_identity is not None:
        _same_length(traces, token_identity, "token_identity")
    label = np.array([str(those[i]) for those, kept in zip(labels, places) for i in kept])
    known = token_identity or [trace.tokens for trace in traces]
    token = np.array([str(those[i]) for those, kept in zip(known, places) for i in kept])
    _, numbers = np.unique([str(problem(trace)) for trace in traces], return_inverse=True)
    group = np.concatenate([np.full(len(kept), n) for n, kept in zip(numbers, places)])
    kinds, y = np.unique(label, return_inverse=True)
    n_problems = len(np.unique(group))
    if len(kinds) < 2:
        raise ArgumentError(f"a probe needs at least two different labels, got {', '.join(map(str, kinds)) or 'none'}.")
    if not 2 <= n_folds <= n_problems:
        raise ArgumentError(
            f"n_folds must be between 2 and {n_problems}, the number of problems, got {n_folds}. Give more traces."
        )

    rng = np.random.default_rng(seed)
    constant = all(len(set(y[group == g])) == 1 for g in np.unique(group))
    shuffled = [(_among if constant else _within)(y, group, rng) for _ in range(n_shuffles)]
    types, kind_of = np.unique(token, return_inverse=True)
    controls = [rng.choice(y, len(types))[kind_of] for _ in range(CONTROLS if len(types) > 1 else 0)]
    tasks = np.stack([y, *shuffled, *controls])  # task place
    fold = _folds(group, n_folds, rng)

    position = np.array([(i, len(t)) for t, kept in zip(traces, places) for i in kept], np.float64)
    plain = np.concatenate([np.eye(len(types))[kind_of], position], 1)
    guessed = _held_out(ridge, plain, tasks[:1], len(kinds), fold)[0] == y
    chosen = range(traces[0].config["n_layers"]) if layers is None else layers
    figures: dict[str, list[float]] = {name: [] for name in ("accuracy", "low", "high", "control")}
    gains, chance, directions = [], [], []
    for layer in tqdm(chosen, desc="probing", unit="layer", leave=False, disable=None):
        x = np.concatenate([trace[site, layer][kept] for trace, kept in zip(traces, places)]).astype(np.float64)
        hit = _held_out(ridge, x, tasks, len(kinds), fold) == tasks
        low, high = _bounds(hit[0], group, seed)
        found = hit.mean(1)
        for name, value in (("accuracy", found[0]), ("low", low), ("high", high)):
            figures[name].append(float(value))
        figures["control"].append(float(found[1 + n_shuffles :].mean()) if controls else np.nan)
        chance.append(found[1 : 1 + n_shuffles])
        gains.append(statistics.mean_interval(hit[0].astype(float) - guessed, group, seed=seed))
        fitted = ridge(x, np.eye(len(kinds))[y])
        directions.append(fitted[-1].coef_ / fitted[0].scale_)

    accuracy, control = np.array(figures["accuracy"]), np.array(figures["control"])
    best = np.max(chance, 0)
    data = {name: ("layer", np.array(values)) for name, values in figures.items()}
    data |= {
        "selectivity": ("layer", accuracy - control),
        "null": ("layer", np.quantile(chance, 0.95, axis=1)),
        "p": ("layer", (1 + (best >= accuracy[:, None]).sum(1)) / (n_shuffles + 1)),
        "baseline": ((), float(guessed.mean())),
        "gain": ("layer", [float(gain.value) for gain in gains]),
        "gain_low": ("layer", [float(gain.low) for gain in gains]),
        "gain_high": ("layer", [float(gain.high) for gain in gains]),
        "direction": (("layer", "label", axis), np.stack(directions)),
    }
    attrs = {
        "units": "share of places",
        "n": len(y),
        "n_problems": n_problems,
        "n_identities": len(types),
        "majority": float(np.bincount(y).max() / len(y)),
        "n_folds": n_folds,
        "n_shuffles": n_shuffles,
        "shuffled": "among problems" if constant else "within each problem",
    }
    made = xr.Dataset(data, {"layer": list(chosen), "label": kinds}, attrs)
    for name in set(data) - {"direction"}:
        made[name].attrs.update(attrs)
    return made


def _ridge(l2_penalty: float) -> Fit:
    """A function that fits standardised numbers (place feature) to targets (place target)."""
    ridge = require("sklearn.linear_model", extra="lab").Ridge(l2_penalty)
    scaler = require("sklearn.preprocessing", extra="lab").StandardScaler()
    pipeline = require("sklearn.pipeline", extra="lab").make_pipeline(scaler, ridge)
    clone = require("sklearn.base", extra="lab").clone
    return lambda x, targets: clone(pipeline).fit(x, targets)


def _held_out(fit: Fit, x: np.ndarray, tasks: np.ndarray, n_kinds: int, fold: np.ndarray) -> np.ndarray:
    """The class of each place (task place) by a probe that was fitted on the other folds.

    The regression solves for all tasks at once: hundreds of shuffles cost little more than the labels.
    """
    said = np.empty_like(tasks)
    targets = np.eye(n_kinds)[tasks.T].reshape(len(x), -1)  # place task*kind
    for out in np.unique(fold):
        there, rest = fold == out, fold != out
        scores = fit(x[rest], targets[rest]).predict(x[there])
        said[:, there] = scores.reshape(-1, len(tasks), n_kinds).argmax(-1).T
    return said


def _folds(group: np.ndarray, n_folds: int, rng: np.random.Generator) -> np.ndarray:
    """The fold of each place: whole problems, dealt out in turn."""
    problems = rng.permutation(np.unique(group))
    dealt = dict(zip(problems.tolist(), np.arange(len(problems)) % n_folds))
    return np.array([dealt[g] for g in group.tolist()])


def _within(y: np.ndarray, group: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    mixed = y.copy()
    for g in np.unique(group):
        at = np.flatnonzero(group == g)
        mixed[at] = y[rng.permutation(at)]
    return mixed


def _among(y: np.ndarray, group: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    _, first, number = np.unique(group, return_index=True, return_inverse=True)
    return y[rng.permutation(first)][number]


def _bounds(hit: np.ndarray, group: np.ndarray, seed: int) -> tuple[float, float]:
    n_problems = len(np.unique(group))
    if n_problems == len(hit):
        return statistics.wilson_interval(int(hit.sum()), len(hit))
    if hit.all() or not hit.any():  # a bootstrap of what is all alike has no width
        return statistics.wilson_interval(int(hit[0]) * n_problems, n_problems)
    interval = statistics.mean_interval(hit, group, seed=seed)
    return float(interval.low), float(interval.high)


def _axis(site: str) -> str:
    """The name of the axis of a hook point's vectors."""
    axes = hooks.POINTS.get(hooks.full_name(site), ())
    if "*" not in hooks.full_name(site) or len(axes) != 2 or axes[0] != "pos":
        raise HookNameError(
            f"{site!r} is not one vector a position in every layer, as 'resid_post' is: its axes are {axes}"
        )
    return axes[1]


def _same_length(traces: Sequence[Trace], given: Sequence[Sequence], what: str) -> None:
    if len(given) != len(traces):
        raise ArgumentError(f"{what} must be one list for each of the {len(traces)} traces, got {len(given)} lists.")
    for trace, those in zip(traces, given):
        if len(those) != len(trace):
            raise ArgumentError(
                f"{what} must be one for each of the {len(trace)} positions (None leaves it out), got {len(those)}."
            )
