"""Probes: exact on a direction that was planted, at chance where there is none, and never tried on what they know."""

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
WAY = np.random.default_rng(5).normal(size=made.WIDTH)


def problems(n: int, resid) -> list[wb.Trace]:
    """Traces of different problems; `resid(layer, seed)` is what a layer leaves, pos d_model."""
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
        base -= np.outer(base @ WAY, WAY) / (WAY @ WAY)  # nothing else along the way
        return base + (layer == PLANTED) * np.outer(signs[seed], WAY)

    return problems(20, resid), labels


def test_a_planted_direction_is_found_exactly_and_in_no_other_layer(planted):
    found = linear_probe(*planted)
    assert float(found["accuracy"][PLANTED]) == 1 and float(found["p"][PLANTED]) == 1 / 51
    assert float(found["low"][PLANTED]) == wilson_interval(20, 20)[0] and float(found["high"][PLANTED]) == 1
    way = found["direction"].sel(layer=PLANTED, label="b").values
    assert way @ WAY / np.linalg.norm(way) / np.linalg.norm(WAY) > 0.99
    assert np.allclose(found["direction"].sum("label"), 0, atol=1e-9)
    for layer in (0, 2):
        assert float(found["accuracy"][layer]) <= float(found["null"][layer]) < 0.7
        assert float(found["p"][layer]) > 0.05
    assert float(found["gain_low"][PLANTED]) > 0.3 and float(found["selectivity"][PLANTED]) > 0.3
    assert found.attrs["n"] == 20 * COUNT and found.attrs["n_problems"] == 20
    assert found["accuracy"].attrs["shuffled"] == "within each problem"


def test_the_probe_is_scikit_learns_ridge_classifier():
    rng = np.random.default_rng(1)
    x, fold = rng.normal(size=(200, 12)), rng.integers(0, 4, 200)
    tasks = np.stack([(x[:, 0] > 0) + (x[:, 1] > 0.3) * 1 + 0, rng.integers(0, 3, 200)])
    ours = _cross_predict(_ridge(3.0), x, tasks, 3, fold)
    theirs = make_pipeline(StandardScaler(), RidgeClassifier(alpha=3.0))
    for said, y in zip(ours, tasks):
        assert np.array_equal(said, np.asarray(cross_val_predict(theirs, x, y, cv=PredefinedSplit(fold))))


def test_what_the_token_tells_is_no_merit_of_the_stream():
    """The stream holds the token and no more: any labels of tokens are read off it, and a model is not needed."""
    eye = np.eye(made.VOCAB)[:, : made.WIDTH] * 3
    traces = problems(30, lambda layer, seed: eye[made.manifest(COUNT, seed=seed).tokens])
    labels = [["even" if token % 2 == 0 else "odd" for token in trace.tokens] for trace in traces]
    found = linear_probe(traces, labels)
    assert (found["accuracy"] == 1).all() and float(found["baseline"]) == 1
    assert (found["gain"] == 0).all() and (found["gain_high"] == 0).all()
    assert float(abs(found["selectivity"]).max()) < 0.02
    named = linear_probe(traces, labels, token_identity=[["same"] * COUNT for _ in traces])
    assert np.isnan(named["control"]).all() and named.attrs["n_identities"] == 1
    assert float(named["baseline"]) < 0.7 and float(named["gain_low"].min()) > 0.2


def test_runs_of_one_question_are_never_on_both_sides():
    """A stream that only says which problem it is: read by heart it would be right each time, fairly it is chance."""
    eye = np.eye(40)
    rng = np.random.default_rng(2)
    answer = rng.choice(["yes", "no"], 20).tolist()
    traces = []
    for run in range(40):
        manifest = replace(made.manifest(COUNT, seed=run % 20), created=f"{2026 + run}-01-02T03:04:05+00:00")
        rows = np.repeat(eye[run % 20][None], COUNT, 0)
        traces.append(wb.Trace(manifest, {f"blocks.{n}.hook_resid_post": rows.astype("f4") for n in range(3)}))
    found = linear_probe(traces, [[said] * COUNT for said in answer * 2])
    assert found.attrs["n_problems"] == 20 and found.attrs["shuffled"] == "among problems"
    assert float(found["accuracy"].max()) < 0.75 and float(found["p"].min()) > 0.05


def test_p_is_even_where_there_is_nothing_to_find():
    p = []
    for trial in range(40):
        traces = problems(8, lambda layer, seed: noise(layer, 1000 * trial + seed))  # noqa: B023
        labels = np.random.default_rng(trial).choice(list("ab"), (8, COUNT)).tolist()
        p.append(float(linear_probe(traces, labels, layers=[0], n_folds=2, n_shuffles=19, seed=trial)["p"][0]))
    assert np.mean(np.array(p) <= 0.1) <= 0.25 and 0.4 < np.mean(p) < 0.65  # 0.1 and 0.525 are expected


def test_another_order_of_the_streams_numbers_gives_the_same_figures(planted):
    traces, labels = planted
    order = np.random.default_rng(3).permutation(made.WIDTH)
    turned = problems(20, lambda layer, seed: traces[seed]["resid_post", layer][:, order])
    one, other = (linear_probe(those, labels, n_shuffles=5, layers=[1, 2]) for those in (traces, turned))
    for name in ("accuracy", "low", "null", "control", "gain"):
        assert np.array_equal(one[name], other[name]), name
    assert np.allclose(one["direction"][..., order], other["direction"], atol=1e-6)


def test_places_without_a_label_do_not_count_and_one_place_a_problem_is_a_wilson_interval(planted):
    traces, labels = planted
    few = [[label if i == 4 else None for i, label in enumerate(those)] for those in labels]
    found = linear_probe(traces, few, layers=[PLANTED, 2], n_shuffles=5)
    hits = round(float(found["accuracy"][1]) * 20)
    assert found.attrs["n"] == 20 and found["layer"].values.tolist() == [PLANTED, 2]
    assert (float(found["low"][1]), float(found["high"][1])) == wilson_interval(hits, 20)


def test_pocket_knows_the_value_of_a_step_before_it_writes_it(measured):
    model, rng = wb.Model("pocket"), random.Random(1)
    traces, labels, before = [], [], []
    for _ in range(25):
        problem = make("variables", rng, length=4, split="test")
        rendered = render(problem, "high")
        trace = model.trace(rendered.ids, record="blocks.*.hook_resid_post")
        value: list[str | None] = [None] * len(trace)
        for step, part in zip(problem.steps, rendered.steps):
            if step.kind == "compute":
                value[part.stop - 2] = step.value  # at the last `=`, which is the same token each time
        traces.append(trace)
        labels.append(value)
        before.append(["", *trace.str_tokens[:-1]])
    found = linear_probe(traces, labels, n_shuffles=20, token_identity=before)
    accuracy = found["accuracy"].values
    measured(f"value of a step, read at its `=`, by layer: {accuracy.round(2)}; chance {found['null'].values.round(2)}")
    assert (accuracy[3:] > 0.9).all() and (found["p"][3:] < 0.05).all() and (found["gain_low"][3:] > 0.5).all()
    assert accuracy[0] < 0.35  # the first layer only sees its window


def test_what_cannot_be_probed_is_refused(planted, monkeypatch):
    traces, labels = planted
    with pytest.raises(ValueError, match="labels must be one list for each of the 20 traces, got 19 lists"):
        linear_probe(traces, labels[:-1])
    with pytest.raises(ValueError, match=r"one entry for each of the 9 positions .*, got 3"):
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
