"""Probes: exact on a planted direction, at chance without one, and never tested on problems they were fitted on."""

import random
import sys
from dataclasses import replace

import numpy as np
import pytest
from sklearn.linear_model import RidgeClassifier
from sklearn.model_selection import PredefinedSplit, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import workbench as wb
from tests.traces import made
from workbench.analysis.probes import _cross_predict, _ridge, linear_probe
from workbench.analysis.statistics import wilson_interval
from workbench.errors import HookNameError, MissingDependency, NotRecorded
from workbench.pocket.families import make
from workbench.pocket.rendering import render

COUNT = 9
PLANTED = 1  # the layer
DIRECTION = np.random.default_rng(5).normal(size=made.WIDTH)


def problems(n: int, resid) -> list[wb.Trace]:
    """Traces of different problems; `resid(layer, seed)` is a layer's output (pos d_model)."""
    return [
        wb.Trace(
            made.manifest(COUNT, seed=seed),
            {f"blocks.{layer}.hook_resid_post": resid(layer, seed).astype("f4") for layer in range(made.LAYERS)},
        )
        for seed in range(n)
    ]


def some_labels(n: int, kinds: str = "ab") -> list[list[str]]:
    rng = np.random.default_rng(0)
    return [rng.choice(list(kinds), COUNT).tolist() for _ in range(n)]


def noise(layer: int, seed: int) -> np.ndarray:
    return np.random.default_rng((layer, seed)).normal(size=(COUNT, made.WIDTH))


@pytest.fixture(scope="module")
def planted():
    labels = some_labels(20)
    signs = np.where(np.array(labels) == "b", 1.0, -1.0)

    def resid(layer: int, seed: int) -> np.ndarray:
        base = noise(layer, seed)
        base -= np.outer(base @ DIRECTION, DIRECTION) / (DIRECTION @ DIRECTION)  # remove the noise along the direction
        return base + (layer == PLANTED) * np.outer(signs[seed], DIRECTION)

    return problems(20, resid), labels


def test_a_planted_direction_is_recovered_and_only_in_its_layer(planted):
    probe = linear_probe(*planted)
    assert float(probe["accuracy"][PLANTED]) == 1 and float(probe["p"][PLANTED]) == 1 / 51
    assert float(probe["low"][PLANTED]) == wilson_interval(20, 20)[0] and float(probe["high"][PLANTED]) == 1
    direction = probe["direction"].sel(layer=PLANTED, label="b").values
    assert direction @ DIRECTION / np.linalg.norm(direction) / np.linalg.norm(DIRECTION) > 0.99
    assert np.allclose(probe["direction"].sum("label"), 0, atol=1e-9)
    for layer in (0, 2):
        assert float(probe["accuracy"][layer]) <= float(probe["null"][layer]) < 0.7
        assert float(probe["p"][layer]) > 0.05
    assert float(probe["gain_low"][PLANTED]) > 0.3 and float(probe["selectivity"][PLANTED]) > 0.3
    assert probe.attrs["n"] == 20 * COUNT and probe.attrs["n_problems"] == 20
    assert probe["accuracy"].attrs["shuffled"] == "within each problem"


def test_the_probe_is_scikit_learns_ridge_classifier():
    rng = np.random.default_rng(1)
    x, fold = rng.normal(size=(200, 12)), rng.integers(0, 4, 200)
    tasks = np.stack([(x[:, 0] > 0) + (x[:, 1] > 0.3) * 1 + 0, rng.integers(0, 3, 200)])
    predicted = _cross_predict(_ridge(3.0), x, tasks, 3, fold)
    reference = make_pipeline(StandardScaler(), RidgeClassifier(alpha=3.0))
    for classes, y in zip(predicted, tasks):
        assert np.array_equal(classes, np.asarray(cross_val_predict(reference, x, y, cv=PredefinedSplit(fold))))


def test_token_labels_show_no_gain_over_the_baseline():
    """The stream holds only the token, so labels of tokens are decodable without a model."""
    eye = np.eye(made.VOCAB)[:, : made.WIDTH] * 3
    traces = problems(30, lambda layer, seed: eye[made.manifest(COUNT, seed=seed).tokens])
    labels = [["even" if token % 2 == 0 else "odd" for token in trace.tokens] for trace in traces]
    probe = linear_probe(traces, labels)
    assert (probe["accuracy"] == 1).all() and float(probe["baseline"]) == 1
    assert (probe["gain"] == 0).all() and (probe["gain_high"] == 0).all()
    assert float(abs(probe["selectivity"]).max()) < 0.02
    constant_identity = linear_probe(traces, labels, token_identity=[["same"] * COUNT for _ in traces])
    assert np.isnan(constant_identity["control"]).all() and constant_identity.attrs["n_identities"] == 1
    assert float(constant_identity["baseline"]) < 0.7 and float(constant_identity["gain_low"].min()) > 0.2


def test_runs_of_one_question_are_never_split_between_fit_and_test():
    """The stream only identifies the problem: a memorized probe would be perfect, a held-out one is at chance."""
    eye = np.eye(40)
    rng = np.random.default_rng(2)
    labels_by_problem = rng.choice(["yes", "no"], 20).tolist()
    traces = []
    for run in range(40):
        manifest = made.manifest(COUNT, seed=run % 20)
        model = manifest.model | {"config": made.CONFIG | {"d_model": 40}}
        manifest = replace(manifest, model=model, created=f"{2026 + run}-01-02T03:04:05+00:00")
        rows = np.repeat(eye[run % 20][None], COUNT, 0)
        traces.append(wb.Trace(manifest, {f"blocks.{n}.hook_resid_post": rows.astype("f4") for n in range(3)}))
    probe = linear_probe(traces, [[classes] * COUNT for classes in labels_by_problem * 2])
    assert probe.attrs["n_problems"] == 20 and probe.attrs["shuffled"] == "among problems"
    assert float(probe["accuracy"].max()) < 0.75 and float(probe["p"].min()) > 0.05


def test_p_values_are_uniform_under_the_null():
    p = []
    for trial in range(40):
        traces = problems(8, lambda layer, seed: noise(layer, 1000 * trial + seed))  # noqa: B023
        labels = np.random.default_rng(trial).choice(list("ab"), (8, COUNT)).tolist()
        p.append(float(linear_probe(traces, labels, layers=[0], n_folds=2, n_shuffles=19, seed=trial)["p"][0]))
    assert np.mean(np.array(p) <= 0.1) <= 0.25 and 0.4 < np.mean(p) < 0.65  # 0.1 and 0.525 are expected


def test_results_do_not_depend_on_the_order_of_dimensions(planted):
    traces, labels = planted
    order = np.random.default_rng(3).permutation(made.WIDTH)
    turned = problems(20, lambda layer, seed: traces[seed]["resid_post", layer][:, order])
    one, other = (linear_probe(run_set, labels, n_shuffles=5, layers=[1, 2]) for run_set in (traces, turned))
    for name in ("accuracy", "low", "null", "control", "gain"):
        assert np.array_equal(one[name], other[name]), name
    assert np.allclose(one["direction"][..., order], other["direction"], atol=1e-6)


def test_unlabeled_positions_are_left_out_and_single_positions_get_wilson_intervals(planted):
    traces, labels = planted
    sparse_labels = [[label if i == 4 else None for i, label in enumerate(row)] for row in labels]
    probe = linear_probe(traces, sparse_labels, layers=[PLANTED, 2], n_shuffles=5)
    hits = round(float(probe["accuracy"][1]) * 20)
    assert probe.attrs["n"] == 20 and probe["layer"].values.tolist() == [PLANTED, 2]
    assert (float(probe["low"][1]), float(probe["high"][1])) == wilson_interval(hits, 20)


def test_a_step_value_is_decodable_in_pocket_before_it_is_generated(measured):
    model, rng = wb.Model("pocket"), random.Random(1)
    traces, labels, before = [], [], []
    for _ in range(25):
        problem = make("variables", rng, length=4, split="test")
        rendered = render(problem, "high")
        trace = model.trace(rendered.ids, record="blocks.*.hook_resid_post")
        value: list[str | None] = [None] * len(trace)
        for step, part in zip(problem.steps, rendered.steps):
            if step.kind == "compute":
                value[part.stop - 2] = step.value  # at the last `=`, the same token in every step
        traces.append(trace)
        labels.append(value)
        before.append(["", *trace.str_tokens[:-1]])
    probe = linear_probe(traces, labels, n_shuffles=20, token_identity=before)
    accuracy = probe["accuracy"].values
    measured(f"value of a step at its `=`, by layer: {accuracy.round(2)}; chance {probe['null'].values.round(2)}")
    assert (accuracy[3:] > 0.9).all() and (probe["p"][3:] < 0.05).all() and (probe["gain_low"][3:] > 0.5).all()
    assert accuracy[0] < 0.35  # the first layer only attends within its window


def test_invalid_probe_inputs_are_refused(planted, monkeypatch):
    traces, labels = planted
    with pytest.raises(ValueError, match="labels must be one list for each of the 20 traces, got 19 lists"):
        linear_probe(traces, labels[:-1])
    with pytest.raises(
        ValueError, match=r"labels\[0\] must have one entry for each of the 9 positions of traces\[0\] .*, got 3"
    ):
        linear_probe(traces, [["a", "b", "a"], *labels[1:]])
    with pytest.raises(ValueError, match="at least two different labels, got a"):
        linear_probe(traces, [["a"] * COUNT] * 20)
    with pytest.raises(ValueError, match="folds must be between 2 and 3, the number of problems, got 5"):
        linear_probe(traces[:3], labels[:3])
    with pytest.raises(HookNameError, match="one vector per position in every layer"):
        linear_probe(traces, labels, site="pattern")
    with pytest.raises(NotRecorded, match="record='resid_mid'"):
        linear_probe(traces, labels, site="resid_mid")
    monkeypatch.setitem(sys.modules, "sklearn.linear_model", None)
    with pytest.raises(MissingDependency, match=r"gpt-oss-workbench\[lab\]"):
        linear_probe(traces, labels)
