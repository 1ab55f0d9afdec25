"""Parts that sum to the logit, and experts whose loss is what a whole run without them says."""

import numpy as np
import pytest
import torch

import workbench as wb
from tests.constructed import V, constructed
from tests.model.models import some_tokens, tiny
from workbench.errors import EditError, SelectionError
from workbench.experiments.cached_run import divergence
from workbench.experiments.expert_knockout import MODES, expert_knockout
from workbench.experiments.logit_attribution import logit_attribution


@pytest.fixture(scope="module")
def trace():
    return tiny().trace(some_tokens(40), record="result expert_out")


@pytest.mark.parametrize(("token", "other", "pos"), [(5, None, -1), (17, 60, 20), (0, 3, 0)])
def test_the_parts_sum_to_the_logit(trace, token, other, pos):
    model = tiny()
    found = logit_attribution(model, trace, token, other, pos=pos)
    logits = model.forward(torch.tensor([trace.tokens]))[0, pos].double()
    want = float(logits[token] - (0 if other is None else logits[other]))
    total = float(found["embed"] + found["heads"].sum() + found["biases"].sum() + found["experts"].sum())
    assert total == pytest.approx(want, rel=1e-5, abs=1e-5)
    assert found.attrs["logit"] == pytest.approx(want, rel=1e-5, abs=1e-5) and found.attrs["missing"] < 1e-4
    assert np.allclose(found["sources"].sum("key"), found["heads"], atol=1e-4)


def test_only_experts_that_ran_and_keys_that_were_seen_have_a_part(trace):
    found = logit_attribution(tiny(), trace, 5, pos=30)
    for layer in range(4):
        ran = set(trace["expert_indices", layer][30].tolist())
        assert set(np.flatnonzero(found["experts"].values[layer])) == ran
    window = trace.config["window"]
    assert float(abs(found["sources"].sel(layer=[0, 2], key=slice(0, 30 - window))).max()) == 0
    assert found.sizes["key"] == 31


def test_the_head_that_predicts_by_copying_has_the_whole_logit_from_one_place():
    tokens = [V - 1, 5, 6, 8, *range(20, 40), 6]
    found = logit_attribution(constructed(), constructed().trace(tokens, record=""), 8, 9)
    own = float(found["heads"].sel(layer=1, head=0))
    assert own / found.attrs["logit"] > 0.99
    assert float(found["sources"].sel(layer=1, head=0, key=3)) == pytest.approx(own, rel=1e-4)


def test_a_position_that_is_not_there_is_refused(trace):
    with pytest.raises(SelectionError, match="position must be between 0 and 39, got 40"):
        logit_attribution(tiny(), trace, 5, pos=40)


@pytest.mark.parametrize("mode", MODES)
def test_a_knockout_is_what_a_whole_run_without_the_expert_gives(trace, mode, monkeypatch):
    monkeypatch.setattr(
        "workbench.experiments.expert_knockout.MAX_ELEMENTS_PER_PASS", 3 * 40 * 96
    )  # three experts in a pass
    model, layer, expert = tiny(), 2, int(trace["expert_indices", 2][7, 0])
    found = expert_knockout(model, trace, layer, mode=mode)
    chosen = trace["expert_indices", layer]
    wrote = torch.tensor(trace["expert_out", layer])[torch.tensor(chosen == expert)].mean(0)

    def without(x, hook):
        if mode == "mask":
            x[..., expert] = -torch.inf
        elif mode == "mean":
            x[torch.tensor(chosen == expert)[None]] = wrote
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
    want = float(divergence(model, plain[name], edited[name]).mean())
    assert float(found["kl"].sel(expert=expert)) == pytest.approx(want, rel=1e-3, abs=1e-6) and want > 0
    assert int(found["chosen"].sel(expert=expert)) == (chosen == expert).any(-1).sum()


def test_an_expert_that_never_runs_is_not_missed():
    model = constructed()
    trace = model.trace([4, 8, 12, 16, 20, 0], record="")  # one class: experts 0 and 1
    found = expert_knockout(model, trace, 1, mode="zero")
    assert found["chosen"].values.tolist() == [6, 6, 0, 0, 0, 0, 0, 0]
    assert (found["kl"].values[2:] == 0).all()


def test_the_modes_differ_where_something_is_lost(trace):
    found = {mode: expert_knockout(tiny(), trace, 1, mode=mode)["kl"].values for mode in MODES}
    for a, b in (("mask", "zero"), ("zero", "renorm"), ("zero", "mean")):
        assert not np.allclose(found[a], found[b], rtol=1e-3)


def test_what_cannot_be_knocked_out_is_refused(trace):
    with pytest.raises(EditError, match="mode must be one of mask, zero, renorm, mean, got 'delete'"):
        expert_knockout(tiny(), trace, 1, mode="delete")
    with pytest.raises(SelectionError, match="layer must be between 0 and 3, got 9"):
        expert_knockout(tiny(), trace, 9)
    with pytest.raises(SelectionError, match="expert must be between 0 and 7, got 8"):
        expert_knockout(tiny(), trace, 1, [8])
    with pytest.raises(EditError, match="experts is empty"):
        expert_knockout(tiny(), trace, 1, [])


def test_texts_and_ids_name_tokens_alike():
    model = wb.Model("pocket")
    assert wb.patching.logit_diff(model, "7", 23) == wb.patching.logit_diff(model, 22, "8")
