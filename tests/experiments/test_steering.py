"""Steering: a planted direction is found and does what it says, none of it does nothing, controls stand beside it."""

import numpy as np
import pytest

import workbench as wb
from tests.constructed import V, constructed
from tests.model.models import some_tokens, tiny
from workbench.errors import EditError, HookNameError, NotRecorded, PromptError, SelectionError
from workbench.experiments.steering import steering_effect, steering_vector


@pytest.fixture(scope="module")
def traces():
    return [tiny().trace(some_tokens(40, seed), record="residuals") for seed in (0, 1)]


@pytest.fixture(scope="module")
def planted():
    """Of the token 8 against 9, and of 20 against 21, in the model set by hand, before its first layer."""
    trace = constructed().trace([8, 9, 8, 20, 21, 9], record="residuals")
    found = [([0, 2], [1, 5]), ([3], [4])]
    return [steering_vector([(trace, a)], [(trace, b)], 0, site="resid_pre") for a, b in found]


def gap(trace) -> float:
    return float(trace["logits"][-1, 8] - trace["logits"][-1, 9])


def test_a_vector_is_the_difference_of_the_means_over_all_places(traces):
    one, two = traces
    these, those = [(one, slice(3, 9)), (two, [20, 30, 31])], [(one, 12), (two, range(5))]
    vector = steering_vector(these, those, 2)
    a = np.concatenate([one["resid_post", 2][3:9], two["resid_post", 2][[20, 30, 31]]])
    b = np.concatenate([one["resid_post", 2][[12]], two["resid_post", 2][:5]])
    assert np.allclose(vector, a.mean(0) - b.mean(0), atol=1e-6)
    assert vector.attrs["norm"] == pytest.approx(np.linalg.norm(a.mean(0) - b.mean(0)), rel=1e-5)
    assert vector.attrs["stream_norm"] == pytest.approx(np.linalg.norm(np.concatenate([a, b]), axis=1).mean(), rel=1e-5)
    assert [vector.attrs[name] for name in ("n_positive", "n_negative", "n_traces")] == [9, 6, 2]
    assert np.array_equal(steering_vector(those, these, 2), -vector)
    assert (steering_vector(these, these, 2) == 0).all()


def test_the_planted_direction_is_found_exactly(planted):
    want = np.zeros(256)
    want[8], want[9] = 1, -1
    assert np.array_equal(planted[0], want) and planted[0].attrs["point"] == "blocks.0.hook_resid_pre"
    assert planted[0].attrs["norm"] == pytest.approx(2**0.5) and planted[0].attrs["stream_norm"] == 1


def test_adding_the_difference_of_two_tokens_makes_one_the_other(planted):
    """What the induction head copies is then the other token; directions of the same length do next to nothing."""
    model = constructed()
    eight, nine = ([V - 1, 5, 6, token, *range(20, 40), 6] for token in (8, 9))
    found = steering_effect(
        model, nine, planted[0], gap, control_vectors=planted[1:], scales=[0, 0.5, 1], positions=3, record="logits"
    )
    ends = [gap(model.trace(tokens, record="logits")) for tokens in (nine, eight)]
    assert float(found["steered"].sel(scale=0)) == ends[0] == found["steered"].attrs["plain"]
    assert float(found["steered"].sel(scale=1)) == ends[1]
    assert ends[0] < float(found["steered"].sel(scale=0.5)) < ends[1]
    moved = abs(found[["random", "unrelated"]].sel(scale=1) - ends[0])
    assert float(moved["random"].max()) < 0.5 * (ends[1] - ends[0])
    assert float(moved["unrelated"].max()) < 0.7 * (ends[1] - ends[0])
    about = found["steered"].attrs
    assert about["p"] == pytest.approx(1 / 9) and len(about["null"]) == 8 and len(about["null_unrelated"]) == 1
    assert about["slope"] == pytest.approx(ends[1] - ends[0], rel=0.2) and about["slope"] > 2 * max(about["null"])


def test_at_scale_nothing_no_run_differs_in_a_bit(traces):
    one, two = traces
    vector = steering_vector([(one, slice(0, 9))], [(one, slice(9, 20))], 1)
    other = steering_vector([(two, slice(0, 9))], [(two, slice(9, 20))], 3)
    found = steering_effect(
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
        assert (found[name].sel(scale=0) == plain).all()
        assert (found[name].sel(scale=3) != plain).all()


def test_what_is_measured_is_what_a_run_under_the_edit_does_read_or_written(traces):
    one, two = traces
    model, prompt = tiny(), some_tokens(30)
    vector = steering_vector([(one, slice(0, 9))], [(one, slice(9, 20))], 1)
    other = steering_vector([(two, slice(0, 9))], [(two, slice(9, 20))], 3)

    def written(trace) -> float:
        return float(hash(tuple(trace.tokens)) % 1000_003)

    found = steering_effect(
        model, prompt, vector, written, control_vectors=[other], scales=[4, -4], max_tokens=6, n_random_controls=2
    )
    for scale in (4, -4):
        with model.edit("blocks.1.hook_resid_post", wb.steer(vector.values, scale)):
            run = model.generate(prompt, max_tokens=6, record="")
        assert float(found["steered"].sel(scale=scale)) == written(run)
        rescaled = other.values * vector.attrs["norm"] / other.attrs["norm"]
        with model.edit("blocks.1.hook_resid_post", wb.steer(rescaled, scale)):
            assert float(found["unrelated"].sel(scale=scale)[0]) == written(
                model.generate(prompt, max_tokens=6, record="")
            )
    assert found["steered"].attrs["plain"] == written(model.generate(prompt, max_tokens=6, record=""))
    assert not model.active_edits()


def test_the_stream_moves_along_the_vector_by_its_length_and_random_directions_are_as_long(traces):
    one, two = traces
    vector = steering_vector([(one, slice(0, 9))], [(one, slice(9, 20))], 2)
    other = steering_vector([(two, slice(0, 9))], [(two, slice(9, 20))], 2)
    plain = tiny().trace(some_tokens(30), record="resid_post")["resid_post", 2]
    unit = vector.values / vector.attrs["norm"]

    def along(trace) -> float:
        return float(((trace["resid_post", 2] - plain) @ unit).mean())

    def length(trace) -> float:
        return float(np.linalg.norm(trace["resid_post", 2] - plain, axis=-1).mean())

    asked = {"control_vectors": [other], "scales": [0.5, 2], "n_random_controls": 3, "record": "resid_post"}
    found = steering_effect(tiny(), some_tokens(30), vector, along, **asked)
    assert np.allclose(found["steered"], vector.attrs["norm"] * np.array([0.5, 2]), rtol=1e-4)
    assert found["steered"].attrs["slope"] == pytest.approx(vector.attrs["norm"], rel=1e-4)
    long = steering_effect(tiny(), some_tokens(30), vector, length, **asked)
    for name in ("steered", "random", "unrelated"):
        assert np.allclose(long[name], vector.attrs["norm"] * np.array([0.5, 2]), rtol=1e-4)
    again = steering_effect(tiny(), some_tokens(30), vector, along, **asked)
    assert found.identical(again)
    assert not np.allclose(
        found["random"], steering_effect(tiny(), some_tokens(30), vector, along, seed=1, **asked)["random"]
    )


def test_what_cannot_steer_is_refused(traces):
    one, _ = traces
    vector = steering_vector([(one, slice(0, 9))], [(one, slice(9, 20))], 1)
    with pytest.raises(NotRecorded, match="record="):
        steering_vector([(tiny().trace(some_tokens(20), record=""), 3)], [(one, 3)], 1)
    with pytest.raises(SelectionError, match="position must be between 0 and 39, got 40"):
        steering_vector([(one, 40)], [(one, 3)], 1)
    with pytest.raises(HookNameError, match=r"site must have d_model values per position .*, got 'z'"):
        steering_vector([(one, 4)], [(one, 3)], 1, site="z")
    with pytest.raises(PromptError, match="needs positions on both sides"):
        steering_vector([(one, 4)], [], 1)
    with pytest.raises(EditError, match="control_vectors must hold at least one"):
        steering_effect(tiny(), some_tokens(9), vector, len, control_vectors=[])
    with pytest.raises(EditError, match="control_vectors must hold at least one"):
        steering_effect(tiny(), some_tokens(9), vector, len, control_vectors=[vector, 0 * vector])
    with pytest.raises(EditError, match="vector must be nonzero and have its hook point"):
        steering_effect(tiny(), some_tokens(9), 0 * vector, len, control_vectors=[vector])
