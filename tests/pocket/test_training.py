"""Training: the model is gpt-oss, its start is what is said, a run that stops goes on, the dtype is an argument."""

import json
from dataclasses import replace
from itertools import pairwise
from random import Random

import pytest
import torch

from workbench.errors import CheckpointError
from workbench.model.checkpoints.bundled import embedded_folder
from workbench.model.gpt_oss import forward
from workbench.model.kernels.linear import multiplies_bf16
from workbench.model.kernels.reference import dequantise_mxfp4
from workbench.model.model import Model
from workbench.pocket.families import FAMILIES, make
from workbench.pocket.rendering import render
from workbench.pocket.train.batches import Place, batch, pool, split, spread, stream
from workbench.pocket.train.checkpoint import load, snapshot
from workbench.pocket.train.exam import exam_problems
from workbench.pocket.train.experts import Experts
from workbench.pocket.train.export import export, mxfp4
from workbench.pocket.train.init import mimetic
from workbench.pocket.train.model import SHAPE, Pocket
from workbench.pocket.train.optimizer import adamw, muon, orthogonal
from workbench.pocket.train.plan import Plan
from workbench.pocket.train.run import train
from workbench.pocket.train.shared import Shared
from workbench.pocket.train.variant import variant
from workbench.pocket.vocabulary import pieces
from workbench.recording.taps import Recorder

SMALL = replace(
    SHAPE,
    n_layers=4,
    d_model=96,
    n_heads=4,
    n_kv_heads=2,
    n_experts=6,
    n_active=3,
    d_mlp=64,
    layer_types=SHAPE.layer_types[:4],
)


def random_model(seed: int = 0) -> Pocket:
    """All weights far from where training starts, and exact in bfloat16."""
    torch.manual_seed(seed)
    model = Pocket(SMALL)
    mimetic(model)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn_like(p)).copy_(p.to(torch.bfloat16).float())
    return model


def some_ids() -> torch.Tensor:
    return torch.tensor([render(make("variables", Random(3), length=4), "high").ids])


def test_the_model_that_is_trained_computes_what_the_runner_does(tmp_path):
    trained = random_model()
    ran = Model(export(trained, tmp_path, packed=False), dtype="float32")
    with torch.no_grad():
        theirs = forward(ran.config, ran.weights, some_ids())[0]
        ours = trained(some_ids())
    assert ran.config == SMALL
    assert theirs.std() > 0.5 and (ours - theirs).abs().max() < 2e-5 * theirs.abs().max()


def test_transformers_loads_the_rounded_model_and_computes_the_same(tmp_path):
    import warnings

    from transformers import AutoModelForCausalLM

    folder = export(random_model(), tmp_path)
    ran = Model(folder, dtype="float32")
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # that it unpacks MXFP4 on a CPU
        theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)(some_ids()).logits[0]
        ours = forward(ran.config, ran.weights, some_ids())[0]
    assert (ours - theirs).abs().max() < 2e-5 * theirs.abs().max()


def test_experts_and_their_gradients_are_those_of_running_every_expert_on_every_token():
    torch.manual_seed(0)
    n, d, inner, e, k = 13, 6, 5, 7, 3
    x = torch.randn(n, d, dtype=torch.float64).requires_grad_()
    up, up_bias = torch.randn(e, d, 2 * inner).double(), torch.randn(e, 2 * inner).double()
    down, down_bias = torch.randn(e, inner, d).double(), torch.randn(e, d).double()
    chosen = torch.stack([torch.randperm(e - 1)[:k] for _ in range(n)])  # the last expert is never chosen
    share = torch.rand(n, k).double()
    given = [t.requires_grad_() for t in (x, share, up, up_bias, down, down_bias)]

    def dense() -> torch.Tensor:
        gate, lin = (torch.einsum("nd,edi->eni", x, up) + up_bias[:, None]).chunk(2, -1)
        gate, lin = gate.clamp(max=1.0), lin.clamp(-1.0, 1.0)
        said = torch.einsum("eni,eid->end", (lin + 1) * gate * torch.sigmoid(1.702 * gate), down) + down_bias[:, None]
        return torch.einsum("nke,end,nk->nd", torch.nn.functional.one_hot(chosen, e).double(), said, share)

    ours = Experts.apply(x, share, chosen, up, up_bias, down, down_bias, 1.702, 1.0)
    want = dense()
    assert torch.allclose(ours, want, atol=1e-6)
    into = torch.randn_like(want)
    got = torch.autograd.grad(ours, given, into)
    for a, b in zip(got, torch.autograd.grad(want, given, into)):
        assert torch.allclose(a, b, atol=1e-5), "the clamps and the routes have gradients too"


def test_what_mxfp4_can_say_is_kept_and_the_rest_is_near():
    torch.manual_seed(0)
    blocks, scales = mxfp4(torch.randn(3, 5, 64))
    exact = dequantise_mxfp4(blocks, scales)
    again = dequantise_mxfp4(*mxfp4(exact))
    assert torch.equal(exact, again)
    x = torch.randn(3, 5, 64)
    near = dequantise_mxfp4(*mxfp4(x))
    largest = x.view(3, 5, 2, 32).abs().amax(-1, keepdim=True)
    assert ((near - x).view(3, 5, 2, 32).abs() <= largest / 4).all()
    assert (near - x).square().mean() < 0.02


def test_training_starts_with_heads_that_look_back_as_is_said(tmp_path):
    torch.manual_seed(0)
    model = Pocket(SHAPE)
    mimetic(model)
    ran = Model(export(model, tmp_path, packed=False), dtype="float32")
    seen = Recorder(["blocks.0.attn.hook_pattern", "blocks.2.attn.hook_pattern"])
    forward(ran.config, ran.weights, some_ids(), seen)
    for layer, head, back in ((0, 0, 1), (0, 1, 2), (2, 0, 1), (2, 1, 3)):
        pattern = seen[f"blocks.{layer}.attn.hook_pattern"][0, head]
        assert torch.diagonal(pattern[4:], 4 - back).mean() > 0.5, (layer, head)
    elsewhere = seen["blocks.0.attn.hook_pattern"][0, 2]
    assert all(torch.diagonal(elsewhere[4:], 4 - back).mean() < 0.2 for back in (1, 2, 3))


def test_muon_makes_updates_orthogonal_and_follows_the_gradient():
    torch.manual_seed(0)
    for shape in ((4, 24, 40), (4, 40, 24), (1, 32, 32)):
        values = torch.linalg.svdvals(orthogonal(torch.randn(shape)))
        assert values.min() > 0.3 and values.max() < 1.7, "of random matrices, 0.01 to 1 before"
    weight, grad = torch.randn(24, 40), torch.randn(24, 40)
    before = weight.clone()
    muon({"w_qkv": weight}, {"w_qkv": grad}, {"w_qkv": torch.zeros(24, 40)}, 0.1, 1, {"w_qkv": [16, 16, 8]})
    moved = weight - before
    assert (moved * grad).sum() < 0
    for part in moved.split([16, 16, 8], 1):
        assert torch.linalg.svdvals(part).max() < 0.1 * 2.1 and torch.linalg.svdvals(part).min() > 0.03


def test_experts_move_every_other_step_and_as_far():
    torch.manual_seed(0)
    grad = torch.randn(3, 8, 16)
    moved = {}
    for name in ("w_up", "w_else"):
        weight, momentum = torch.zeros(3, 8, 16), torch.zeros(3, 8, 16)
        muon({name: weight}, {name: grad}, {name: momentum}, 0.1, 1, {})
        assert bool(weight.any()) == (name == "w_else")
        muon({name: weight}, {name: grad}, {name: momentum}, 0.1, 2, {})
        moved[name] = weight
    assert torch.allclose(moved["w_up"], moved["w_else"], atol=1e-3)


def test_adamw_is_torchs():
    torch.manual_seed(0)
    ours, theirs = torch.randn(5, 3), torch.nn.Parameter(torch.zeros(5, 3))
    theirs.data.copy_(ours)
    reference = torch.optim.AdamW([theirs], lr=0.01, betas=(0.9, 0.98), weight_decay=0.0)
    mean, square = torch.zeros(5, 3), torch.zeros(5, 3)
    for step in range(1, 6):
        grad = torch.randn(5, 3) * 0.1
        assert grad.norm() < 1
        theirs.grad = grad.clone()
        reference.step()
        adamw({"b": ours}, {"b": grad}, {"b": mean}, {"b": square}, 0.01, step)
    assert torch.allclose(ours, theirs, atol=1e-6)


def test_batches_hold_every_supervised_token_once():
    rng = Random(0)
    rendered = [render(make(family, rng), "high") for family in FAMILIES for _ in range(5)]
    parts = split(rendered, 600)
    assert sorted(map(id, rendered)) == sorted(id(r) for part in parts for r in part)
    for part in parts:
        b = batch(part)
        assert b.ids.numel() <= 600 and b.ids.shape[1] % 8 == 0
        assert b.real.sum() == sum(len(r.ids) - 1 for r in part)
        want = [(row, token) for row, r in enumerate(part) for token, ours in zip(r.ids, r.supervised) if ours]
        assert list(zip(b.row.tolist(), b.target.tolist())) == want
        assert torch.equal(b.ids.view(-1)[(b.at + 1)[:-1]], b.target[:-1]) or len(part) > 1


def test_gaps_stand_between_clauses_alone_and_half_of_the_conversations_have_none():
    rendered = [render(make("hops", Random(seed), length=3), "high") for seed in range(60)]
    places = [spread(r.ids, Random(seed)) for seed, r in enumerate(rendered)]
    gapless = sum(place == list(range(len(place))) for place in places)
    assert 15 < gapless < 45
    for r, place in zip(rendered, places):
        wide = {pieces(r.ids)[i] for i, (a, b) in enumerate(pairwise(place)) if b != a + 1}
        assert wide <= {",", ";", ".", "?", "<|end|>", "<|message|>"} and all(a < b for a, b in pairwise(place))
    plain, spaced = batch(rendered[:4]), batch(rendered[:4], Random(3))
    assert torch.equal(plain.place, torch.arange(plain.ids.shape[1]).expand_as(plain.ids))
    assert torch.equal(plain.ids, spaced.ids) and not torch.equal(plain.place, spaced.place)


def test_only_distances_matter():
    model, ids = random_model(), some_ids()
    place = torch.arange(ids.shape[1]).expand_as(ids)
    with torch.no_grad():
        logits, moved, apart = (model(ids, None, None, p) for p in (place, place + 700, place * 5))
    assert torch.allclose(moved, logits, atol=1e-3)
    assert not torch.allclose(apart, logits, atol=1e-2)


def test_a_stream_goes_on_where_it_stopped(monkeypatch):
    monkeypatch.setattr("workbench.pocket.train.batches.POOL", 100)
    place = Place()
    whole = stream(0, 1, place, 3000, lambda: 0.5)
    seen = [next(whole) for _ in range(len(pool(0, 1, 0, 0.5, 3000)) + 3)]
    again = stream(0, 1, Place(place.pool, place.index - 2, place.progress), 3000, lambda: 0.5)
    for b, want in zip(again, seen[-2:]):
        assert torch.equal(b.ids, want.ids) and torch.equal(b.place, want.place)
    assert next(stream(0, 2, Place(), 3000, lambda: 0.5)).ids.tolist() != seen[0].ids.tolist()


def test_workers_own_every_tensor_once_and_see_each_others_numbers():
    models = [Pocket(SMALL), Pocket(SMALL)]
    shared = Shared.of(models[0], 2, len(FAMILIES))
    assert sorted(shared.owned(0) + shared.owned(1)) == sorted(shared.layout)
    for worker, model in enumerate(models):
        shared.adopt(model, worker)
    with torch.no_grad():
        models[0].embed[3, 4] = 7.0
    assert models[1].embed[3, 4] == 7.0
    models[1].embed.sum().backward()
    assert shared.cut(shared.grads[1])["embed"].eq(1).all() and shared.grads[0].eq(0).all()


PLAN = Plan(tokens=2600, batch=500, shape=replace(SMALL, n_layers=2, layer_types=SHAPE.layer_types[:2]))


def test_a_run_that_was_stopped_goes_on_bit_for_bit(tmp_path, monkeypatch):
    monkeypatch.setattr("workbench.pocket.train.batches.POOL", 24)
    straight = torch.load(train(PLAN, tmp_path / "a", workers=1, compiled=False, every=1e9, exam=1))
    train(PLAN, tmp_path / "b", workers=1, compiled=False, every=1e9, exam=1, steps=2)
    half = torch.load(tmp_path / "b" / "last.pt")
    resumed = torch.load(train(PLAN, tmp_path / "b", workers=1, compiled=False, every=1e9, exam=1))
    assert half["step"] == 2 < straight["step"] == resumed["step"]
    for name, weight in straight["model"].items():
        assert torch.equal(weight, resumed["model"][name]), name
        assert not torch.equal(weight, half["model"][name]) or "sinks" in name, name
    lines = (tmp_path / "b" / "curve.jsonl").read_text().splitlines()
    assert len(lines) == 3 and '"plan"' in lines[0] and '"high"' in lines[2]
    assert load(tmp_path / "a" / "last.pt").c == PLAN.shape


def test_two_workers_train_as_one_would_on_both_batches(tmp_path):
    """One step of two processes, and the same step by hand."""
    plan = replace(PLAN, seed=5)
    held = torch.load(train(plan, tmp_path, workers=2, compiled=False, every=1e9, exam=1, steps=1))
    torch.manual_seed(5)
    model = Pocket(plan.shape)
    mimetic(model)
    start = {name: p.detach().clone() for name, p in model.named_parameters()}
    for worker in range(2):
        b = next(stream(5, worker, Place(), 500, lambda: 0.0))
        routing = model.routing(b.real)
        loss = torch.nn.functional.cross_entropy(model(b.ids, routing, b.at, b.place), b.target)
        ((loss + plan.balance * routing.balance + plan.z_loss * routing.z_loss) / 2).backward()
    p = dict(model.named_parameters())["blocks.1.w_o"]
    assert p.grad is not None
    muon({"w_o": p.data}, {"w_o": p.grad}, {"w_o": torch.zeros_like(p)}, plan.lr / 60, 1, {})
    assert torch.allclose(held["model"]["blocks.1.w_o"], p.data, atol=1e-7)
    assert not torch.allclose(held["model"]["blocks.1.w_o"], start["blocks.1.w_o"], atol=1e-6)


def test_another_plan_does_not_go_on_with_a_run(tmp_path, monkeypatch):
    monkeypatch.setattr("workbench.pocket.train.batches.POOL", 24)
    train(PLAN, tmp_path, workers=1, compiled=False, every=1e9, exam=1, steps=1)
    with pytest.raises(CheckpointError, match=r"is of another run \(lr 0.002 there, 0.1 here\)"):
        train(replace(PLAN, lr=0.1), tmp_path, workers=1, compiled=False, exam=1)
    with pytest.raises(CheckpointError, match=r"is of another run \(dtype 'float32' there, 'bfloat16' here\)"):
        train(replace(PLAN, dtype="bfloat16"), tmp_path, workers=1, compiled=False, exam=1)


@pytest.fixture(params=[True, False])
def has_bf16_units(request, monkeypatch):
    """A processor with units for bf16, and one without."""
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: request.param)
    multiplies_bf16.cache_clear()
    yield request.param
    multiplies_bf16.cache_clear()


def test_the_processor_does_not_choose_the_dtype_of_training(has_bf16_units):
    assert multiplies_bf16() == has_bf16_units
    assert Plan().dtype == "float32" and random_model().dtype == torch.float32
    assert Pocket(SMALL, "bfloat16").dtype == torch.bfloat16


def test_curve_and_checkpoint_name_the_dtype_that_a_run_was_trained_in(tmp_path, monkeypatch):
    monkeypatch.setattr("workbench.pocket.train.batches.POOL", 24)
    after_a_step = {}
    for dtype in ("float32", "bfloat16"):
        plan = replace(PLAN, dtype=dtype)
        saved = torch.load(train(plan, tmp_path / dtype, workers=1, compiled=False, every=1e9, exam=1, steps=1))
        logged = json.loads((tmp_path / dtype / "curve.jsonl").read_text().splitlines()[0])
        assert logged["plan"]["dtype"] == saved["plan"]["dtype"] == dtype
        assert all(weight.dtype == torch.float32 for weight in saved["model"].values())
        after_a_step[dtype] = saved["model"]["blocks.1.w_o"]
    assert not torch.equal(*after_a_step.values()), "the products were computed in the dtype that is named"
    assert torch.allclose(*after_a_step.values(), atol=PLAN.lr)


def test_in_bf16_the_logits_are_those_of_float32_but_for_rounding():
    exact, rounded = random_model(), random_model()
    rounded.dtype = torch.bfloat16
    with torch.no_grad():
        logits, near = exact(some_ids()), rounded(some_ids())
    assert near.dtype == torch.bfloat16 and not torch.equal(near.float(), logits)
    assert (near.float() - logits).square().mean() < 0.01 * logits.var()


def test_a_snapshot_names_its_dtype_and_is_loaded_in_the_one_that_is_asked_for(tmp_path):
    snapshot(Pocket(SMALL, "bfloat16"), tmp_path / "at-25.pt")
    assert torch.load(tmp_path / "at-25.pt")["dtype"] == "bfloat16"
    assert load(tmp_path / "at-25.pt").dtype == torch.float32
    assert load(tmp_path / "at-25.pt", "bfloat16").dtype == torch.bfloat16


@pytest.mark.parametrize("dtype", ["float16", "bf16", ""])
def test_a_dtype_that_training_does_not_have_is_refused_before_anything_is_written(dtype):
    for refused in (lambda: replace(PLAN, dtype=dtype), lambda: Pocket(SMALL, dtype)):
        with pytest.raises(CheckpointError, match=f"one of 'float32', 'bfloat16' for training, got '{dtype}'"):
            refused()


def test_the_recipe_of_the_shipped_weights_names_the_dtype_that_their_curve_does():
    lines = map(json.loads, (embedded_folder() / "curve.jsonl").read_text().splitlines())
    trained_in = {line["dtype"].removeprefix("torch.") for line in lines if "plan" in line}
    recipe = (embedded_folder() / "README.md").read_text().partition("## How it was made")[2]
    assert trained_in == {"float32"}
    assert "workbench.pocket.train runs/pocket --dtype float32 " in recipe and "courses ran in float32" in recipe


def test_every_test_problem_of_the_exam_is_held_out():
    asked = [p for family in FAMILIES for p in exam_problems(family, 8)]
    assert all(p.split == "test" and not p.wording.trained for p in asked)


def test_a_variant_differs_in_attention_alone_and_by_a_low_rank():
    model = random_model()
    before = {name: p.clone() for name, p in model.named_parameters()}
    made = dict(variant(model, tokens=1500, rank=2).named_parameters())
    for name, weight in model.named_parameters():
        assert torch.equal(weight, before[name]), "the model it came from stays"
        difference = made[name] - weight
        if name.endswith(("w_qkv", "w_o")):
            values = torch.linalg.svdvals(difference)
            assert values[1] > 0 and values[2] < 1e-4 * values[0], name
        else:
            assert not difference.any(), name


def test_the_command_trains_both_courses_and_the_second_begins_with_the_first(tmp_path, monkeypatch):
    from workbench.pocket.train.__main__ import main

    monkeypatch.setattr("workbench.pocket.train.batches.POOL", 24)
    monkeypatch.setattr("workbench.pocket.train.run.mimetic", lambda model: None)
    monkeypatch.setattr("workbench.pocket.train.exam.exam_problems", lambda family, n: exam_problems(family, 1))
    monkeypatch.setattr("workbench.pocket.train.plan.SHAPE", PLAN.shape)
    command = [str(tmp_path), "--tokens", "1500", "--slips", "1500", "--batch", "700", "--workers", "1", "--plain"]
    command += ["--dtype", "bfloat16"]
    main([*command, "--steps", "1"])
    assert not (tmp_path / "slips").exists()  # the first course is not at its end
    main(command)
    first, second = (torch.load(tmp_path / name) for name in ("last.pt", "slips/last.pt"))
    assert first["plan"]["dtype"] == second["plan"]["dtype"] == "bfloat16"
    assert (first["plan"]["course"], second["plan"]["course"]) == ("first", "slips")
    assert second["plan"]["start"] == str(tmp_path / "last.pt")
    shipped = Model(tmp_path / "model-bf16", dtype="float32").weights.embed
    assert torch.equal(shipped, second["model"]["embed"].to(torch.bfloat16).float())
    assert not torch.equal(first["model"]["embed"], second["model"]["embed"])
