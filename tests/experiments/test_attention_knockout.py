"""Attention knockout: equal to full runs with edits, zero where there is no attention, with matched controls."""

from contextlib import ExitStack

import numpy as np
import pytest
import torch

import workbench as wb
from tests.constructed import V, constructed
from tests.model.models import some_tokens, tiny
from workbench.errors import ArgumentError, EditError, SelectionError
from workbench.experiments.attention_knockout import MODES, _control_edges, _CutEdges, attention_knockout
from workbench.experiments.cached_run import CachedRun
from workbench.recording.taps import Recorder

QUERIES, KEYS = slice(66, 80), slice(20, 70)


@pytest.fixture(scope="module")
def trace():
    return tiny().trace(some_tokens(90), record="")


def cut_by_hand(model, tokens, mode, layers, heads, queries, keys, min_distance=0) -> torch.Tensor:
    """Logits of a full run with edits."""
    n = len(tokens)
    at = torch.arange(n)
    edge = torch.zeros(n, n, dtype=torch.bool)
    edge[queries, keys] = True
    edge &= at[:, None] - at >= min_distance
    plain = Recorder([f"blocks.{layer}.attn.hook_v" for layer in layers])
    model.forward(torch.tensor([tokens]), plain)
    pattern, value = {}, {}

    def change(x, hook):
        x[:, heads] = x[:, heads].masked_fill(edge, -torch.inf if mode == "mask" else 0.0)
        return x

    def store(into):
        def store_value(x, hook):
            into[hook.layer] = x.clone()
            return x

        return store_value

    def mean(z, hook):
        v = plain[f"blocks.{hook.layer}.attn.hook_v"].mean(1, keepdim=True) - value[hook.layer]
        for head in heads:
            z[0, :, head] += (pattern[hook.layer][0, head] * edge) @ v[0, :, head // 5]
        return z

    point = {"mask": "hook_attn_scores", "zero": "hook_pattern"}.get(mode)
    with ExitStack() as edits:
        for layer in layers:
            prefix = f"blocks.{layer}.attn."
            if mode == "mean":
                edits.enter_context(model.edit(prefix + "hook_pattern", store(pattern)))
                edits.enter_context(model.edit(prefix + "hook_v", store(value)))
                edits.enter_context(model.edit(prefix + "hook_z", mean))
            else:
                edits.enter_context(model.edit(f"{prefix}{point}", change))
        return model.forward(torch.tensor([tokens]))[0]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    ("layers", "numbers", "heads", "min_distance"),
    [("all", [0, 1, 2, 3], None, 0), ("full", [1, 3], [2, 7], 12), ([2], [2], [0], 3)],
)
def test_a_knockout_equals_a_full_run_with_edits(trace, mode, layers, numbers, heads, min_distance):
    model = tiny()
    knockout = attention_knockout(
        model, trace, QUERIES, KEYS, layers=layers, heads=heads, min_distance=min_distance, mode=mode, n_controls=0
    )
    head_numbers = list(range(10)) if heads is None else heads
    plain = model.forward(torch.tensor([trace.tokens]))[0].double()
    cut = cut_by_hand(model, trace.tokens, mode, numbers, head_numbers, QUERIES, KEYS, min_distance).double()
    a, b = plain.log_softmax(-1), cut.log_softmax(-1)
    expected = (a.exp() * (a - b)).sum(-1).numpy()
    at = knockout["pos"].values
    assert at.tolist() == list(range(66, 90)) and float(expected.max()) > 1e-4
    assert np.allclose(knockout["kl"], expected[at], atol=1e-5)
    step_b = plain.topk(2, -1).indices
    gaps = [x.gather(-1, step_b) for x in (plain, cut)]
    fall = (gaps[0].diff()[:, 0] - gaps[1].diff()[:, 0]).numpy() * -1
    assert np.allclose(knockout["gap"], fall[at], atol=1e-4)
    assert knockout["kl"].attrs["mean"] == pytest.approx(float(expected[at].mean()), abs=1e-5)
    assert knockout["kl"].attrs["low"] <= knockout["kl"].attrs["mean"] <= knockout["kl"].attrs["high"]


def test_the_modes_give_different_results(trace):
    knockout = [
        attention_knockout(tiny(), trace, QUERIES, KEYS, mode=mode, n_controls=0)["kl"].values for mode in MODES
    ]
    for i in range(3):
        assert not np.allclose(knockout[i], knockout[i - 1], rtol=1e-2, atol=1e-4)


def test_with_all_keys_masked_only_the_output_bias_remains(trace):
    model, seen = tiny(), Recorder(["blocks.1.hook_attn_out"])
    base = CachedRun(model, trace.tokens)
    everything = torch.ones(1, 90, 90, dtype=torch.bool)
    out = base.rerun_from(0, _CutEdges(base, [1], range(10), everything, 0, "mask"), record=seen.points)
    assert torch.equal(out["blocks.1.hook_attn_out"], model.weights.blocks[1].b_o.expand(1, 90, -1))


@pytest.mark.parametrize("mode", MODES)
def test_cutting_edges_without_attention_changes_nothing(mode):
    """In heads that put all attention on the sink."""
    model = constructed()
    trace = model.trace([V - 1, 5, 6, 8, *range(20, 40), 6], record="")
    knockout = attention_knockout(
        model, trace, slice(10, 25), slice(0, 25), layers=[0, 1], heads=[1], mode=mode, n_controls=0
    )
    assert (knockout["kl"] == 0).all() and (knockout["gap"] == 0).all()
    assert knockout.attrs["mass"] < 1e-6


@pytest.mark.parametrize("mode", MODES)
def test_cutting_the_induction_edge_costs_the_prediction_and_controls_do_not(mode):
    """At its first occurrence the last token was followed by 8, at position 3."""
    model = constructed()
    trace = model.trace([V - 1, 5, 6, 8, *range(20, 40), 6], record="")
    knockout = attention_knockout(model, trace, 24, 3, layers="full", heads=[0], mode=mode, n_controls=19)
    assert knockout["pos"].values.tolist() == [24]
    assert float(knockout["gap"][0]) > 1 and float(knockout["kl"][0]) > 0.5
    assert float(abs(knockout["control_gap"]).max()) < 0.01 * float(knockout["gap"][0])
    assert knockout["gap"].attrs["p"] == knockout["kl"].attrs["p"] == 0.05
    own = attention_knockout(model, trace, 24, 24, layers="full", heads=[0], mode=mode, n_controls=0)
    assert float(abs(own["gap"][0])) < 1e-3


def test_beyond_the_window_only_full_layers_have_edges(trace):
    window = tiny().config.window
    knockout = attention_knockout(
        tiny(), trace, slice(60, 90), slice(0, 90), layers="full", min_distance=window, n_controls=0
    )
    assert knockout.attrs["layers"] == [1, 3]
    assert knockout.attrs["edges"] == sum(q - window + 1 for q in range(60, 90))
    with pytest.raises(EditError, match=r"nothing to knock out: .* at least min_distance=12 tokens apart"):
        attention_knockout(tiny(), trace, slice(60, 90), slice(0, 90), layers="sliding", min_distance=window)
    both = attention_knockout(tiny(), trace, slice(60, 90), slice(0, 90), min_distance=window, n_controls=0)
    assert np.allclose(both["kl"], knockout["kl"], atol=1e-6)  # sliding layers have no such edges


def test_controls_match_queries_attention_mass_and_distance(trace):
    rng = np.random.default_rng(0)
    mass = np.tril(rng.dirichlet(np.ones(90), 90))
    distance = np.subtract.outer(np.arange(90), np.arange(90))
    edges = np.zeros((90, 90), bool)
    edges[66:80, 30:40] = True
    free = (distance >= 0) & ~edges
    control_sets = [_control_edges(edges, free, mass, distance, rng) for _ in range(50)]
    mean_distance = np.mean([np.log1p(distance[s]).mean() for s in control_sets])
    assert mean_distance == pytest.approx(np.log1p(distance[edges]).mean(), abs=0.3)
    for s in control_sets:
        assert not (s & edges).any() and not (s & ~free).any()
        assert set(np.flatnonzero(s.any(1))) <= set(range(66, 80))
        assert np.allclose(mass.sum(1, where=s)[66:80], mass.sum(1, where=edges)[66:80], atol=mass.max())
        assert mass[s].sum() == pytest.approx(mass[edges].sum(), rel=0.1)
    assert len({s.tobytes() for s in control_sets}) == 50

    knockout = attention_knockout(tiny(), trace, QUERIES, slice(40, 50), n_controls=6, seed=3)
    repeated = attention_knockout(tiny(), trace, QUERIES, slice(40, 50), n_controls=6, seed=3)
    assert knockout.identical(repeated)
    other = attention_knockout(tiny(), trace, QUERIES, slice(40, 50), n_controls=6, seed=4)
    assert np.array_equal(knockout["kl"], other["kl"]) and not np.allclose(knockout["control_kl"], other["control_kl"])
    assert np.allclose(knockout.attrs["control_mass"], knockout.attrs["mass"], rtol=0.1)


def test_rows_of_a_pass_do_not_affect_each_other(trace, monkeypatch):
    whole = attention_knockout(tiny(), trace, QUERIES, slice(40, 50), n_controls=5, mode="mean")
    monkeypatch.setattr("workbench.experiments.attention_knockout.MAX_ELEMENTS_PER_PASS", 1)
    one_by_one = attention_knockout(tiny(), trace, QUERIES, slice(40, 50), n_controls=5, mode="mean")
    for name in whole.data_vars:
        assert np.allclose(whole[name], one_by_one[name], atol=1e-5)


def test_steps_messages_and_numbers_select_the_same_positions():
    model = wb.Model("pocket")
    trace = model.generate(wb.chat("What is 247+138?", reasoning="high"), record="")
    step_a, step_b = wb.steps(trace)[:2]
    by_step = attention_knockout(model, trace, step_b, step_a, n_controls=0)
    by_slice = attention_knockout(
        model, trace, range(step_b.start, step_b.stop), slice(step_a.start, step_a.stop), n_controls=0
    )
    assert by_step.identical(by_slice)
    final = trace.spans[-1]
    combined = attention_knockout(model, trace, final, [step_a, step_b, 0], layers="full", n_controls=0)
    assert combined.attrs["edges"] == (final.stop - final.start) * (
        step_a.stop - step_a.start + step_b.stop - step_b.start + 1
    )


def test_invalid_knockouts_are_refused(trace):
    model = tiny()
    with pytest.raises(ArgumentError, match="mode must be 'mask', 'zero' or 'mean', got 'delete'"):
        attention_knockout(model, trace, QUERIES, KEYS, mode="delete")
    with pytest.raises(EditError, match="layers must be 'all', 'full', 'sliding' or numbers from 0 to 3, got 'odd'"):
        attention_knockout(model, trace, QUERIES, KEYS, layers="odd")
    with pytest.raises(SelectionError, match="head must be between 0 and 9, got 10"):
        attention_knockout(model, trace, QUERIES, KEYS, heads=[10])
    with pytest.raises(SelectionError, match="position must be between 0 and 89, got 90"):
        attention_knockout(model, trace, 90, KEYS)
    with pytest.raises(
        SelectionError, match=r"slice\(90, 95, None\) selects no position; positions are between 0 and 89"
    ):
        attention_knockout(model, trace, slice(90, 95), KEYS)
    with pytest.raises(SelectionError, match="layer must be between 0 and 3, got 4"):
        attention_knockout(model, trace, QUERIES, KEYS, layers=[1, 4])
    with pytest.raises(ArgumentError, match="heads must have at least 1 entry, got 0"):
        attention_knockout(model, trace, QUERIES, KEYS, heads=[])
