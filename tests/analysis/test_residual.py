"""The residual stream: exact on arrays with known answers."""

import numpy as np

import workbench as wb
from tests.traces import made
from workbench.analysis.residual import massive_activations, resid_cosine


def test_cosines_and_massive_activations_match_the_planted_values():
    rng = np.random.default_rng(0)
    resid = rng.normal(size=(made.LAYERS, 9, made.WIDTH)).astype("f4")
    resid[1, 4, 7], resid[2, 0, 3] = 5000, -3000
    arrays = {}
    for layer in range(made.LAYERS):
        arrays[f"blocks.{layer}.hook_resid_post"] = resid[layer]
        arrays[f"blocks.{layer}.hook_resid_pre"] = resid[layer] * (2 if layer else -1)
    trace = wb.Trace(made.manifest(), arrays)
    cosine = resid_cosine(trace)
    assert np.allclose(cosine[0], -1) and np.allclose(cosine[1:], 1)
    massive = massive_activations(trace)
    assert massive.values.tolist() == [5000, -3000]
    assert [massive[name].values.tolist() for name in ("layer", "pos", "d_model")] == [[1, 2], [4, 0], [7, 3]]
    assert massive_activations(trace, min_value=4000).sizes["activation"] == 1
