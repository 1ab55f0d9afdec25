"""Experiments: exact where the answer is known, zero where nothing is changed, equal to full runs with edits."""

import numpy as np
import pytest
import torch

import workbench as wb
from tests.checkpoints import Random
from tests.constructed import V, constructed
from tests.model.models import some_tokens, tiny
from workbench.errors import HookNameError, NotRecorded, PromptError
from workbench.experiments.activation_patching import LogitDiff, activation_patching, logit_diff
from workbench.experiments.cached_run import CachedRun, divergence
from workbench.experiments.expert_knockout import expert_knockout
from workbench.experiments.forced_answers import forced_answer
from workbench.experiments.suppression import FrozenRouting, MaskKeys, suppression
from workbench.model.model import Model
from workbench.recording.taps import Recorder
from workbench.taps import Chain, Tap

PARTS = [slice(0, 15), slice(15, 30), slice(30, 44), slice(44, 60)]


@pytest.fixture(scope="module")
def trace():
    return tiny().trace(some_tokens(60), record="")


def kl(p: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    a, b = p.double().log_softmax(-1), q.double().log_softmax(-1)
    return (a.exp() * (a - b)).sum(-1)


def test_rerun_without_an_edit_reproduces_the_run():
    model = tiny()
    run = CachedRun(model, some_tokens(60))
    last = f"blocks.{model.config.n_layers - 1}.hook_resid_post"
    for start in (0, 1, 37, 59):
        recorder = run.rerun_from(start, Tap(), n=2)
        assert torch.allclose(recorder[last], run.resid(4)[:, start:].expand(2, -1, -1), atol=1e-5)
        assert torch.equal(recorder["blocks.2.mlp.hook_expert_indices"][1], run.routes(2)[0, start:])
    assert torch.allclose(run.logits(), model.forward(torch.tensor([run.tokens])), atol=1e-5)
    assert float(divergence(model, run.resid(4), run.resid(4)).abs().max()) == 0


def test_prefill_in_chunks_gives_the_same_values(monkeypatch):
    exact = Model(Random(seed=0).transformers(torch.float64))
    expected = CachedRun(exact, some_tokens(60))
    monkeypatch.setattr("workbench.model.prefill.CHUNK_POSITIONS", 17)
    chunked = CachedRun(exact, some_tokens(60))
    for layer in range(5):
        assert torch.allclose(expected.resid(layer), chunked.resid(layer), atol=1e-12)


@pytest.mark.parametrize("queries", ["later", "all"])
def test_suppression_equals_a_full_run_with_masked_keys(trace, queries):
    model = tiny()
    effects = suppression(model, trace, PARTS, queries=queries)
    ids = torch.tensor([trace.tokens])
    unedited = model.forward(ids)
    for j, part in enumerate(PARTS):
        masked = model.forward(ids, MaskKeys(part, part.start if queries == "all" else part.stop))
        change = kl(unedited, masked)[0]
        assert np.allclose(effects["by_token"][1:, j], change[:-1], atol=1e-5)
        for i, other in enumerate(PARTS):
            before = slice(max(other.start - 1, 0), other.stop - 1)  # the positions that predict its tokens
            expected_value = float(change[before].sum()) / (other.stop - other.start)
            assert float(effects["effect"][i, j]) == pytest.approx(expected_value, abs=1e-5)
            assert (i > j) or (queries == "all" and i == j) or float(effects["effect"][i, j]) == 0
            assert (i > j) or (queries == "all" and i == j) or float(effects["routing"][i, j]) == 0
    assert float(effects["effect"].min()) >= -1e-6 and float(effects["effect"][3, 2]) > 0
    assert (float(effects["effect"][1, 1]) > 0) == (queries == "all")


def test_masking_an_empty_step_changes_nothing(trace):
    effects = suppression(tiny(), trace, [slice(5, 5), slice(10, 20), slice(20, 60)])
    assert float(abs(effects["effect"][:, 0]).max()) < 1e-6 and float(effects["routing"][:, 0].max()) == 0


def test_three_parts_sum_to_the_effect_and_frozen_routing_keeps_routes(trace):
    model = tiny()
    effects = suppression(model, trace, PARTS, split_routing=True)
    total = effects["content"] + effects["reweighting"] + effects["rerouting"]
    assert np.allclose(total, effects["effect"], atol=1e-9)
    assert float(abs(effects["rerouting"]).max()) > 0  # some route changes
    run = CachedRun(model, trace.tokens, [f"blocks.{n}.mlp.hook_expert_weights" for n in range(4)])
    for weights in (False, True):
        recorder = run.rerun_from(20, Chain(MaskKeys(slice(0, 15), 20), FrozenRouting(run, 20, weights=weights)))
        for layer in range(4):
            experts = recorder[f"blocks.{layer}.mlp.hook_expert_indices"][0].sort(-1).values
            assert torch.equal(experts, run.routes(layer)[0, 20:].sort(-1).values)
        frozen_only = run.rerun_from(20, FrozenRouting(run, 20, weights=weights))  # frozen to the same routes
        last = "blocks.3.hook_resid_post"
        assert torch.allclose(frozen_only[last], run.resid(4)[:, 20:], atol=1e-5)


def test_rerouting_is_zero_where_no_route_changes(trace):
    effects = suppression(tiny(), trace, PARTS, split_routing=True)
    unchanged = effects["routing"].values == 0
    assert np.allclose(effects["rerouting"].values[unchanged], 0, atol=1e-6)


def test_only_the_copied_step_has_an_effect():
    """In the hand-set model, the last step repeats the first twenty tokens and depends on nothing else."""
    copied = [7, 3, 15, 0, 19, 11, 5, 17, 2, 13, 9, 1, 16, 4, 12, 8, 18, 6, 14, 10]
    tokens = [V - 1, *copied, *range(20, 40), *copied]
    trace = constructed().trace(tokens, record="")
    effects = suppression(constructed(), trace, [slice(1, 21), slice(21, 41), slice(41, 61)])["effect"]
    assert float(effects[2, 0]) > 1
    assert float(abs(effects[2, 1])) < 0.01 * float(effects[2, 0])


def test_invalid_suppressions_are_refused(trace):
    with pytest.raises(NotRecorded, match="at least two steps, got 1"):
        suppression(tiny(), trace, PARTS[:1])
    with pytest.raises(ValueError, match="'later' or 'all', got 'none'"):
        suppression(tiny(), trace, PARTS, queries="none")


# -- patching


def pair(n: int = 30) -> tuple[list[int], list[int]]:
    corrupted = some_tokens(n)
    clean = list(corrupted)
    clean[12], clean[20] = (corrupted[12] + 5) % 170, (corrupted[20] + 9) % 170
    return clean, corrupted


@pytest.mark.parametrize("site", ["resid_pre", "attn_out", "mlp_out", "resid_post", "z"])
def test_a_sweep_equals_patching_one_position_at_a_time(site, monkeypatch):
    monkeypatch.setattr("workbench.experiments.activation_patching.MAX_ROWS", 7)
    model, (clean, corrupted), gap = tiny(), pair(), LogitDiff(3, 8)
    sweep = activation_patching(model, clean, corrupted, gap, site=site)
    assert sweep["pos"].values.tolist() == list(range(12, 30))
    source = model.trace(clean, record=site)
    baselines = [float(gap(model.forward(torch.tensor([t]))[:, -1])) for t in (corrupted, clean)]
    for layer in (0, 2, 3):
        for pos in (12, 15, 20, 29):
            with model.patch(wb.hooks.at_layer(wb.hooks.full_name(site), layer), source, positions=pos):
                logits = model.forward(torch.tensor([corrupted]))[:, -1]
            expected_value = (float(gap(logits)) - baselines[0]) / (baselines[1] - baselines[0])
            assert float(sweep.sel(layer=layer, pos=pos)) == pytest.approx(expected_value, abs=1e-4)


def test_equal_positions_give_zero_and_complete_patches_give_one():
    model, (clean, corrupted), gap = tiny(), pair(), LogitDiff(3, 8)
    before = activation_patching(model, clean, corrupted, gap, positions=[0, 5, 11])
    assert np.allclose(before, 0, atol=1e-4)
    one_change = list(corrupted)
    one_change[12] = (corrupted[12] + 5) % 170
    sweep = activation_patching(model, one_change, corrupted, gap)
    assert float(sweep.sel(layer=0, pos=12)) == pytest.approx(1, abs=1e-4)
    assert np.allclose(sweep.sel(layer=0, pos=slice(13, None)), 0, atol=1e-4)
    last = activation_patching(model, clean, corrupted, gap, site="resid_post", positions=[29]).sel(layer=3)
    assert float(last[0]) == pytest.approx(1, abs=1e-4)


def test_an_edit_at_a_layer_input_is_applied_once():
    model, (clean, corrupted), gap = tiny(), pair(), LogitDiff(3, 8)
    shift = torch.randn(model.config.d_model, generator=torch.Generator().manual_seed(0))
    with model.edit("blocks.2.hook_resid_pre", lambda x: x + shift):
        unchanged = activation_patching(model, clean, corrupted, gap, positions=[0, 5, 11])
        baselines = [float(gap(model.forward(torch.tensor([t]))[:, -1])) for t in (corrupted, clean)]
        effect = expert_knockout(model, model.trace(corrupted), 2, [0], mode="renorm")["kl"]
    assert np.allclose(unchanged, 0, atol=1e-4)
    assert [unchanged.attrs["corrupted"], unchanged.attrs["clean"]] == pytest.approx(baselines, rel=1e-4)
    assert float(effect[0]) == pytest.approx(float(_renorm_kl(corrupted, shift)), abs=1e-5)


def _renorm_kl(tokens: list[int], shift: torch.Tensor) -> torch.Tensor:
    """The KL of removing expert 0 of layer 2 with mode renorm, by two full runs under the edit."""
    model = tiny()

    def without(weights: torch.Tensor) -> torch.Tensor:
        weights[..., 0] = 0
        return weights / weights.sum(-1, keepdim=True)

    with model.edit("blocks.2.hook_resid_pre", lambda x: x + shift):
        unedited = model.forward(torch.tensor([tokens]))
        with model.edit("blocks.2.mlp.hook_expert_weights", without):
            return kl(unedited, model.forward(torch.tensor([tokens]))).mean()


def test_heads_are_patched_one_by_one():
    model, (clean, corrupted), gap = tiny(), pair(), LogitDiff(3, 8)
    sweep = activation_patching(model, clean, corrupted, gap, site="z", by_head=True)
    assert sweep.dims == ("layer", "head") and sweep.shape == (4, 10)
    source = model.trace(clean, record="z")
    clean_z = torch.tensor(source["z", 2])

    def put(x):
        x[:, :, 6] = clean_z[:, 6]
        return x

    with model.edit("blocks.2.attn.hook_z", put):
        logits = model.forward(torch.tensor([corrupted]))[:, -1]
    baselines = sweep.attrs["corrupted"], sweep.attrs["clean"]
    expected_value = (float(gap(logits)) - baselines[0]) / (baselines[1] - baselines[0])
    assert float(sweep.sel(layer=2, head=6)) == pytest.approx(expected_value, abs=1e-4)


def test_only_the_induction_head_restores_the_copied_token():
    """The token after the first occurrence differs; the last token needs it."""
    model = constructed()
    clean, corrupted = ([V - 1, 5, 6, token, *range(20, 40), 6] for token in (8, 9))
    gap = LogitDiff(8, 9)
    heads = activation_patching(model, clean, corrupted, gap, site="z", by_head=True)
    assert float(heads.sel(layer=1, head=0)) == pytest.approx(1, abs=1e-3)
    others = heads.copy()
    others.loc[{"layer": 1, "head": 0}] = 0
    assert float(abs(others).max()) < 1e-3
    by_position = activation_patching(model, clean, corrupted, gap)
    assert float(by_position.sel(layer=1, pos=3)) == pytest.approx(
        1, abs=1e-3
    )  # at its own position, until layer 1 reads it
    assert float(by_position.sel(layer=2, pos=24)) == pytest.approx(1, abs=1e-3)  # then at the last position
    assert float(abs(by_position.sel(layer=2, pos=3))) < 1e-3


def test_invalid_sweeps_are_refused():
    model, (clean, corrupted) = tiny(), pair()
    gap = LogitDiff(3, 8)
    with pytest.raises(PromptError, match="the clean prompt has 29 tokens and the corrupted one 30"):
        activation_patching(model, clean[1:], corrupted, gap)
    with pytest.raises(PromptError, match="the two prompts are the same"):
        activation_patching(model, corrupted, corrupted, gap)
    with pytest.raises(HookNameError, match="'pattern' has the axes head query key"):
        activation_patching(model, clean, corrupted, gap, site="pattern")
    with pytest.raises(HookNameError, match=r"with by_head=True needs .* Sites that have them: q, rot_q, z, result\."):
        activation_patching(model, clean, corrupted, gap, by_head=True)
    with pytest.raises(PromptError, match="no tokenizer; give the id of token '7'"):
        logit_diff(model, "7", "8")


# -- forced answers


@pytest.fixture(scope="module")
def pocket():
    model = wb.Model("pocket")
    return model, model.generate(wb.chat("What is 247+138?", reasoning="high"), record="")


def test_after_all_steps_the_forced_answer_is_the_runs_own(pocket):
    model, run = pocket
    curve = forced_answer(model, run)
    final = next(span for span in run.spans if span.channel == "final")
    answer_ids = np.asarray(run["logprob"], float)[final.content].sum()
    assert float(curve["logprob"][-1, 0]) == pytest.approx(answer_ids, abs=1e-4)
    assert curve["answer"].values.tolist() == [run.text(channel="final")]
    assert float(curve["p"][-1, 0]) > 0.5 > float(curve["p"][0, 0])
    assert 0 < curve.attrs["commit_step"] <= curve.attrs["n"]


def test_forced_answer_equals_a_full_run_of_the_cut_text(pocket):
    model, run = pocket
    answers = ["It is 385.", "It is 375."]
    curve = forced_answer(model, run, answers)
    assert np.allclose(curve["p"].sum("answer"), 1)
    thought = next(s for s in run.spans if s.channel == "analysis" and s.content_start >= run.prompt_length)
    final = next(s for s in run.spans if s.channel == "final")
    between = run.tokens[thought.content_stop : final.content_start]
    for i in (0, 2, curve.sizes["step"] - 1):
        end = int(curve["pos"][i])
        for j, answer in enumerate(answers):
            answer_ids = model.tokenizer.encode(answer)
            ids = torch.tensor([run.tokens[:end] + between + answer_ids])
            logprobs = model.forward(ids)[0].double().log_softmax(-1)
            expected_value = sum(
                float(logprobs[len(ids[0]) - len(answer_ids) - 1 + n, token]) for n, token in enumerate(answer_ids)
            )
            assert float(curve["logprob"][i, j]) == pytest.approx(expected_value, abs=1e-3)


def test_runs_without_a_chain_or_an_answer_are_refused(pocket):
    model, run = pocket
    with pytest.raises(NotRecorded, match="no final message after an analysis"):
        forced_answer(model, model.trace(run.tokens[: run.prompt_length], record=""))
    with pytest.raises(PromptError, match=r"answers\[1\] is empty"):
        forced_answer(model, run, ["It is 385.", ""])


def test_experiments_leave_no_edits_in_force(pocket):
    model, run = pocket
    before = model.forward(torch.tensor([run.tokens]))
    forced_answer(model, run)
    suppression(model, run)
    recorder = Recorder(["hook_embed"])
    assert torch.equal(model.forward(torch.tensor([run.tokens]), recorder), before) and not model.active_edits()
