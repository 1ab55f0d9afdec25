"""Paths through the residual stream: exact on constructed lines, invariant under rotation, never of fitted problems."""

import random
from dataclasses import replace

import numpy as np
import pytest
from sklearn.decomposition import PCA

import workbench as wb
from tests.traces import made
from workbench.analysis.trajectories import resid_basis, resid_trajectory, step_cosine
from workbench.errors import NotRecorded
from workbench.pocket.families import make
from workbench.pocket.rendering import render

COUNT, STEPS = 12, [slice(1, 3), slice(3, 6), slice(6, 8), slice(8, 11)]
DIRECTION, ORTHOGONAL = np.linalg.qr(np.random.default_rng(3).normal(size=(made.WIDTH, 2)))[0].T
ORIGIN = np.random.default_rng(4).normal(size=made.WIDTH)


def trace(resid, seed: int) -> wb.Trace:
    """A trace with `resid(layer)` (pos d_model) as the layer's output."""
    arrays = {f"blocks.{layer}.hook_resid_post": resid(layer).astype("f4") for layer in range(made.LAYERS)}
    return wb.Trace(made.manifest(COUNT, seed=seed), arrays)


def noise(seed: int) -> wb.Trace:
    return trace(lambda layer: np.random.default_rng((layer, seed)).normal(size=(COUNT, made.WIDTH)), seed)


def walk(seed: int, places: list[float]) -> wb.Trace:
    """Each step is at its place along one direction, scaled by `layer + 1`, with noise in an orthogonal one."""
    along = np.zeros(COUNT)
    for part, place in zip(STEPS, places):
        along[part] = place
    jitter = np.random.default_rng(seed).normal(size=COUNT) * 1e-3
    return trace(lambda layer: ORIGIN + (layer + 1) * (np.outer(along, DIRECTION) + np.outer(jitter, ORTHOGONAL)), seed)


@pytest.fixture(scope="module")
def basis():
    return resid_basis([walk(seed, [0, 1, 2, 3]) for seed in range(5)], [STEPS] * 5, n_components=2)


def test_a_straight_path_is_recovered(basis):
    dataset = resid_trajectory(walk(7, [1, 2, 5, 6]), basis, STEPS)
    for layer in range(made.LAYERS):
        scale = layer + 1
        assert np.allclose(basis["direction"][layer, 0], DIRECTION, atol=1e-3)  # with this sign
        assert np.allclose(dataset["path"][layer, :, 0], scale * (np.array([1, 2, 5, 6]) - 1.5), atol=1e-3)
    assert np.allclose(basis["explained"][:, 0], 1, atol=1e-5) and np.allclose(dataset["explained"][:, 0], 1, atol=1e-5)
    assert np.array_equal(dataset["progress"][:, 0], [1, 1, 1])
    assert np.allclose(dataset["p"][:, 0], 2 / 24, atol=0.03)  # two of 4! orders have the same |rho|
    back = resid_trajectory(walk(8, [6, 5, 2, 1]), basis, STEPS)
    assert np.allclose(back["progress"][:, 0], -1)
    assert dataset["start"].values.tolist() == [1, 3, 6, 8] and dataset["stop"].values.tolist() == [3, 6, 8, 11]


def test_step_coordinates_are_means_over_their_tokens(basis):
    dataset = resid_trajectory(noise(9), basis, STEPS)
    for number, part in enumerate(STEPS):
        assert np.allclose(dataset["tokens"][:, part].mean("pos"), dataset["path"][:, number], atol=1e-6)


def test_basis_equals_scikit_learns_pca():
    others = [noise(seed) for seed in range(6)]
    dataset = resid_basis(others, [STEPS] * 6, n_components=4)
    for layer in range(made.LAYERS):
        rows = np.concatenate([[t["resid_post", layer][part].mean(0) for part in STEPS] for t in others])
        expected = PCA(4).fit(rows)
        assert np.allclose(dataset["explained"][layer], expected.explained_variance_ratio_, atol=1e-5)
        signs = (dataset["direction"][layer].values * expected.components_).sum(1)
        assert np.allclose(np.abs(signs), 1, atol=1e-4)
    assert dataset.attrs["n"] == 24 and dataset.attrs["n_problems"] == 6


def test_all_components_reconstruct_the_stream():
    dataset = resid_basis([noise(seed) for seed in range(6)], [STEPS] * 6, n_components=made.WIDTH)
    assert np.allclose(dataset["explained"].sum("component"), 1)
    run = noise(9)
    shown = resid_trajectory(run, dataset, STEPS)
    assert np.allclose(shown["explained"].sum("component"), 1)
    reconstructed = shown["tokens"].values @ dataset["direction"].values + dataset["mean"].values[:, None]
    assert np.allclose(reconstructed, run["resid_post"], atol=1e-5)


def test_paths_are_invariant_under_rotation():
    turn = np.linalg.qr(np.random.default_rng(8).normal(size=(made.WIDTH, made.WIDTH)))[0]
    plain = [noise(seed) for seed in range(6)]
    turned = [trace(lambda layer, t=t: t["resid_post", layer] @ turn, seed) for seed, t in enumerate(plain)]
    one, other = (resid_basis(run_set[1:], [STEPS] * 5) for run_set in (plain, turned))
    assert np.allclose(one["direction"].values @ turn, other["direction"], atol=1e-4)
    a, b = resid_trajectory(plain[0], one, STEPS), resid_trajectory(turned[0], other, STEPS)
    for name in ("path", "tokens", "explained", "progress", "p"):
        assert np.allclose(a[name], b[name], atol=1e-4), name
    for basis_a, basis_b in ((None, None), (one, other)):
        cosine_a, cosine_b = step_cosine(plain[0], STEPS, basis=basis_a), step_cosine(turned[0], STEPS, basis=basis_b)
        assert np.allclose(cosine_a, cosine_b, atol=1e-5)


def test_cosines_of_steps_are_exact():
    axes = np.eye(made.WIDTH)
    rows = np.zeros((COUNT, made.WIDTH))
    rows[1:3], rows[3:6], rows[6:8], rows[8:11] = 2 * axes[0], -axes[0], axes[1], axes[0] + axes[1]
    dataset = step_cosine(trace(lambda layer: rows * (layer + 1), 1), STEPS)
    half = np.sqrt(0.5)
    expected = [[1, -1, 0, half], [-1, 1, 0, -half], [0, 0, 1, half], [half, -half, half, 1]]
    assert np.allclose(dataset, expected, atol=1e-6) and dataset.dims == ("layer", "step", "key_step")


def test_the_mean_of_other_problems_is_subtracted(basis):
    dataset = step_cosine(walk(7, [1, 1, 2, 2]), STEPS, basis=basis)  # the mean stands at 1.5
    assert np.allclose(dataset[:, 0, 1], 1, atol=1e-4) and np.allclose(dataset[:, 0, 2], -1, atol=1e-4)


def test_a_problem_in_the_fit_is_refused_also_for_another_run(basis):
    same = replace(made.manifest(COUNT, seed=3), created="2027-01-02T03:04:05+00:00", numerics={"dtype": "bfloat16"})
    other = walk(3, [5, 4, 3, 2])
    reconstructed = wb.Trace(same, {name: other[name] for name in other.names()})
    with pytest.raises(ValueError, match="fitted on 5 problems including this one"):
        resid_trajectory(reconstructed, basis, STEPS)
    with pytest.raises(ValueError, match="fit it on other problems"):
        step_cosine(reconstructed, STEPS, basis=basis)


def test_a_basis_of_other_pocket_problems_explains_a_new_problem():
    model, rng = wb.Model("pocket"), random.Random(4)
    problems = [make("variables", rng, length=3, split="test") for _ in range(8)]
    texts = [render(problem, "high").ids for problem in problems]
    traces = [model.trace(ids, record="blocks.*.hook_resid_post") for ids in texts]
    dataset = resid_trajectory(traces[0], resid_basis(traces[1:]))
    assert dataset.sizes["step"] == len(wb.steps(traces[0])) > 3
    assert float(dataset["explained"].sum("component").min()) > 0.2  # three random directions of 128: .02


def test_invalid_trajectory_inputs_are_refused(basis):
    with pytest.raises(NotRecorded, match="give `segments`"):
        resid_basis([noise(0)])
    with pytest.raises(ValueError, match=r"4 components need more than 4 steps .*, got 4 steps of 10"):
        resid_basis([noise(0)], [STEPS], n_components=4)
    with pytest.raises(NotRecorded, match="record='resid_post'"):
        resid_trajectory(wb.Trace(made.manifest(COUNT, seed=9), {}), basis, STEPS)
    two = resid_trajectory(noise(9), basis, STEPS[:2])
    assert np.isnan(two["progress"]).all() and np.isnan(two["p"]).all()
