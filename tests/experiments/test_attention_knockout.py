"""Edges that are cut: the same by a whole run, nothing where nothing was looked at, and controls that are alike."""

from contextlib import ExitStack

import numpy as np
import pytest
import torch

import workbench as wb
from tests.constructed import V, constructed
from tests.model.models import some_tokens, tiny
from workbench.errors import EditError, SelectionError
from workbench.experiments.attention_knockout import MODES, _control_edges, _CutEdges, attention_knockout
from workbench.experiments.cached_run import CachedRun
from workbench.recording.taps import Recorder

QUERIES, KEYS = slice(66, 80), slice(20, 70)


@pytest.fixture(scope="module")
def trace():
    return tiny().trace(some_tokens(90), record="")


def cut_by_hand(model, tokens, mode, layers, heads, queries, keys, min_distance=0) -> torch.Tensor:
    """Logits of a whole run, with edits."""
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

    def keep(into):
        def look(x, hook):
            into[hook.layer] = x.clone()
            return x

        return look

    def mean(z, hook):
        v = plain[f"blocks.{hook.layer}.attn.hook_v"].mean(1, keepdim=True) - value[hook.layer]
        for head in heads:
            z[0, :, head] += (pattern[hook.layer][0, head] * edge) @ v[0, :, head // 5]
        return z

    point = {"mask": "hook_attn_scores", "zero": "hook_pattern"}.get(mode)
    with ExitStack() as edits:
        for layer in layers:
            here = f"blocks.{layer}.attn."
            if mode == "mean":
                edits.enter_context(model.edit(here + "hook_pattern", keep(pattern)))
                edits.enter_context(model.edit(here + "hook_v", keep(value)))
                edits.enter_context(model.edit(here + "hook_z", mean))
            else:
                edits.enter_context(model.edit(f"{here}{point}", change))
        return model.forward(torch.tensor([tokens]))[0]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    ("layers", "numbers", "heads", "min_distance"),
    [("all", [0, 1, 2, 3], None, 0), ("full", [1, 3], [2, 7], 12), ([2], [2], [0], 3)],
)
def test_a_cut_is_what_a_whole_run_with_these_edges_changed_gives(trace, mode, layers, numbers, heads, min_distance):
    model = tiny()
    found = attention_knockout(
        model, trace, QUERIES, KEYS, layers=layers, heads=heads, min_distance=min_distance, mode=mode, n_controls=0
    )
    some = list(range(10)) if heads is None else heads
    plain = model.forward(torch.tensor([trace.tokens]))[0].double()
    cut = cut_by_hand(model, trace.tokens, mode, numbers, some, QUERIES, KEYS, min_distance).double()
    a, b = plain.log_softmax(-1), cut.log_softmax(-1)
    want = (a.exp() * (a - b)).sum(-1).numpy()
    at = found["pos"].values
    assert at.tolist() == list(range(66, 90)) and float(want.max()) > 1e-4
    assert np.allclose(found["kl"], want[at], atol=1e-5)
    two = plain.topk(2, -1).indices
    ahead = [x.gather(-1, two) for x in (plain, cut)]
    fall = (ahead[0].diff()[:, 0] - ahead[1].diff()[:, 0]).numpy() * -1
    assert np.allclose(found["gap"], fall[at], atol=1e-4)
    assert found["kl"].attrs["mean"] == pytest.approx(float(want[at].mean()), abs=1e-5)
    assert found["kl"].attrs["low"] <= found["kl"].attrs["mean"] <= found["kl"].attrs["high"]


def test_the_modes_are_not_the_same(trace):
    found = [attention_knockout(tiny(), trace, QUERIES, KEYS, mode=mode, n_controls=0)["kl"].values for mode in MODES]
    for i in range(3):
        assert not np.allclose(found[i], found[i - 1], rtol=1e-2, atol=1e-4)


def test_cutting_all_keys_leaves_the_sink_alone_and_the_bias_is_what_is_written(trace):
    model, seen = tiny(), Recorder(["blocks.1.hook_attn_out"])
    base = CachedRun(model, trace.tokens)
    everything = torch.ones(1, 90, 90, dtype=torch.bool)
    out = base.rerun_from(0, _CutEdges(base, [1], range(10), everything, 0, "mask"), record=seen.wanted)
    assert torch.equal(out["blocks.1.hook_attn_out"], model.weights.blocks[1].b_o.expand(1, 90, -1))


@pytest.mark.parametrize("mode", MODES)
def test_edges_that_nothing_is_looked_at_along_are_not_missed(mode):
    """The heads that always sink."""
    model = constructed()
    trace = model.trace([V - 1, 5, 6, 8, *range(20, 40), 6], record="")
    found = attention_knockout(
        model, trace, slice(10, 25), slice(0, 25), layers=[0, 1], heads=[1], mode=mode, n_controls=0
    )
    assert (found["kl"] == 0).all() and (found["gap"] == 0).all()
    assert found.attrs["mass"] < 1e-6


@pytest.mark.parametrize("mode", MODES)
def test_cutting_the_edge_that_an_induction_head_needs_costs_the_prediction_and_no_control_does(mode):
    """The last token was followed by 8 at its first place, which is position 3."""
    model = constructed()
    trace = model.trace([V - 1, 5, 6, 8, *range(20, 40), 6], record="")
    found = attention_knockout(model, trace, 24, 3, layers="full", heads=[0], mode=mode, n_controls=19)
    assert found["pos"].values.tolist() == [24]
    assert float(found["gap"][0]) > 1 and float(found["kl"][0]) > 0.5
    assert float(abs(found["control_gap"]).max()) < 0.01 * float(found["gap"][0])
    assert found["gap"].attrs["p"] == found["kl"].attrs["p"] == 0.05
    own = attention_knockout(model, trace, 24, 24, layers="full", heads=[0], mode=mode, n_controls=0)
    assert float(abs(own["gap"][0])) < 1e-3


def test_beyond_the_window_only_full_layers_have_edges(trace):
    window = tiny().config.window
    found = attention_knockout(
        tiny(), trace, slice(60, 90), slice(0, 90), layers="full", min_distance=window, n_controls=0
    )
    assert found.attrs["layers"] == [1, 3]
    assert found.attrs["edges"] == sum(q - window + 1 for q in range(60, 90))
    with pytest.raises(EditError, match=r"nothing to knock out: .* at least min_distance=12 tokens apart"):
        attention_knockout(tiny(), trace, slice(60, 90), slice(0, 90), layers="sliding", min_distance=window)
    both = attention_knockout(tiny(), trace, slice(60, 90), slice(0, 90), min_distance=window, n_controls=0)
    assert np.allclose(both["kl"], found["kl"], atol=1e-6)  # sliding layers have nothing to lose there


def test_controls_are_other_edges_of_the_same_queries_with_as_much_attention_from_as_far(trace):
    rng = np.random.default_rng(0)
    mass = np.tril(rng.dirichlet(np.ones(90), 90))
    distance = np.subtract.outer(np.arange(90), np.arange(90))
    edges = np.zeros((90, 90), bool)
    edges[66:80, 30:40] = True
    free = (distance >= 0) & ~edges
    sets = [_control_edges(edges, free, mass, distance, rng) for _ in range(50)]
    far = np.mean([np.log1p(distance[s]).mean() for s in sets])
    assert far == pytest.approx(np.log1p(distance[edges]).mean(), abs=0.3)
    for s in sets:
        assert not (s & edges).any() and not (s & ~free).any()
        assert set(np.flatnonzero(s.any(1))) <= set(range(66, 80))
        assert np.allclose(mass.sum(1, where=s)[66:80], mass.sum(1, where=edges)[66:80], atol=mass.max())
        assert mass[s].sum() == pytest.approx(mass[edges].sum(), rel=0.1)
    assert len({s.tobytes() for s in sets}) == 50

    found = attention_knockout(tiny(), trace, QUERIES, slice(40, 50), n_controls=6, seed=3)
    again = attention_knockout(tiny(), trace, QUERIES, slice(40, 50), n_controls=6, seed=3)
    assert found.identical(again)
    other = attention_knockout(tiny(), trace, QUERIES, slice(40, 50), n_controls=6, seed=4)
    assert np.array_equal(found["kl"], other["kl"]) and not np.allclose(found["control_kl"], other["control_kl"])
    assert np.allclose(found.attrs["control_mass"], found.attrs["mass"], rtol=0.1)


def test_rows_beside_each_other_do_not_mix(trace, monkeypatch):
    whole = attention_knockout(tiny(), trace, QUERIES, slice(40, 50), n_controls=5, mode="mean")
    monkeypatch.setattr("workbench.experiments.attention_knockout.MAX_ELEMENTS_PER_PASS", 1)
    alone = attention_knockout(tiny(), trace, QUERIES, slice(40, 50), n_controls=5, mode="mean")
    for name in whole.data_vars:
        assert np.allclose(whole[name], alone[name], atol=1e-5)


def test_steps_messages_and_numbers_name_the_same_places():
    model = wb.Model("pocket")
    trace = model.generate(wb.chat("What is 247+138?", reasoning="high"), record="")
    one, two = wb.steps(trace)[:2]
    by_step = attention_knockout(model, trace, two, one, n_controls=0)
    by_slice = attention_knockout(model, trace, range(two.start, two.stop), slice(one.start, one.stop), n_controls=0)
    assert by_step.identical(by_slice)
    final = trace.spans[-1]
    several = attention_knockout(model, trace, final, [one, two, 0], layers="full", n_controls=0)
    assert several.attrs["edges"] == (final.stop - final.start) * (one.stop - one.start + two.stop - two.start + 1)


def test_what_cannot_be_cut_is_refused(trace):
    model = tiny()
    with pytest.raises(EditError, match="mode must be one of mask, zero, mean, got 'delete'"):
        attention_knockout(model, trace, QUERIES, KEYS, mode="delete")
    with pytest.raises(EditError, match="layers must be 'all', 'full', 'sliding' or numbers from 0 to 3, got 'odd'"):
        attention_knockout(model, trace, QUERIES, KEYS, layers="odd")
    with pytest.raises(SelectionError, match="head must be between 0 and 9, got 10"):
        attention_knockout(model, trace, QUERIES, KEYS, heads=[10])
    with pytest.raises(SelectionError, match="position must be between 0 and 89, got 90"):
        attention_knockout(model, trace, 90, KEYS)
    with pytest.raises(SelectionError, match=r"slice\(90, 95, None\) selects no position; positions are between 0 and 89"):
        attention_knockout(model, trace, slice(90, 95), KEYS)
    with pytest.raises(SelectionError, match="layer must be between 0 and 3, got 4"):
        attention_knockout(model, trace, QUERIES, KEYS, layers=[1, 4])
    with pytest.raises(EditError, match="heads is empty"):
        attention_knockout(model, trace, QUERIES, KEYS, heads=[])
