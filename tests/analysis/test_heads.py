"""Heads: exact on a hand-set model, correct on random ones, and the parts always sum to 1."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import xarray as xr

import workbench as wb
from tests.constructed import WINDOW, V, constructed
from tests.model.models import some_tokens, tiny
from tests.traces import made
from workbench.analysis.heads import (
    breakdown,
    head_scores,
    receiver_heads,
    retrieval_scores,
    rollout,
    sink_mass,
    step_attention,
)
from workbench.errors import NotRecorded

PREVIOUS, SINKING, EVEN, INDUCTION = (0, 0), (0, 1), (0, 2), (1, 0)


def repeated(period: int, times: int = 3) -> list[int]:
    """The same tokens repeated, after one that occurs only once."""
    return [V - 1] + torch.randperm(V - 1, generator=torch.Generator().manual_seed(period))[:period].tolist() * times


@pytest.fixture(scope="module")
def trace():
    return constructed().trace(repeated(50), record="attention patterns")


@pytest.fixture(scope="module")
def random():
    return tiny().trace(some_tokens(60), record="attention steps")


def head(dataset: xr.DataArray, which: tuple[int, int]) -> float:
    return float(dataset.sel(layer=which[0], head=which[1]))


def test_only_the_constructed_heads_score_high(trace):
    scores = head_scores(trace)
    for name, made_for in (("previous_token", PREVIOUS), ("induction", INDUCTION)):
        assert head(scores[name], made_for) > 0.999
        others = scores[name].copy()
        others[made_for] = 0
        assert float(others.max()) < 0.12, name  # the even heads give each token of the window its twelfth at most
    assert float(scores["duplicate_token"].max()) < 0.01
    assert scores.attrs["n"] == {"previous_token": 150, "duplicate_token": 100, "induction": 100}


@pytest.mark.parametrize("period", [8, 50])
def test_an_induction_head_scores_one_at_any_period_and_zero_beyond_its_window(period, trace):
    scores = head_scores(constructed().trace(repeated(period), record="attention"))["induction"]
    assert head(scores, INDUCTION) > 0.999
    beyond = scores.sel(layer=[0, 2], head=[0, 1]) if period > WINDOW else scores.sel(layer=0, head=1)
    assert float(abs(beyond).max()) < 1e-6


def test_a_uniform_head_scores_one_over_the_number_of_visible_keys(trace):
    seen = np.minimum(np.arange(1, len(trace) + 1), WINDOW)
    assert head(head_scores(trace)["previous_token"], EVEN) == pytest.approx((1 / seen[1:]).mean(), rel=1e-5)
    shares = breakdown(trace)
    assert head(shares["self"], EVEN) == pytest.approx((1 / seen).mean(), rel=1e-5)
    assert head(shares["distance"], EVEN) == pytest.approx(((seen - 1) / 2).mean(), rel=1e-5)


def test_sinks_are_what_they_were_set_to(trace):
    mass = sink_mass(trace)
    assert float(mass.sel(layer=0, head=1).min()) > 0.999999 and float(mass.sel(layer=0, head=2).max()) < 1e-6
    induction = mass.sel(layer=1, head=0)
    assert float(induction[1:51].min()) > 0.999 and float(induction[51:].max()) < 1e-3  # attends from the repetition on
    assert np.asarray(mass.attrs["logit"])[0].tolist() == [40, 40, -40, -40]


def test_mean_distance_of_the_induction_head_follows_the_period(trace):
    shares = breakdown(trace)
    # second period: attends 49 back; third: 49 and 99 back with half each; the first token attends to itself
    assert head(shares["distance"], INDUCTION) == pytest.approx((50 * 49 + 50 * 74) / 101, rel=1e-3)
    assert head(shares["beyond"], INDUCTION) == pytest.approx(100 / 151, rel=1e-3)


@pytest.mark.parametrize("queries", [7, 1000])
def test_breakdown_sums_to_one_for_any_query_chunk(random, queries, monkeypatch):
    monkeypatch.setattr("workbench.analysis.heads.QUERY_CHUNK", queries)
    shares = breakdown(random)
    parts = sum(shares[part] for part in ("sink", "self", "first", "local", "beyond"))
    assert np.allclose(parts, 1, atol=1e-5)
    for layer in (0, 2):
        assert float(shares["beyond"].sel(layer=layer).max()) == 0
    pattern = np.stack([wb.attention.pattern(random, layer).values for layer in range(4)]).astype(float)
    behind = np.arange(60)[:, None] - np.arange(60)
    assert np.allclose(shares["distance"], (pattern * behind).sum((-1, -2)) / pattern.sum((-1, -2)), atol=1e-5)


def test_step_attention_pooled_afterwards_equals_that_recorded_while_running():
    model = wb.Model("pocket")
    trace = model.generate(wb.chat("What is 247+138?", reasoning="high"), record="attention steps")
    assert len(wb.steps(trace)) > 1
    pooled = step_attention(trace)
    recomputed = step_attention(trace, wb.steps(trace))
    assert np.allclose(pooled, recomputed, atol=1e-4)


def test_step_attention_rows_sum_to_one_minus_sink(random):
    parts = [slice(0, 20), slice(20, 41), slice(41, 60)]  # all tokens
    pooled = step_attention(random, parts)
    sink = np.stack([sink_mass(random).values[..., part].mean(-1) for part in parts], -1)
    assert np.allclose(pooled.sum("key_step"), 1 - sink, atol=1e-5)
    assert float(abs(np.triu(pooled.values, 1)).max()) == 0


@pytest.mark.parametrize("n", [10, 50, 100])
def test_kurtosis_of_a_single_attended_step_matches_the_formula(n):
    values = np.zeros((1, 2, n + 4, n + 4))
    values[0, 0, :, 3] = 1.0
    receivers = receiver_heads(xr.DataArray(values, dims=("layer", "head", "step", "key_step")))
    assert float(receivers["kurtosis"][0, 0]) == pytest.approx((n**2 - 3 * n + 3) / (n - 1) - 3)
    assert receivers["vertical"].values[0, 0, :-4].argmax() == 3 and np.isnan(receivers["kurtosis"][0, 1])
    assert int(np.isnan(receivers["vertical"][0, 0]).sum()) == 4


def test_receiver_heads_refuse_too_few_steps():
    few = xr.DataArray(np.zeros((1, 1, 6, 6)), dims=("layer", "head", "step", "key_step"))
    with pytest.raises(ValueError, match=r"6 steps are too few: .*, at least 7 are needed"):
        receiver_heads(few)


def test_only_the_copying_head_has_a_retrieval_score():
    model = constructed()
    prompt = repeated(50, 1) + repeated(50, 1)[1:2]
    trace = model.generate(prompt, max_tokens=8, record="attention")
    assert trace.tokens[len(prompt) :] == repeated(50)[2:10]  # it continues the repetition
    needle = slice(2, 30)
    scores = retrieval_scores(trace, needle)
    assert head(scores, INDUCTION) == 1
    assert float(scores.sel(layer=0, head=[0, 1]).max()) == 0 and float(scores.sel(layer=2).max()) == 0
    with pytest.raises(NotRecorded, match="nothing was copied"):
        retrieval_scores(trace, slice(40, 45))


def test_the_copying_head_is_found_among_tokens_that_stand_in_several_places():
    model = constructed()
    prompt = repeated(50, 2) + repeated(50, 1)[1:2]
    trace = model.generate(prompt, max_tokens=8, record="attention")
    written = slice(len(prompt), len(prompt) + 4)
    places = [slice(2, 6), slice(52, 56)]
    with pytest.raises(NotRecorded, match=r"nothing was copied.*give `answer`"):
        retrieval_scores(trace, places)  # each token is twice in the prompt
    scores = retrieval_scores(trace, places, written)
    assert head(scores, INDUCTION) == 1 and float(scores.sel(layer=2).max()) == 0
    assert scores.attrs == {"long_name": "retrieval score", "units": "share of copied tokens", "n": 4}
    assert head(retrieval_scores(trace, [slice(54, 60)], [written]), INDUCTION) <= 1
    assert retrieval_scores(trace, [slice(54, 60)], [written]).attrs["n"] == 2  # two of the four are in the needle
    with pytest.raises(NotRecorded, match="no token of `answer` is in it"):
        retrieval_scores(trace, slice(40, 45), written)


def test_a_needle_can_be_a_text_and_spaces_make_no_difference():
    trace = made.trace(9)
    texts = ["My", " name", " is", " Kay", ".", "Name", ":", "Kay", "."]
    trace = wb.Trace(replace(trace.manifest, str_tokens=texts), {n: trace.raw(n) for n in trace.names()})
    scores = retrieval_scores(trace, "Kay", trace.find("Kay")[1])
    assert scores.attrs["n"] == 1
    pattern = np.stack([wb.attention.pattern(trace, layer, queries=6).values for layer in range(3)])
    assert np.array_equal(scores.values, (pattern.argmax(-1) == 3) & (pattern.max(-1) > 0))
    with pytest.raises(NotRecorded, match="needle 'Ann' does not occur"):
        retrieval_scores(trace, "Ann")


def test_rollout_equals_the_product_of_mixed_patterns_and_rows_sum_to_one(random):
    flow = rollout(random)
    assert np.allclose(flow.sum("key"), 1) and float(flow.min()) >= 0
    pattern = np.stack([wb.attention.pattern(random, layer).values for layer in range(4)]).astype(float).mean(1)
    expected = np.eye(60)
    for layer in range(4):
        mixed = pattern[layer] + np.diag(1 - pattern[layer].sum(-1))
        expected = (mixed + np.eye(60)) / 2 @ expected
    assert np.allclose(flow, expected, atol=1e-5)


def test_scores_are_permuted_with_the_heads(random):
    """The same patterns in another order of heads give the same scores in that order."""
    order = [3, 1, 4, 0, 2, 9, 8, 5, 7, 6]  # of ten heads, five share keys
    recorded = {n: np.asarray(random.raw(n)) for n in random.names()}
    patterns = {f"blocks.{n}.attn.hook_pattern": wb.attention.pattern(random, n).values for n in range(4)}
    swapped = {
        name: value[order] if name.endswith(("hook_pattern", "hook_sink")) else value
        for name, value in (recorded | patterns).items()
        if not name.endswith(("rot_q", "rot_k"))
    }
    swapped["sinks"] = swapped["sinks"][:, order]
    from dataclasses import replace

    other = wb.Trace(replace(random.manifest, tensors={}), swapped)
    for measure in (head_scores, breakdown):
        a, b = measure(random), measure(other)
        for name in a.data_vars:
            assert np.allclose(a[name][:, order], b[name], atol=1e-6, equal_nan=True), name
    assert np.allclose(rollout(random), rollout(other), atol=1e-6)


def test_missing_patterns_are_reported_with_the_record_option():
    bare = wb.Trace(made.manifest(), {k: v for k, v in made.arrays().items() if "pattern" not in k})
    with pytest.raises(NotRecorded, match=r"It contains: [\w, ]+\. Run again with record='attention'"):
        breakdown(bare)
