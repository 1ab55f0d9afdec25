"""The first order of patching: exact where everything is linear, parts that sum, the same by one whole graph."""

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
def wide() -> Model:
    """In float64, with two tokens that almost mean the same."""
    model = Model(Random(seed=0).transformers(torch.float64))
    clean, corrupted = pair()
    noise = torch.randn(96, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    for ours, theirs in zip(corrupted, clean, strict=True):
        if ours != theirs:
            model.weights.embed[theirs] = model.weights.embed[ours] + 1e-5 * noise
    return model


@pytest.mark.parametrize("site", ["resid_pre", "attn_out", "mlp_out", "resid_post"])
def test_a_small_change_does_what_its_first_order_says_at_every_place(wide, site):
    clean, corrupted = pair()
    found, exact = (
        attribution_patching(wide, clean, corrupted, GAP, site=site),
        activation_patching(wide, clean, corrupted, GAP, site=site),
    )
    assert not found["flips"].any()
    assert float(abs(exact).max()) > 0.1
    assert np.allclose(found["effect"], exact, atol=1e-3 * float(abs(exact).max()))
    assert found.attrs["clean"] == pytest.approx(exact.attrs["clean"], abs=1e-9)


def test_heads_of_all_positions_together_are_the_sum_of_theirs(wide):
    clean, corrupted = pair()
    found = attribution_patching(wide, clean, corrupted, GAP, site="z")["effect"]
    exact = activation_patching(wide, clean, corrupted, GAP, site="z", by_head=True)
    assert found.dims == ("layer", "pos", "head") and float(abs(exact).max()) > 0.05
    assert np.allclose(found.sum("pos"), exact, atol=1e-3 * float(abs(exact).max()))


@pytest.mark.parametrize("seed", [0, 3])
def test_where_all_that_follows_is_linear_it_is_patching_however_large_the_change(seed):
    """The last MLP's write meets only the last norm, which divides by a constant if eps dwarfs everything."""
    model = Model(Random(seed=seed).transformers(torch.float64))
    model.config = replace(model.config, eps=1e7)
    clean, corrupted = pair()
    found = attribution_patching(model, clean, corrupted, GAP, site="mlp_out")
    exact = activation_patching(model, clean, corrupted, GAP, site="mlp_out")
    assert np.allclose(found["effect"].sel(layer=3), exact.sel(layer=3), rtol=1e-4, atol=1e-9)
    found = attribution_patching(model, clean, corrupted, GAP, site="resid_post")
    exact = activation_patching(model, clean, corrupted, GAP, site="resid_post")
    assert np.allclose(found["effect"].sel(layer=3), exact.sel(layer=3), rtol=1e-4, atol=1e-7)
    assert float(exact.sel(layer=3, pos=29)) == pytest.approx(1)


def test_heads_and_experts_sum_to_what_their_layers_write_also_where_routes_flip():
    model, (clean, corrupted) = tiny(), pair()
    found = {
        site: attribution_patching(model, clean, corrupted, GAP, site=site)
        for site in ("z", "attn_out", "expert_out", "mlp_out")
    }
    assert found["mlp_out"]["flips"].any()
    for part, whole, axis in (("z", "attn_out", "head"), ("expert_out", "mlp_out", "expert")):
        assert found[part]["effect"].dims[-1] == axis
        assert np.allclose(found[part]["effect"].sum(axis), found[whole]["effect"], atol=1e-5)
        assert float(abs(found[whole]["effect"]).max()) > 0.01


def test_flips_are_where_the_traces_say_that_other_experts_ran():
    model, (clean, corrupted) = tiny(), pair()
    found = attribution_patching(model, clean, corrupted, GAP)["flips"]
    ours, theirs = (model.trace(tokens, record="") for tokens in (corrupted, clean))
    for layer in range(4):
        a, b = (np.sort(t["expert_indices", layer], -1) for t in (ours, theirs))
        assert np.array_equal(found.sel(layer=layer), (a != b).any(-1)[12:])
    assert found.any() and not found.all()


@pytest.mark.parametrize("site", ["resid_pre", "resid_mid", "v", "router_logits", "ln1_normalized", "result"])
def test_layer_by_layer_it_is_the_gradient_of_one_whole_graph_under_the_edits_in_force(site):
    model, (clean, corrupted) = tiny(), pair()
    points = wb.hooks.match(site, 4)
    push = torch.randn(96, generator=torch.Generator().manual_seed(2))
    with model.edit("blocks.1.hook_resid_pre", lambda x: x + push):
        found = attribution_patching(model, clean, corrupted, GAP, site=site)
        seen, theirs = Recorder(points, keep_grad=True), Recorder(points)
        with model.edit("hook_embed", lambda x: x.requires_grad_()):
            logits = model.forward(torch.tensor([corrupted]), seen)[:, -1]
        ends = GAP(logits)
        after = float(GAP(model.forward(torch.tensor([clean]), theirs)[:, -1]))
        gradients = torch.autograd.grad(
            ends.sum(), [seen[p] for p in points], materialize_grads=True, allow_unused=True
        )
    for layer, (point, gradient) in enumerate(zip(points, gradients, strict=True)):
        want = ((theirs[point] - seen[point].detach()) * gradient)[0, 12:] / (after - ends.item())
        want = want if site == "router_logits" else want.sum(-1)
        assert np.allclose(found["effect"].sel(layer=layer), want, atol=1e-4), layer


def test_packed_experts_give_the_gradients_of_dense_ones(tmp_path):
    random = Random(seed=0)
    random.write_hf_mxfp4(tmp_path / "packed")
    packed = Model(tmp_path / "packed", dtype="float32", memory="small")
    dense, (clean, corrupted) = tiny(), pair()
    for site in ("resid_pre", "expert_out"):
        a, b = (attribution_patching(model, clean, corrupted, GAP, site=site)["effect"] for model in (packed, dense))
        assert np.allclose(a, b, atol=1e-4)


def test_a_model_keeps_no_gradient_and_no_edit():
    model, (clean, corrupted) = tiny(), pair()
    before = model.forward(torch.tensor([clean]))
    attribution_patching(model, clean, corrupted, GAP, positions=[20, 29])
    assert model.weights.embed.grad is None and not before.requires_grad and not model.active_edits()
    assert torch.equal(model.forward(torch.tensor([clean])), before)


def test_what_has_no_first_order_is_refused():
    model, (clean, corrupted) = tiny(), pair()
    with pytest.raises(PromptError, match="the two prompts are the same"):
        attribution_patching(model, corrupted, corrupted, GAP)
    for site, axes in (("pattern", "head query key"), ("expert_indices", "pos choice"), ("hook_embed", "pos d_model")):
        with pytest.raises(
            HookNameError, match=f"has the axes {axes}; attribution patching needs real values with positions"
        ):
            attribution_patching(model, clean, corrupted, GAP, site=site)
    with pytest.raises(ValueError, match="this metric has no gradient"):
        attribution_patching(model, clean, corrupted, lambda logits: logits.argmax(-1).float())
    half = Model(Random(seed=0).transformers(torch.bfloat16))
    with pytest.raises(CheckpointError, match=r"runs in bfloat16; load it with wb\.Model\(…, dtype='float32'\)"):
        attribution_patching(half, clean, corrupted, GAP)


def test_on_pocket_it_ranks_places_as_patching_does(measured):
    """Additions that differ in one digit, up to where the two runs first write different tokens."""
    model, prompts = wb.Model("pocket"), []
    for a, b, c in ((247, 138, 136), (512, 361, 364), (336, 425, 424), (754, 123, 121), (415, 382, 384)):
        runs = [model.generate(wb.chat(f"What is {a}+{n}?", reasoning="low"), record="") for n in (b, c)]
        start = runs[0].prompt_length
        both = list(zip(*(run.tokens[start:] for run in runs)))
        ends = [start + i for i, (x, y) in enumerate(both) if x != y]
        prompts += [[run.tokens[: end + 1] for run in runs] for end in ends[:1]]
    assert len(prompts) >= 2
    for site in ("resid_pre", "attn_out", "mlp_out"):
        line, exact, flips = [], [], []
        for clean, corrupted in prompts:
            asked = (model, clean[:-1], corrupted[:-1], LogitDiff(clean[-1], corrupted[-1]))
            found = attribution_patching(*asked, site=site)
            line += found["effect"].values.ravel().tolist()
            exact += activation_patching(*asked, site=site).values.ravel().tolist()
            flips.append(float(found["flips"].mean()))
        r = float(np.corrcoef(line, exact)[0, 1])
        said = f"r = {r:.2f} with patching at {len(line)} places; {np.mean(flips):.0%} of them choose other experts"
        measured(f"attribution patching of {site} on pocket: {said}")
        assert r > 0.6
