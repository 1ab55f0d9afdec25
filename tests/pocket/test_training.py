"""Training: the model equals gpt-oss, its initialization is as documented, runs resume, the dtype is an argument."""

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
from workbench.model.kernels.reference import dequantize_mxfp4
from workbench.model.model import Model
from workbench.pocket.families import FAMILIES, make, rows
from workbench.pocket.rendering import render
from workbench.pocket.train.batches import Place, batch, pool, split, spread, stream
from workbench.pocket.train.checkpoint import load, snapshot
from workbench.pocket.train.exam import exam_problems
from workbench.pocket.train.experts import Experts
from workbench.pocket.train.export import export, mxfp4
from workbench.pocket.train.imported import imported, with_layers
from workbench.pocket.train.init import mimetic
from workbench.pocket.train.model import SHAPE, Pocket
from workbench.pocket.train.optimizer import adamw, muon, orthogonal
from workbench.pocket.train.plan import Plan
from workbench.pocket.train.run import train
from workbench.pocket.train.shared import Shared
from workbench.pocket.train.variant import variant
from workbench.pocket.vocabulary import str_tokens
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
    """A model with all weights far from the initialization, and exact in bfloat16."""
    torch.manual_seed(seed)
    model = Pocket(SMALL)
    mimetic(model)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn_like(p)).copy_(p.to(torch.bfloat16).float())
    return model


def some_ids() -> torch.Tensor:
    return torch.tensor([render(make("variables", Random(3), length=4), "high").ids])


def test_the_training_model_has_the_logits_of_the_runner(tmp_path):
    trained = random_model()
    runner = Model(export(trained, tmp_path, packed=False), dtype="float32")
    with torch.no_grad():
        expected = forward(runner.config, runner.weights, some_ids())[0]
        logits = trained(some_ids())
    assert runner.config == SMALL
    assert expected.std() > 0.5 and (logits - expected).abs().max() < 2e-5 * expected.abs().max()


def test_transformers_loads_the_mxfp4_model_and_has_the_same_logits(tmp_path):
    import warnings

    from transformers import AutoModelForCausalLM

    folder = export(random_model(), tmp_path)
    runner = Model(folder, dtype="float32")
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # the warning that MXFP4 is unpacked on a CPU
        expected = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)(some_ids()).logits[0]
        logits = forward(runner.config, runner.weights, some_ids())[0]
    assert (logits - expected).abs().max() < 2e-5 * expected.abs().max()


def test_experts_and_their_gradients_equal_running_every_expert_on_every_token():
    torch.manual_seed(0)
    n, d, inner, e, k = 13, 6, 5, 7, 3
    x = torch.randn(n, d, dtype=torch.float64).requires_grad_()
    up, up_bias = torch.randn(e, d, 2 * inner).double(), torch.randn(e, 2 * inner).double()
    down, down_bias = torch.randn(e, inner, d).double(), torch.randn(e, d).double()
    chosen = torch.stack([torch.randperm(e - 1)[:k] for _ in range(n)])  # the last expert is never chosen
    share = torch.rand(n, k).double()
    inputs = [t.requires_grad_() for t in (x, share, up, up_bias, down, down_bias)]

    def dense() -> torch.Tensor:
        gate, lin = (torch.einsum("nd,edi->eni", x, up) + up_bias[:, None]).chunk(2, -1)
        gate, lin = gate.clamp(max=1.0), lin.clamp(-1.0, 1.0)
        output = torch.einsum("eni,eid->end", (lin + 1) * gate * torch.sigmoid(1.702 * gate), down) + down_bias[:, None]
        return torch.einsum("nke,end,nk->nd", torch.nn.functional.one_hot(chosen, e).double(), output, share)

    output = Experts.apply(x, share, chosen, up, up_bias, down, down_bias, 1.702, 1.0)
    expected = dense()
    assert torch.allclose(output, expected, atol=1e-6)
    d_output = torch.randn_like(expected)
    grads = torch.autograd.grad(output, inputs, d_output)
    for a, b in zip(grads, torch.autograd.grad(expected, inputs, d_output)):
        assert torch.allclose(a, b, atol=1e-5), "the clamps and the routes have gradients too"


def test_mxfp4_keeps_representable_values_exactly_and_rounds_others():
    torch.manual_seed(0)
    blocks, scales = mxfp4(torch.randn(3, 5, 64))
    exact = dequantize_mxfp4(blocks, scales)
    assert torch.equal(exact, dequantize_mxfp4(*mxfp4(exact)))
    x = torch.randn(3, 5, 64)
    rounded = dequantize_mxfp4(*mxfp4(x))
    largest = x.view(3, 5, 2, 32).abs().amax(-1, keepdim=True)
    assert ((rounded - x).view(3, 5, 2, 32).abs() <= largest / 4).all()
    assert (rounded - x).square().mean() < 0.02


def test_initial_heads_attend_one_to_three_tokens_back_as_documented(tmp_path):
    torch.manual_seed(0)
    model = Pocket(SHAPE)
    mimetic(model)
    runner = Model(export(model, tmp_path, packed=False), dtype="float32")
    recorded = Recorder(["blocks.0.attn.hook_pattern", "blocks.2.attn.hook_pattern"])
    forward(runner.config, runner.weights, some_ids(), recorded)
    for layer, head, back in ((0, 0, 1), (0, 1, 2), (2, 0, 1), (2, 1, 3)):
        pattern = recorded[f"blocks.{layer}.attn.hook_pattern"][0, head]
        assert torch.diagonal(pattern[4:], 4 - back).mean() > 0.5, (layer, head)
    other_head = recorded["blocks.0.attn.hook_pattern"][0, 2]
    assert all(torch.diagonal(other_head[4:], 4 - back).mean() < 0.2 for back in (1, 2, 3))


def test_muon_orthogonalizes_updates_and_follows_the_gradient():
    torch.manual_seed(0)
    for shape in ((4, 24, 40), (4, 40, 24), (1, 32, 32)):
        values = torch.linalg.svdvals(orthogonal(torch.randn(shape)))
        assert values.min() > 0.3 and values.max() < 1.7, "of random matrices, 0.01 to 1 before"
    weight, grad = torch.randn(24, 40), torch.randn(24, 40)
    before = weight.clone()
    muon({"w_qkv": weight}, {"w_qkv": grad}, {"w_qkv": torch.zeros(24, 40)}, 0.1, 1, {"w_qkv": [16, 16, 8]})
    update = weight - before
    assert (update * grad).sum() < 0
    for part in update.split([16, 16, 8], 1):
        assert torch.linalg.svdvals(part).max() < 0.1 * 2.1 and torch.linalg.svdvals(part).min() > 0.03


def test_experts_are_updated_every_second_step_by_twice_as_much():
    torch.manual_seed(0)
    grad = torch.randn(3, 8, 16)
    updated = {}
    for name in ("w_up", "w_else"):
        weight, momentum = torch.zeros(3, 8, 16), torch.zeros(3, 8, 16)
        muon({name: weight}, {name: grad}, {name: momentum}, 0.1, 1, {})
        assert bool(weight.any()) == (name == "w_else")
        muon({name: weight}, {name: grad}, {name: momentum}, 0.1, 2, {})
        updated[name] = weight
    assert torch.allclose(updated["w_up"], updated["w_else"], atol=1e-3)


def test_adamw_equals_torchs():
    torch.manual_seed(0)
    weight, expected = torch.randn(5, 3), torch.nn.Parameter(torch.zeros(5, 3))
    expected.data.copy_(weight)
    reference = torch.optim.AdamW([expected], lr=0.01, betas=(0.9, 0.98), weight_decay=0.0)
    mean, square = torch.zeros(5, 3), torch.zeros(5, 3)
    for step in range(1, 6):
        grad = torch.randn(5, 3) * 0.1
        assert grad.norm() < 1
        expected.grad = grad.clone()
        reference.step()
        adamw({"b": weight}, {"b": grad}, {"b": mean}, {"b": square}, 0.01, step)
    assert torch.allclose(weight, expected, atol=1e-6)


def test_batches_contain_every_supervised_token_once():
    rng = Random(0)
    rendered = [render(make(family, rng), "high") for family in FAMILIES for _ in range(5)]
    parts = split(rendered, 600)
    assert sorted(map(id, rendered)) == sorted(id(r) for part in parts for r in part)
    for part in parts:
        b = batch(part)
        assert b.ids.numel() <= 600 and b.ids.shape[1] % 8 == 0
        assert b.real.sum() == sum(len(r.ids) - 1 for r in part)
        tokens = [(row, token) for row, r in enumerate(part) for token, target in zip(r.ids, r.supervised) if target]
        assert list(zip(b.row.tolist(), b.target.tolist())) == tokens
        assert torch.equal(b.ids.view(-1)[(b.at + 1)[:-1]], b.target[:-1]) or len(part) > 1


def test_position_gaps_are_between_clauses_only_and_half_of_the_conversations_have_none():
    rendered = [render(make("hops", Random(seed), length=3), "high") for seed in range(60)]
    position_ids = [spread(r.ids, Random(seed)) for seed, r in enumerate(rendered)]
    gapless = sum(ids == list(range(len(ids))) for ids in position_ids)
    assert 15 < gapless < 45
    for r, ids in zip(rendered, position_ids):
        before_gap = {str_tokens(r.ids)[i] for i, (a, b) in enumerate(pairwise(ids)) if b != a + 1}
        assert before_gap <= {",", ";", ".", "?", "<|end|>", "<|message|>"} and all(a < b for a, b in pairwise(ids))
    plain, spaced = batch(rendered[:4]), batch(rendered[:4], Random(3))
    assert torch.equal(plain.position_ids, torch.arange(plain.ids.shape[1]).expand_as(plain.ids))
    assert torch.equal(plain.ids, spaced.ids) and not torch.equal(plain.position_ids, spaced.position_ids)


def test_logits_depend_only_on_distances_between_positions():
    model, ids = random_model(), some_ids()
    position_ids = torch.arange(ids.shape[1]).expand_as(ids)
    with torch.no_grad():
        choices = (position_ids, position_ids + 700, position_ids * 5)
        logits, moved, apart = (model(ids, None, None, p) for p in choices)
    assert torch.allclose(moved, logits, atol=1e-3)
    assert not torch.allclose(apart, logits, atol=1e-2)


def test_a_stream_resumes_at_a_saved_place(monkeypatch):
    monkeypatch.setattr("workbench.pocket.train.batches.POOL", 100)
    place = Place()
    whole = stream(0, 1, place, 3000, lambda: 0.5)
    batches = [next(whole) for _ in range(len(pool(0, 1, 0, 0.5, 3000)) + 3)]
    resumed = stream(0, 1, Place(place.pool, place.index - 2, place.progress), 3000, lambda: 0.5)
    for b, expected in zip(resumed, batches[-2:]):
        assert torch.equal(b.ids, expected.ids) and torch.equal(b.position_ids, expected.position_ids)
    assert next(stream(0, 2, Place(), 3000, lambda: 0.5)).ids.tolist() != batches[0].ids.tolist()


@pytest.mark.parametrize("packed", [True, False])
def test_training_starts_from_the_exported_weights(tmp_path, packed):
    model = random_model()
    again = imported(export(model, tmp_path, packed=packed))
    assert again.c == model.c and again.dtype == torch.float32
    for name, weight in model.named_parameters():
        rounded = packed and name.endswith(("w_up", "w_down"))
        loaded = dict(again.named_parameters())[name]
        assert torch.equal(loaded, weight) != rounded, name
        assert torch.allclose(loaded, weight, atol=0.25 * weight.abs().max().item())
    assert torch.equal(imported(export(again, tmp_path / "twice", packed=packed)).layers[0].w_up, again.layers[0].w_up)


def test_the_shipped_weights_are_loaded_for_training_with_the_logits_of_the_runner():
    runner = Model("pocket", dtype="float32")
    with torch.no_grad():
        expected = forward(runner.config, runner.weights, some_ids())[0]
        logits = load(embedded_folder())(some_ids())
    assert (logits - expected).abs().max() < 2e-5 * expected.abs().max()


def test_added_layers_do_not_change_the_logits_and_are_trained(tmp_path, monkeypatch):
    monkeypatch.setattr("workbench.pocket.train.batches.POOL", 24)
    model = random_model()
    larger = with_layers(model, 6)
    with torch.no_grad():
        assert torch.equal(larger(some_ids()), model(some_ids()))
    assert larger.c.layer_types == SHAPE.layer_types and not larger.layers[5].w_o.any()
    with pytest.raises(CheckpointError, match="layers must be 4 or more, as in the weights to start from, got 2"):
        with_layers(model, 2)
    folder = export(model, tmp_path / "model", packed=False)
    plan = replace(PLAN, shape=larger.c, start=str(folder), course="families")
    trained = torch.load(train(plan, tmp_path / "run", workers=1, compiled=False, every=1e9, exam=1, steps=2))
    assert trained["model"]["blocks.5.w_o"].any() and trained["model"]["blocks.4.w_down"].any()
    scores = json.loads((tmp_path / "run" / "curve.jsonl").read_text().splitlines()[-1])["high"]
    assert {"variables", "dag", "dag terse", "tools terse"} <= scores.keys() and len(scores) == 8 + 2 * 6


def test_a_folder_without_an_exported_model_is_refused(tmp_path):
    folder = export(random_model(), tmp_path)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 6, "layer_types": None}))
    with pytest.raises(CheckpointError, match="does not contain an exported pocket"):
        imported(folder)


def test_every_tensor_has_one_owner_and_workers_share_memory():
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


def test_a_stopped_run_resumes_bit_for_bit(tmp_path, monkeypatch):
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


def test_a_step_of_two_workers_equals_one_step_on_both_batches(tmp_path):
    """One step of two processes, and the same step computed here."""
    plan = replace(PLAN, seed=5)
    saved = torch.load(train(plan, tmp_path, workers=2, compiled=False, every=1e9, exam=1, steps=1))
    torch.manual_seed(5)
    model = Pocket(plan.shape)
    mimetic(model)
    start = {name: p.detach().clone() for name, p in model.named_parameters()}
    for worker in range(2):
        b = next(stream(5, worker, Place(), 500, lambda: 0.0))
        routing = model.routing(b.real)
        loss = torch.nn.functional.cross_entropy(model(b.ids, routing, b.at, b.position_ids), b.target)
        ((loss + plan.balance * routing.balance + plan.z_loss * routing.z_loss) / 2).backward()
    p = dict(model.named_parameters())["blocks.1.w_o"]
    assert p.grad is not None
    muon({"w_o": p.data}, {"w_o": p.grad}, {"w_o": torch.zeros_like(p)}, plan.lr / 60, 1, {})
    assert torch.allclose(saved["model"]["blocks.1.w_o"], p.data, atol=1e-7)
    assert not torch.allclose(saved["model"]["blocks.1.w_o"], start["blocks.1.w_o"], atol=1e-6)


def test_a_run_is_not_resumed_with_another_plan(tmp_path, monkeypatch):
    monkeypatch.setattr("workbench.pocket.train.batches.POOL", 24)
    train(PLAN, tmp_path, workers=1, compiled=False, every=1e9, exam=1, steps=1)
    with pytest.raises(CheckpointError, match=r"belongs to another run \(lr 0.002 saved, 0.1 requested\)"):
        train(replace(PLAN, lr=0.1), tmp_path, workers=1, compiled=False, exam=1)
    with pytest.raises(CheckpointError, match=r"another run \(dtype 'float32' saved, 'bfloat16' requested\)"):
        train(replace(PLAN, dtype="bfloat16"), tmp_path, workers=1, compiled=False, exam=1)


@pytest.fixture(params=[True, False])
def has_bf16_units(request, monkeypatch):
    """A processor with bf16 units, and one without."""
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: request.param)
    multiplies_bf16.cache_clear()
    yield request.param
    multiplies_bf16.cache_clear()


def test_the_dtype_of_training_does_not_depend_on_the_processor(has_bf16_units):
    assert multiplies_bf16() == has_bf16_units
    assert Plan().dtype == "float32" and random_model().dtype == torch.float32
    assert Pocket(SMALL, "bfloat16").dtype == torch.bfloat16


def test_curve_and_checkpoint_record_the_dtype_of_training(tmp_path, monkeypatch):
    monkeypatch.setattr("workbench.pocket.train.batches.POOL", 24)
    after_a_step = {}
    for dtype in ("float32", "bfloat16"):
        plan = replace(PLAN, dtype=dtype)
        saved = torch.load(train(plan, tmp_path / dtype, workers=1, compiled=False, every=1e9, exam=1, steps=1))
        logged = json.loads((tmp_path / dtype / "curve.jsonl").read_text().splitlines()[0])
        assert logged["plan"]["dtype"] == saved["plan"]["dtype"] == dtype
        assert all(weight.dtype == torch.float32 for weight in saved["model"].values())
        after_a_step[dtype] = saved["model"]["blocks.1.w_o"]
    assert not torch.equal(*after_a_step.values()), "the products were computed in the recorded dtype"
    assert torch.allclose(*after_a_step.values(), atol=PLAN.lr)


def test_bf16_logits_equal_float32_logits_up_to_rounding():
    exact, rounded = random_model(), random_model()
    rounded.dtype = torch.bfloat16
    with torch.no_grad():
        logits, near = exact(some_ids()), rounded(some_ids())
    assert near.dtype == torch.bfloat16 and not torch.equal(near.float(), logits)
    assert (near.float() - logits).square().mean() < 0.01 * logits.var()


def test_a_snapshot_records_its_dtype_and_is_loaded_in_the_requested_one(tmp_path):
    snapshot(Pocket(SMALL, "bfloat16"), tmp_path / "at-25.pt")
    assert torch.load(tmp_path / "at-25.pt")["dtype"] == "bfloat16"
    assert load(tmp_path / "at-25.pt").dtype == torch.float32
    assert load(tmp_path / "at-25.pt", "bfloat16").dtype == torch.bfloat16


@pytest.mark.parametrize("dtype", ["float16", "bf16", ""])
def test_an_unsupported_training_dtype_is_refused_before_anything_is_written(dtype):
    for refused in (lambda: replace(PLAN, dtype=dtype), lambda: Pocket(SMALL, dtype)):
        with pytest.raises(CheckpointError, match=f"one of 'float32', 'bfloat16' for training, got '{dtype}'"):
            refused()


def test_the_recipe_of_the_shipped_weights_has_the_dtype_of_their_curve():
    lines = map(json.loads, (embedded_folder() / "curve.jsonl").read_text().splitlines())
    trained_in = {line["dtype"].removeprefix("torch.") for line in lines if "plan" in line}
    recipe = (embedded_folder() / "README.md").read_text().partition("## How it was made")[2]
    assert trained_in == {"float32"}
    assert "workbench.pocket.train runs/pocket --dtype float32 " in recipe and "courses ran in float32" in recipe


def test_every_test_problem_of_the_exam_is_held_out():
    problems = [p for row in rows(FAMILIES) for p in exam_problems(row, 8)]
    assert all(p.wording.terse for p in exam_problems("dag terse", 8))
    assert all(p.split == "test" and not p.wording.trained for p in problems)


def test_a_variant_differs_only_in_attention_and_by_a_low_rank_update():
    model = random_model()
    before = {name: p.clone() for name, p in model.named_parameters()}
    changed = dict(variant(model, tokens=1500, rank=2).named_parameters())
    for name, weight in model.named_parameters():
        assert torch.equal(weight, before[name]), "the original model is not modified"
        difference = changed[name] - weight
        if name.endswith(("w_qkv", "w_o")):
            values = torch.linalg.svdvals(difference)
            assert values[1] > 0 and values[2] < 1e-4 * values[0], name
        else:
            assert not difference.any(), name


def test_the_command_trains_both_courses_and_the_second_starts_from_the_first(tmp_path, monkeypatch):
    from workbench.pocket.train.__main__ import main

    monkeypatch.setattr("workbench.pocket.train.batches.POOL", 24)
    monkeypatch.setattr("workbench.pocket.train.run.mimetic", lambda model: None)
    monkeypatch.setattr("workbench.pocket.train.exam.exam_problems", lambda family, n: exam_problems(family, 1))
    monkeypatch.setattr("workbench.pocket.train.plan.SHAPE", PLAN.shape)
    command = [str(tmp_path), "--tokens", "1500", "--slips", "1500", "--batch", "700", "--workers", "1", "--plain"]
    command += ["--dtype", "bfloat16"]
    main([*command, "--steps", "1"])
    assert not (tmp_path / "slips").exists()  # the first course is not complete
    main(command)
    first, second = (torch.load(tmp_path / name) for name in ("last.pt", "slips/last.pt"))
    assert first["plan"]["dtype"] == second["plan"]["dtype"] == "bfloat16"
    assert (first["plan"]["course"], second["plan"]["course"]) == ("first", "slips")
    assert second["plan"]["start"] == str(tmp_path / "last.pt")
    shipped = Model(tmp_path / "model-bf16", dtype="float32").weights.embed
    assert torch.equal(shipped, second["model"]["embed"].to(torch.bfloat16).float())
    assert not torch.equal(first["model"]["embed"], second["model"]["embed"])


def test_the_command_trains_the_third_course_from_exported_weights(tmp_path, monkeypatch):
    from workbench.pocket.train.__main__ import main

    monkeypatch.setattr("workbench.pocket.train.batches.POOL", 24)
    monkeypatch.setattr("workbench.pocket.train.exam.exam_problems", lambda row, n: exam_problems(row, 1))
    weights = export(random_model(), tmp_path / "weights", packed=False)
    command = [str(tmp_path / "run"), "--from", str(weights), "--families", "1500", "--batch", "900", "--workers", "1"]
    main([*command, "--layers", "4", "--plain"])
    last = torch.load(tmp_path / "run" / "last.pt")
    assert last["plan"]["course"] == "families" and last["plan"]["start"] == str(weights)
    assert not (tmp_path / "run" / "slips").exists()
    assert Model(tmp_path / "run" / "model").config == SMALL
    command[:3] = [str(tmp_path / "fourth"), "--from", str(tmp_path / "run" / "model-bf16")]
    main([*command, "--course", "terse", "--layers", "4", "--plain"])
    assert torch.load(tmp_path / "fourth" / "last.pt")["plan"]["course"] == "terse"
