"""Logit attribution sums to the logit; expert knockout equals full runs with edits."""

import numpy as np
import pytest
import torch

import workbench as wb
from tests.constructed import V, constructed
from tests.model.models import some_tokens, tiny
from workbench.errors import ArgumentError, PromptError, SelectionError
from workbench.experiments.activation_patching import token_id
from workbench.experiments.cached_run import divergence
from workbench.experiments.expert_knockout import MODES, expert_knockout
from workbench.experiments.logit_attribution import logit_attribution


@pytest.fixture(scope="module")
def trace():
    return tiny().trace(some_tokens(40), record="result expert_out")


@pytest.mark.parametrize(("token", "other", "pos"), [(5, None, -1), (17, 60, 20), (0, 3, 0)])
def test_the_parts_sum_to_the_logit(trace, token, other, pos):
    model = tiny()
    parts = logit_attribution(model, trace, token, other, pos=pos)
    logits = model.forward(torch.tensor([trace.tokens]))[0, pos].double()
    expected = float(logits[token] - (0 if other is None else logits[other]))
    total = float(parts["embed"] + parts["heads"].sum() + parts["biases"].sum() + parts["experts"].sum())
    assert total == pytest.approx(expected, rel=1e-5, abs=1e-5)
    assert parts.attrs["logit"] == pytest.approx(expected, rel=1e-5, abs=1e-5) and parts.attrs["missing"] < 1e-4
    assert np.allclose(parts["sources"].sum("key"), parts["heads"], atol=1e-4)


def test_only_active_experts_and_visible_keys_contribute(trace):
    parts = logit_attribution(tiny(), trace, 5, pos=30)
    for layer in range(4):
        active = set(trace["expert_indices", layer][30].tolist())
        assert set(np.flatnonzero(parts["experts"].values[layer])) == active
    window = trace.config["window"]
    assert float(abs(parts["sources"].sel(layer=[0, 2], key=slice(0, 30 - window))).max()) == 0
    assert parts.sizes["key"] == 31


def test_the_copying_head_has_the_whole_logit_from_one_position():
    tokens = [V - 1, 5, 6, 8, *range(20, 40), 6]
    parts = logit_attribution(constructed(), constructed().trace(tokens, record=""), 8, 9)
    own = float(parts["heads"].sel(layer=1, head=0))
    assert own / parts.attrs["logit"] > 0.99
    assert float(parts["sources"].sel(layer=1, head=0, key=3)) == pytest.approx(own, rel=1e-4)


def test_a_text_of_several_tokens_is_refused():
    with pytest.raises(PromptError, match=r"token '7 8' is \d tokens .*; this needs exactly one token"):
        token_id(wb.Model("pocket"), "7 8")


def test_an_invalid_position_is_refused(trace):
    with pytest.raises(SelectionError, match="position must be between 0 and 39, got 40"):
        logit_attribution(tiny(), trace, 5, pos=40)


@pytest.mark.parametrize("mode", MODES)
def test_a_knockout_equals_a_full_run_with_edits(trace, mode, monkeypatch):
    monkeypatch.setattr(
        "workbench.experiments.expert_knockout.MAX_ELEMENTS_PER_PASS", 3 * 40 * 96
    )  # three experts in a pass
    model, layer, expert = tiny(), 2, int(trace["expert_indices", 2][7, 0])
    parts = expert_knockout(model, trace, layer, mode=mode)
    chosen = trace["expert_indices", layer]
    mean_output = torch.tensor(trace["expert_out", layer])[torch.tensor(chosen == expert)].mean(0)

    def without(x, hook):
        if mode == "mask":
            x[..., expert] = -torch.inf
        elif mode == "mean":
            x[torch.tensor(chosen == expert)[None]] = mean_output
        else:
            x[..., expert] = 0
            if mode == "renorm":
                x /= x.sum(-1, keepdim=True)
        return x

    point = {"mask": "router.hook_out", "mean": "hook_expert_out"}.get(mode, "hook_expert_weights")
    last = trace.config["n_layers"] - 1
    ids = torch.tensor([trace.tokens])
    from workbench.recording.taps import Recorder

    plain, edited = Recorder([f"blocks.{last}.hook_resid_post"]), Recorder([f"blocks.{last}.hook_resid_post"])
    model.forward(ids, plain)
    with model.edit(f"blocks.{layer}.mlp.{point}", without):
        model.forward(ids, edited)
    name = f"blocks.{last}.hook_resid_post"
    expected = float(divergence(model, plain[name], edited[name]).mean())
    assert float(parts["kl"].sel(expert=expert)) == pytest.approx(expected, rel=1e-3, abs=1e-6) and expected > 0
    assert int(parts["chosen"].sel(expert=expert)) == (chosen == expert).any(-1).sum()


def test_removing_an_expert_that_never_runs_changes_nothing():
    model = constructed()
    trace = model.trace([4, 8, 12, 16, 20, 0], record="")  # one class: experts 0 and 1
    parts = expert_knockout(model, trace, 1, mode="zero")
    assert parts["chosen"].values.tolist() == [6, 6, 0, 0, 0, 0, 0, 0]
    assert (parts["kl"].values[2:] == 0).all()


def test_the_modes_give_different_effects(trace):
    parts = {mode: expert_knockout(tiny(), trace, 1, mode=mode)["kl"].values for mode in MODES}
    for a, b in (("mask", "zero"), ("zero", "renorm"), ("zero", "mean")):
        assert not np.allclose(parts[a], parts[b], rtol=1e-3)


def test_invalid_knockouts_are_refused(trace):
    with pytest.raises(ArgumentError, match="mode must be 'mask', 'zero', 'renorm' or 'mean', got 'delete'"):
        expert_knockout(tiny(), trace, 1, mode="delete")
    with pytest.raises(SelectionError, match="layer must be between 0 and 3, got 9"):
        expert_knockout(tiny(), trace, 9)
    with pytest.raises(SelectionError, match="expert must be between 0 and 7, got 8"):
        expert_knockout(tiny(), trace, 1, [8])
    with pytest.raises(ArgumentError, match="experts must have at least 1 entry, got 0"):
        expert_knockout(tiny(), trace, 1, [])


def test_tokens_can_be_given_as_text_or_id():
    model = wb.Model("pocket")
    assert wb.patching.logit_diff(model, "7", 23) == wb.patching.logit_diff(model, 22, "8")
