"""Steering: a planted direction is recovered and has its effect, scale 0 has none, and controls match in length."""

import numpy as np
import pytest

import workbench as wb
from tests.constructed import V, constructed
from tests.model.models import some_tokens, tiny
from workbench.errors import ArgumentTypeError, EditError, HookNameError, NotRecorded, PromptError, SelectionError
from workbench.experiments.steering import steering_effect, steering_vector


@pytest.fixture(scope="module")
def traces():
    return [tiny().trace(some_tokens(40, seed), record="residuals") for seed in (0, 1)]


@pytest.fixture(scope="module")
def planted():
    """Vectors of token 8 minus 9, and of 20 minus 21, in the hand-set model before its first layer."""
    trace = constructed().trace([8, 9, 8, 20, 21, 9], record="residuals")
    effect = [([0, 2], [1, 5]), ([3], [4])]
    return [steering_vector([(trace, a)], [(trace, b)], 0, site="resid_pre") for a, b in effect]


def gap(trace) -> float:
    return float(trace["logits"][-1, 8] - trace["logits"][-1, 9])


def test_a_vector_is_the_difference_of_means_over_all_positions(traces):
    trace_a, trace_b = traces
    positive, negative = [(trace_a, slice(3, 9)), (trace_b, [20, 30, 31])], [(trace_a, 12), (trace_b, range(5))]
    vector = steering_vector(positive, negative, 2)
    a = np.concatenate([trace_a["resid_post", 2][3:9], trace_b["resid_post", 2][[20, 30, 31]]])
    b = np.concatenate([trace_a["resid_post", 2][[12]], trace_b["resid_post", 2][:5]])
    assert np.allclose(vector, a.mean(0) - b.mean(0), atol=1e-6)
    assert vector.attrs["norm"] == pytest.approx(np.linalg.norm(a.mean(0) - b.mean(0)), rel=1e-5)
    assert vector.attrs["stream_norm"] == pytest.approx(np.linalg.norm(np.concatenate([a, b]), axis=1).mean(), rel=1e-5)
    assert [vector.attrs[name] for name in ("n_positive", "n_negative", "n_traces")] == [9, 6, 2]
    assert np.array_equal(steering_vector(negative, positive, 2), -vector)
    assert (steering_vector(positive, positive, 2) == 0).all()


def test_the_planted_direction_is_recovered_exactly(planted):
    expected = np.zeros(256)
    expected[8], expected[9] = 1, -1
    assert np.array_equal(planted[0], expected) and planted[0].attrs["point"] == "blocks.0.hook_resid_pre"
    assert planted[0].attrs["norm"] == pytest.approx(2**0.5) and planted[0].attrs["stream_norm"] == 1


def test_adding_the_difference_of_two_tokens_turns_one_into_the_other(planted):
    """The induction head then copies the other token; other directions of the same length do almost nothing."""
    model = constructed()
    eight, nine = ([V - 1, 5, 6, token, *range(20, 40), 6] for token in (8, 9))
    effect = steering_effect(
        model, nine, planted[0], gap, control_vectors=planted[1:], scales=[0, 0.5, 1], positions=3, record="logits"
    )
    baselines = [gap(model.trace(tokens, record="logits")) for tokens in (nine, eight)]
    assert float(effect["steered"].sel(scale=0)) == baselines[0] == effect["steered"].attrs["plain"]
    assert float(effect["steered"].sel(scale=1)) == baselines[1]
    assert baselines[0] < float(effect["steered"].sel(scale=0.5)) < baselines[1]
    moved = abs(effect[["random", "unrelated"]].sel(scale=1) - baselines[0])
    assert float(moved["random"].max()) < 0.5 * (baselines[1] - baselines[0])
    assert float(moved["unrelated"].max()) < 0.7 * (baselines[1] - baselines[0])
    attrs = effect["steered"].attrs
    assert attrs["p"] == pytest.approx(1 / 9) and len(attrs["null"]) == 8 and len(attrs["null_unrelated"]) == 1
    assert attrs["slope"] == pytest.approx(baselines[1] - baselines[0], rel=0.2) and attrs["slope"] > 2 * max(
        attrs["null"]
    )


def test_at_scale_zero_all_runs_are_identical(traces):
    trace_a, trace_b = traces
    vector = steering_vector([(trace_a, slice(0, 9))], [(trace_a, slice(9, 20))], 1)
    other = steering_vector([(trace_b, slice(0, 9))], [(trace_b, slice(9, 20))], 3)
    effect = steering_effect(
        tiny(),
        some_tokens(30),
        vector,
        lambda t: float(t["entropy"].sum()),
        control_vectors=[other],
        scales=[0, 3],
        n_random_controls=3,
    )
    plain = float(tiny().trace(some_tokens(30), record="")["entropy"].sum())
    for name in ("steered", "random", "unrelated"):
        assert (effect[name].sel(scale=0) == plain).all()
        assert (effect[name].sel(scale=3) != plain).all()


def test_the_metric_equals_that_of_a_run_under_the_edit(traces):
    trace_a, trace_b = traces
    model, prompt = tiny(), some_tokens(30)
    vector = steering_vector([(trace_a, slice(0, 9))], [(trace_a, slice(9, 20))], 1)
    other = steering_vector([(trace_b, slice(0, 9))], [(trace_b, slice(9, 20))], 3)

    def token_hash(trace) -> float:
        return float(hash(tuple(trace.tokens)) % 1000_003)

    effect = steering_effect(
        model, prompt, vector, token_hash, control_vectors=[other], scales=[4, -4], max_tokens=6, n_random_controls=2
    )
    for scale in (4, -4):
        with model.edit("blocks.1.hook_resid_post", wb.steer(vector.values, scale)):
            run = model.generate(prompt, max_tokens=6, record="")
        assert float(effect["steered"].sel(scale=scale)) == token_hash(run)
        rescaled = other.values * vector.attrs["norm"] / other.attrs["norm"]
        with model.edit("blocks.1.hook_resid_post", wb.steer(rescaled, scale)):
            assert float(effect["unrelated"].sel(scale=scale)[0]) == token_hash(
                model.generate(prompt, max_tokens=6, record="")
            )
    assert effect["steered"].attrs["plain"] == token_hash(model.generate(prompt, max_tokens=6, record=""))
    assert not model.active_edits()


def test_the_stream_moves_by_the_vectors_length_for_all_directions(traces):
    trace_a, trace_b = traces
    vector = steering_vector([(trace_a, slice(0, 9))], [(trace_a, slice(9, 20))], 2)
    other = steering_vector([(trace_b, slice(0, 9))], [(trace_b, slice(9, 20))], 2)
    plain = tiny().trace(some_tokens(30), record="resid_post")["resid_post", 2]
    unit = vector.values / vector.attrs["norm"]

    def along(trace) -> float:
        return float(((trace["resid_post", 2] - plain) @ unit).mean())

    def length(trace) -> float:
        return float(np.linalg.norm(trace["resid_post", 2] - plain, axis=-1).mean())

    options = {"control_vectors": [other], "scales": [0.5, 2], "n_random_controls": 3, "record": "resid_post"}
    effect = steering_effect(tiny(), some_tokens(30), vector, along, **options)
    assert np.allclose(effect["steered"], vector.attrs["norm"] * np.array([0.5, 2]), rtol=1e-4)
    assert effect["steered"].attrs["slope"] == pytest.approx(vector.attrs["norm"], rel=1e-4)
    lengths = steering_effect(tiny(), some_tokens(30), vector, length, **options)
    for name in ("steered", "random", "unrelated"):
        assert np.allclose(lengths[name], vector.attrs["norm"] * np.array([0.5, 2]), rtol=1e-4)
    repeated = steering_effect(tiny(), some_tokens(30), vector, along, **options)
    assert effect.identical(repeated)
    assert not np.allclose(
        effect["random"], steering_effect(tiny(), some_tokens(30), vector, along, seed=1, **options)["random"]
    )


def test_invalid_steering_inputs_are_refused(traces):
    trace_a, _ = traces
    vector = steering_vector([(trace_a, slice(0, 9))], [(trace_a, slice(9, 20))], 1)
    with pytest.raises(NotRecorded, match="record="):
        steering_vector([(tiny().trace(some_tokens(20), record=""), 3)], [(trace_a, 3)], 1)
    with pytest.raises(SelectionError, match="position must be between 0 and 39, got 40"):
        steering_vector([(trace_a, 40)], [(trace_a, 3)], 1)
    with pytest.raises(HookNameError, match=r"site must have d_model values per position .*, got 'z'"):
        steering_vector([(trace_a, 4)], [(trace_a, 3)], 1, site="z")
    with pytest.raises(ArgumentTypeError, match=r"lists of pairs \(trace, positions\), got a Trace"):
        steering_vector([trace_a], [(trace_a, 3)], 1)  # pyright: ignore[reportArgumentType]
    with pytest.raises(PromptError, match="needs positions on both sides"):
        steering_vector([(trace_a, 4)], [], 1)
    with pytest.raises(EditError, match="control_vectors must hold at least one"):
        steering_effect(tiny(), some_tokens(9), vector, len, control_vectors=[])
    with pytest.raises(EditError, match="control_vectors must hold at least one"):
        steering_effect(tiny(), some_tokens(9), vector, len, control_vectors=[vector, 0 * vector])
    with pytest.raises(EditError, match="vector must be nonzero and have its hook point"):
        steering_effect(tiny(), some_tokens(9), 0 * vector, len, control_vectors=[vector])
