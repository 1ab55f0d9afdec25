"""Linear probes: what a linear map can read from a hook point, compared with the baselines that such a result needs.

A probe has as many weights as the residual stream is wide, so it finds something in almost anything. Its accuracy is
therefore reported next to three others: that of the same probe on shuffled labels, that on a control task (labels drawn
at random for each token), and that of the tokens and positions alone, without the model.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import xarray as xr

from workbench import hooks
from workbench.analysis import statistics
from workbench.analysis.problem_groups import problem
from workbench.analysis.trace_lists import trace_list
from workbench.checks import (
    check_count,
    check_indices,
    check_items,
    check_number,
    check_seed,
    check_text,
    check_whole,
    require,
)
from workbench.errors import ArgumentError, HookNameError
from workbench.progress import progress_bar
from workbench.traces import Trace
from workbench.units import with_units

N_CONTROL_TASKS = 10
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
    """How well a linear probe predicts a label from each layer, on problems that it was not fitted on.

    The probe is a ridge regression on the one-hot classes (scikit-learn's, on standardized inputs; the class with the
    largest output is the prediction). Each fold of problems is predicted by a probe fitted on all other problems. Runs
    with the same question count as one problem.

    Args:
        traces: the runs.
        labels: one list for each trace, with one label for each position. Positions with the label None are left out.
        site: a hook point of every layer with one vector per position.
        layers: the layers; None for all.
        token_identity: lists like `labels`, with what the control task and the baseline use instead of the token at
            the position, for example the token before it or a name.
        l2_penalty: the strength of the ridge penalty.
        n_folds: number of cross-validation folds; between 2 and the number of problems.
        n_shuffles: number of shuffles of the labels. Labels are shuffled within each problem, or among problems if each
            problem has a single label; `attrs["shuffled"]` says which.
        seed: of folds, shuffles, control tasks and bootstraps.

    Returns:
        Dataset over (layer), accuracies as shares of positions:
        `accuracy`, with `low` and `high`, 95 % bounds over problems: by bootstrap, or Wilson's if each problem has one
        position or if all predictions are right or all wrong;
        `null`, the 95th percentile with shuffled labels; `p`, the p-value: the share of shuffles whose best layer
        reaches the accuracy. It stays valid if you pick the best layer;
        `control`, the accuracy on labels drawn at random for each token, and `selectivity`, accuracy - control (Hewitt
        and Liang 2019, arXiv 1909.03368); NaN if all positions have the same token;
        `baseline` (no axis), the accuracy from token, position and length of the text, without the model; `gain`,
        accuracy - baseline, with `gain_low` and `gain_high` by paired bootstrap over problems;
        `direction` (layer label d_model), the probe's weights, fitted on all positions.

    A high accuracy shows that the label can be decoded there, not that the model uses it. Test that with an experiment,
    `wb.steering.steering_effect`.

    >>> traces = [wb.trace(f"What is {n}+30?", record="blocks.*.hook_resid_post", max_tokens=1) for n in range(12, 22)]
    >>> labels = [[token == "+" for token in trace.str_tokens] for trace in traces]
    >>> probe = wb.probes.linear_probe(traces, labels, n_shuffles=20)
    >>> probe["accuracy"].dims, float(probe["accuracy"].max()), probe["accuracy"].attrs["n_problems"]
    (('layer',), 1.0, 10)
    >>> float(probe["baseline"])  # the tokens alone predict this label, so the accuracy says nothing about the model
    1.0

    Raises:
        ArgumentError: the numbers of labels and positions differ, there are fewer than two different labels, or fewer
            problems than folds.
        HookNameError: the site is not one vector per position in every layer.
        NotRecorded: the site was not recorded.
        MissingDependency: scikit-learn is not installed.
    """
    traces = trace_list("linear_probe", traces)
    n_layers = traces[0].config["n_layers"]
    axis = _axis(check_text("site", site))
    layer_list = list(range(n_layers)) if layers is None else check_indices("layer", layers, n_layers)
    n_folds, n_shuffles, seed = (
        check_whole("n_folds", n_folds, 2),
        check_count("n_shuffles", n_shuffles),
        check_seed(seed),
    )
    ridge = _ridge(check_number("l2_penalty", l2_penalty, low=0))
    labels = _by_position(traces, labels, "labels")
    if token_identity is not None:
        token_identity = _by_position(traces, token_identity, "token_identity")
    positions = [
        np.array([i for i, label in enumerate(trace_labels) if label is not None], int) for trace_labels in labels
    ]
    label = np.array([str(trace_labels[i]) for trace_labels, at in zip(labels, positions) for i in at])
    identities = token_identity or [trace.tokens for trace in traces]
    token = np.array([str(trace_identities[i]) for trace_identities, at in zip(identities, positions) for i in at])
    _, numbers = np.unique([str(problem(trace)) for trace in traces], return_inverse=True)
    group = np.concatenate([np.full(len(at), n) for n, at in zip(numbers, positions)])
    classes, y = np.unique(label, return_inverse=True)
    n_problems = len(np.unique(group))
    if len(classes) < 2:
        raise ArgumentError(
            f"a probe needs at least two different labels, got {', '.join(map(str, classes)) or 'none'}."
        )
    if not 2 <= n_folds <= n_problems:
        raise ArgumentError(
            f"n_folds must be between 2 and {n_problems}, the number of problems, got {n_folds}. Give more traces."
        )

    rng = np.random.default_rng(seed)
    constant = all(len(set(y[group == g])) == 1 for g in np.unique(group))
    shuffled = [(_shuffled_among if constant else _shuffled_within)(y, group, rng) for _ in range(n_shuffles)]
    identity_names, identity_index = np.unique(token, return_inverse=True)
    controls = [
        rng.choice(y, len(identity_names))[identity_index]
        for _ in range(N_CONTROL_TASKS if len(identity_names) > 1 else 0)
    ]
    tasks = np.stack([y, *shuffled, *controls])  # (task position)
    fold = _folds(group, n_folds, rng)

    position = np.array([(i, len(t)) for t, at in zip(traces, positions) for i in at], np.float64)
    baseline_features = np.concatenate([np.eye(len(identity_names))[identity_index], position], 1)
    baseline_hit = _cross_predict(ridge, baseline_features, tasks[:1], len(classes), fold)[0] == y
    scores: dict[str, list[float]] = {name: [] for name in ("accuracy", "low", "high", "control")}
    gains, null_accuracy, directions = [], [], []
    for layer in progress_bar(layer_list, desc="probing", unit="layer"):
        x = np.concatenate([trace[site, layer][at] for trace, at in zip(traces, positions)]).astype(np.float64)
        hit = _cross_predict(ridge, x, tasks, len(classes), fold) == tasks
        low, high = _bounds(hit[0], group, seed)
        task_accuracy = hit.mean(1)
        for name, value in (("accuracy", task_accuracy[0]), ("low", low), ("high", high)):
            scores[name].append(float(value))
        scores["control"].append(float(task_accuracy[1 + n_shuffles :].mean()) if controls else np.nan)
        null_accuracy.append(task_accuracy[1 : 1 + n_shuffles])
        gains.append(statistics.mean_interval(hit[0].astype(float) - baseline_hit, group, seed=seed))
        fitted = ridge(x, np.eye(len(classes))[y])
        directions.append(fitted[-1].coef_ / fitted[0].scale_)

    accuracy, control = np.array(scores["accuracy"]), np.array(scores["control"])
    best = np.max(null_accuracy, 0)
    data = {name: ("layer", np.array(values)) for name, values in scores.items()}
    data |= {
        "selectivity": ("layer", accuracy - control),
        "null": ("layer", np.quantile(null_accuracy, 0.95, axis=1)),
        "p": ("layer", (1 + (best >= accuracy[:, None]).sum(1)) / (n_shuffles + 1)),
        "baseline": ((), float(baseline_hit.mean())),
        "gain": ("layer", [float(gain.value) for gain in gains]),
        "gain_low": ("layer", [float(gain.low) for gain in gains]),
        "gain_high": ("layer", [float(gain.high) for gain in gains]),
        "direction": (("layer", "label", axis), np.stack(directions)),
    }
    attrs = {
        "n": len(y),
        "n_problems": n_problems,
        "n_identities": len(identity_names),
        "majority": float(np.bincount(y).max() / len(y)),
        "n_folds": n_folds,
        "n_shuffles": n_shuffles,
        "shuffled": "among problems" if constant else "within each problem",
    }
    dataset = xr.Dataset(data, {"layer": layer_list, "label": classes}, attrs)
    for name in set(data) - {"direction"}:
        dataset[name].attrs.update(attrs)
    return with_units(dataset, "share of positions", p="probability", direction="1")


def _ridge(l2_penalty: float) -> Fit:
    """A function that fits a standardized ridge regression of targets (position target) on x (position feature)."""
    ridge = require("sklearn.linear_model", extra="lab").Ridge(l2_penalty)
    scaler = require("sklearn.preprocessing", extra="lab").StandardScaler()
    pipeline = require("sklearn.pipeline", extra="lab").make_pipeline(scaler, ridge)
    clone = require("sklearn.base", extra="lab").clone
    return lambda x, targets: clone(pipeline).fit(x, targets)


def _cross_predict(fit: Fit, x: np.ndarray, tasks: np.ndarray, n_classes: int, fold: np.ndarray) -> np.ndarray:
    """The predicted class of each position (task position), by a probe fitted on the other folds.

    One regression solves for all tasks at once, so hundreds of shuffles cost little more than the labels alone.
    """
    predicted = np.empty_like(tasks)
    targets = np.eye(n_classes)[tasks.T].reshape(len(x), -1)  # (position task*class)
    for held_out_fold in np.unique(fold):
        test, train = fold == held_out_fold, fold != held_out_fold
        scores = fit(x[train], targets[train]).predict(x[test])
        predicted[:, test] = scores.reshape(-1, len(tasks), n_classes).argmax(-1).T
    return predicted


def _folds(group: np.ndarray, n_folds: int, rng: np.random.Generator) -> np.ndarray:
    """The fold of each position. All positions of a problem are in one fold."""
    problems = rng.permutation(np.unique(group))
    fold_of = dict(zip(problems.tolist(), np.arange(len(problems)) % n_folds))
    return np.array([fold_of[g] for g in group.tolist()])


def _shuffled_within(y: np.ndarray, group: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Labels shuffled within each problem."""
    shuffled = y.copy()
    for g in np.unique(group):
        members = np.flatnonzero(group == g)
        shuffled[members] = y[rng.permutation(members)]
    return shuffled


def _shuffled_among(y: np.ndarray, group: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The labels of whole problems shuffled among problems; each problem has a single label."""
    _, first_index, number = np.unique(group, return_index=True, return_inverse=True)
    return y[rng.permutation(first_index)][number]


def _bounds(hit: np.ndarray, group: np.ndarray, seed: int) -> tuple[float, float]:
    n_problems = len(np.unique(group))
    if n_problems == len(hit):
        return statistics.wilson_interval(int(hit.sum()), len(hit))
    if hit.all() or not hit.any():  # a bootstrap of equal values has no width
        return statistics.wilson_interval(int(hit[0]) * n_problems, n_problems)
    interval = statistics.mean_interval(hit, group, seed=seed)
    return float(interval.low), float(interval.high)


def _axis(site: str) -> str:
    """The name of the axis of a hook point's vectors."""
    axes = hooks.POINTS.get(hooks.full_name(site), ())
    if "*" not in hooks.full_name(site) or len(axes) != 2 or axes[0] != "pos":
        raise HookNameError(
            f"site must be a hook point with one vector per position in every layer, such as 'resid_post'; "
            f"{site!r} has the axes {axes}"
        )
    return axes[1]


def _by_position(traces: Sequence[Trace], values: Any, name: str) -> list[list]:
    """The values as one list for each trace, with one entry for each position."""
    rows = check_items(name, values)
    if len(rows) != len(traces):
        raise ArgumentError(f"{name} must be one list for each of the {len(traces)} traces, got {len(rows)} lists.")
    rows = [check_items(f"{name}[{i}]", row) for i, row in enumerate(rows)]
    for i, (trace, row) in enumerate(zip(traces, rows)):
        if len(row) != len(trace):
            raise ArgumentError(
                f"{name}[{i}] must have one entry for each of the {len(trace)} positions of traces[{i}] "
                f"(None: left out), got {len(row)}."
            )
    return rows
