"""Logit lens, prediction depth and forking tokens: exact on arrays with known answers."""

import numpy as np
import pytest

import workbench as wb
from tests.constructed import V, constructed
from tests.model.models import some_tokens, tiny
from tests.traces import made
from workbench.analysis.lens import forking_tokens, logit_lens, prediction_depth
from workbench.errors import NotRecorded


def lens_trace(ids: np.ndarray, kl: np.ndarray) -> wb.Trace:
    n_layers, n = ids.shape
    config = made.CONFIG | {"n_layers": n_layers, "layer_types": ["full_attention"] * n_layers}
    arrays = {"lens_ids": ids[..., None], "lens_kl": kl.astype("f4")}
    return wb.Trace(made.manifest(n, model=made.manifest().model | {"config": config}), arrays)


def test_the_last_layer_of_the_lens_is_the_model_itself():
    trace = tiny().trace(some_tokens(40), record="lens")
    lens = logit_lens(trace)
    k = lens.sizes["rank"]
    assert np.array_equal(lens["token"][-1], trace["top_ids"][:, :k])
    assert np.allclose(lens["logprob"][-1], trace["top_logprobs"][:, :k], atol=1e-5)
    assert float(abs(lens["kl"][-1]).max()) < 1e-5 and float(lens["kl"].min()) > -1e-5
    assert np.allclose(lens["entropy"][-1], trace["entropy"], atol=1e-5)
    assert float(lens["entropy"].max()) <= np.log(trace.config["d_vocab"]) + 1e-5


def test_prediction_depth_is_the_layer_of_the_induction_head():
    """The induction head in layer 1 makes the prediction; nothing changes after it."""
    tokens = [V - 1, *range(40), *range(40)]
    trace = constructed().trace(tokens, record="lens")
    depth = prediction_depth(trace)
    assert (depth[42:-1] == 1).all()
    assert (prediction_depth(trace, kl=0.05)[42:-1] >= 1).all()
    lens = logit_lens(trace)
    assert [int(n) for n in lens["token"][1, 42:80, 0]] == tokens[43:81]


def test_prediction_depth_is_the_first_layer_after_the_last_change():
    ids = np.array([[7, 1, 5, 2], [7, 7, 7, 2], [7, 7, 5, 2], [7, 7, 5, 9]])
    kl = np.array([[0.4, 2, 9, 1], [0.2, 0.4, 0.1, 1], [0.1, 0.6, 0.2, 1], [0, 0, 0, 0]])
    trace = lens_trace(ids, kl)
    assert prediction_depth(trace).values.tolist() == [0, 1, 2, 3]
    assert prediction_depth(trace, kl=0.5).values.tolist() == [0, 3, 1, 3]
    deep = [prediction_depth(trace, kl=g).values for g in (0.05, 0.3, 1.5)]
    assert (deep[0] >= deep[1]).all() and (deep[1] >= deep[2]).all()


@pytest.mark.parametrize("top_fraction", [0.2, 0.5, 1.0])
def test_forking_tokens_are_the_generated_positions_of_highest_entropy(top_fraction):
    entropy = np.arange(9, dtype="f4")[::-1]  # the prompt has the highest entropy and does not count
    trace = wb.Trace(made.manifest(prompt_length=4), {"entropy": entropy.copy()})
    forks = forking_tokens(trace, top_fraction)
    assert forks["pos"].values.tolist() == [4, 5, 6, 7, 8][: int(np.ceil(5 * top_fraction))]
    assert forks.values.tolist() == [5, 4, 3, 2, 1][: int(np.ceil(5 * top_fraction))]


def test_invalid_fractions_and_runs_without_generation_are_refused():
    trace = wb.Trace(made.manifest(), {"entropy": np.zeros(9, "f4")})
    with pytest.raises(ValueError, match="above 0 and at most 1, got 0"):
        forking_tokens(trace, 0)
    with pytest.raises(NotRecorded, match="nothing was generated"):
        forking_tokens(trace)


def test_missing_lens_is_reported_with_the_record_option():
    with pytest.raises(NotRecorded, match="record='lens'"):
        logit_lens(wb.Trace(made.manifest(), {}))
