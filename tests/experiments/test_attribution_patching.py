"""Attribution patching: exact where the model is linear, with parts that sum, equal to one full backward pass."""

from dataclasses import replace

import numpy as np
import pytest
import torch

import workbench as wb
from tests.checkpoints import Random
from tests.model.models import some_tokens, tiny
from workbench.errors import CheckpointError, HookNameError, PromptError
from workbench.experiments.activation_patching import LogitDiff, activation_patching
from workbench.experiments.attribution_patching import attribution_patching
from workbench.model.model import Model
from workbench.recording.taps import Recorder

GAP = LogitDiff(3, 8)


def pair(n: int = 30) -> tuple[list[int], list[int]]:
    corrupted = some_tokens(n)
    clean = list(corrupted)
    clean[12], clean[20] = (corrupted[12] + 5) % 170, (corrupted[20] + 9) % 170
    return clean, corrupted


@pytest.fixture(scope="module")
def smooth_model() -> Model:
    """In float64, with clean tokens whose embeddings are almost those of the corrupted ones."""
    model = Model(Random(seed=0).transformers(torch.float64))
    clean, corrupted = pair()
    noise = torch.randn(96, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    for corrupted_run, clean_run in zip(corrupted, clean, strict=True):
        if corrupted_run != clean_run:
            model.weights.embed[clean_run] = model.weights.embed[corrupted_run] + 1e-5 * noise
    return model


@pytest.mark.parametrize("site", ["resid_pre", "attn_out", "mlp_out", "resid_post"])
def test_for_small_changes_it_equals_activation_patching(smooth_model, site):
    clean, corrupted = pair()
    estimate, exact = (
        attribution_patching(smooth_model, clean, corrupted, GAP, site=site),
        activation_patching(smooth_model, clean, corrupted, GAP, site=site),
    )
    assert not estimate["flips"].any()
    assert float(abs(exact).max()) > 0.1
    assert np.allclose(estimate["effect"], exact, atol=1e-3 * float(abs(exact).max()))
    assert estimate.attrs["clean"] == pytest.approx(exact.attrs["clean"], abs=1e-9)


def test_head_effects_sum_over_positions(smooth_model):
    clean, corrupted = pair()
    estimate = attribution_patching(smooth_model, clean, corrupted, GAP, site="z")["effect"]
    exact = activation_patching(smooth_model, clean, corrupted, GAP, site="z", by_head=True)
    assert estimate.dims == ("layer", "pos", "head") and float(abs(exact).max()) > 0.05
    assert np.allclose(estimate.sum("pos"), exact, atol=1e-3 * float(abs(exact).max()))


@pytest.mark.parametrize("seed", [0, 3])
def test_in_a_linear_model_it_equals_activation_patching_for_any_change(seed):
    """The last MLP's output only passes the final norm, which divides by a constant if eps is very large."""
    model = Model(Random(seed=seed).transformers(torch.float64))
    model.config = replace(model.config, eps=1e7)
    clean, corrupted = pair()
    estimate = attribution_patching(model, clean, corrupted, GAP, site="mlp_out")
    exact = activation_patching(model, clean, corrupted, GAP, site="mlp_out")
    assert np.allclose(estimate["effect"].sel(layer=3), exact.sel(layer=3), rtol=1e-4, atol=1e-9)
    estimate = attribution_patching(model, clean, corrupted, GAP, site="resid_post")
    exact = activation_patching(model, clean, corrupted, GAP, site="resid_post")
    assert np.allclose(estimate["effect"].sel(layer=3), exact.sel(layer=3), rtol=1e-4, atol=1e-7)
    assert float(exact.sel(layer=3, pos=29)) == pytest.approx(1)


def test_heads_and_experts_sum_to_their_layer_output_also_where_routes_change():
    model, (clean, corrupted) = tiny(), pair()
    estimate = {
        site: attribution_patching(model, clean, corrupted, GAP, site=site)
        for site in ("z", "attn_out", "expert_out", "mlp_out")
    }
    assert estimate["mlp_out"]["flips"].any()
    for part, whole, axis in (("z", "attn_out", "head"), ("expert_out", "mlp_out", "expert")):
        assert estimate[part]["effect"].dims[-1] == axis
        assert np.allclose(estimate[part]["effect"].sum(axis), estimate[whole]["effect"], atol=1e-5)
        assert float(abs(estimate[whole]["effect"]).max()) > 0.01


def test_flips_are_the_positions_where_other_experts_ran():
    model, (clean, corrupted) = tiny(), pair()
    estimate = attribution_patching(model, clean, corrupted, GAP)["flips"]
    corrupted_run, clean_run = (model.trace(tokens, record="") for tokens in (corrupted, clean))
    for layer in range(4):
        a, b = (np.sort(t["expert_indices", layer], -1) for t in (corrupted_run, clean_run))
        assert np.array_equal(estimate.sel(layer=layer), (a != b).any(-1)[12:])
    assert estimate.any() and not estimate.all()


@pytest.mark.parametrize("site", ["resid_pre", "resid_mid", "v", "router_logits", "ln1_normalized", "result"])
def test_it_equals_the_gradient_of_one_full_graph_under_edits(site):
    model, (clean, corrupted) = tiny(), pair()
    points = wb.hooks.match(site, 4)
    push = torch.randn(96, generator=torch.Generator().manual_seed(2))
    with model.edit("blocks.1.hook_resid_pre", lambda x: x + push):
        estimate = attribution_patching(model, clean, corrupted, GAP, site=site)
        recorder, clean_run = Recorder(points, keep_grad=True), Recorder(points)
        with model.edit("hook_embed", lambda x: x.requires_grad_()):
            logits = model.forward(torch.tensor([corrupted]), recorder)[:, -1]
        metric_values = GAP(logits)
        clean_value = float(GAP(model.forward(torch.tensor([clean]), clean_run)[:, -1]))
        gradients = torch.autograd.grad(
            metric_values.sum(), [recorder[p] for p in points], materialize_grads=True, allow_unused=True
        )
    for layer, (point, gradient) in enumerate(zip(points, gradients, strict=True)):
        expected = ((clean_run[point] - recorder[point].detach()) * gradient)[0, 12:] / (
            clean_value - metric_values.item()
        )
        expected = expected if site == "router_logits" else expected.sum(-1)
        assert np.allclose(estimate["effect"].sel(layer=layer), expected, atol=1e-4), layer


def test_packed_experts_give_the_gradients_of_dense_experts(tmp_path):
    random = Random(seed=0)
    random.write_hf_mxfp4(tmp_path / "packed")
    packed = Model(tmp_path / "packed", dtype="float32", memory="small")
    dense, (clean, corrupted) = tiny(), pair()
    for site in ("resid_pre", "expert_out"):
        a, b = (attribution_patching(model, clean, corrupted, GAP, site=site)["effect"] for model in (packed, dense))
        assert np.allclose(a, b, atol=1e-4)


def test_the_model_keeps_no_gradient_and_no_edit():
    model, (clean, corrupted) = tiny(), pair()
    before = model.forward(torch.tensor([clean]))
    attribution_patching(model, clean, corrupted, GAP, positions=[20, 29])
    assert model.weights.embed.grad is None and not before.requires_grad and not model.active_edits()
    assert torch.equal(model.forward(torch.tensor([clean])), before)


def test_sites_and_metrics_without_a_gradient_are_refused():
    model, (clean, corrupted) = tiny(), pair()
    with pytest.raises(PromptError, match="the two prompts are the same"):
        attribution_patching(model, corrupted, corrupted, GAP)
    for site, axes in (("pattern", "head query key"), ("expert_indices", "pos choice"), ("hook_embed", "pos d_model")):
        with pytest.raises(
            HookNameError, match=f"has the axes {axes}; attribution patching needs floating-point values with positions"
        ):
            attribution_patching(model, clean, corrupted, GAP, site=site)
    with pytest.raises(ValueError, match="this metric has no gradient"):
        attribution_patching(model, clean, corrupted, lambda logits: logits.argmax(-1).float())
    half = Model(Random(seed=0).transformers(torch.bfloat16))
    with pytest.raises(CheckpointError, match=r"runs in bfloat16; load it with wb\.Model\(…, dtype='float32'\)"):
        attribution_patching(half, clean, corrupted, GAP)


def test_on_pocket_it_ranks_positions_as_activation_patching_does(measured):
    """Additions that differ in one digit, up to the first differing generated token."""
    model, prompts = wb.Model("pocket"), []
    for a, b, c in ((247, 138, 136), (512, 361, 364), (336, 425, 424), (754, 123, 121), (415, 382, 384)):
        runs = [model.generate(wb.chat(f"What is {a}+{n}?", reasoning="low"), record="") for n in (b, c)]
        start = runs[0].prompt_length
        token_pairs = list(zip(*(run.tokens[start:] for run in runs)))
        metric_values = [start + i for i, (x, y) in enumerate(token_pairs) if x != y]
        prompts += [[run.tokens[: end + 1] for run in runs] for end in metric_values[:1]]
    assert len(prompts) >= 2
    for site in ("resid_pre", "attn_out", "mlp_out"):
        estimates, exact, flips = [], [], []
        for clean, corrupted in prompts:
            arguments = (model, clean[:-1], corrupted[:-1], LogitDiff(clean[-1], corrupted[-1]))
            estimate = attribution_patching(*arguments, site=site)
            estimates += estimate["effect"].values.ravel().tolist()
            exact += activation_patching(*arguments, site=site).values.ravel().tolist()
            flips.append(float(estimate["flips"].mean()))
        r = float(np.corrcoef(estimates, exact)[0, 1])
        changed = f"{np.mean(flips):.0%} of them choose other experts"
        summary = f"r = {r:.2f} with patching at {len(estimates)} positions; {changed}"
        measured(f"attribution patching of {site} on pocket: {summary}")
        assert r > 0.6
