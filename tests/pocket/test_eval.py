"""The evaluation of pocket: generation equals the runner's, interventions have their effect, statistics are exact."""

import json
import re
from dataclasses import replace
from pathlib import Path
from random import Random

import numpy as np
import pytest
import torch

from tests.pocket.test_training import random_model, some_ids
from workbench.experiments.suppression import MaskKeys
from workbench.model.gpt_oss import forward
from workbench.model.model import Model
from workbench.pocket.eval import accuracy as accuracy_module
from workbench.pocket.eval import card, figures
from workbench.pocket.eval.accuracy import correct, held_out
from workbench.pocket.eval.causes import MaskFarKeys, NoSinks, prefix
from workbench.pocket.eval.generation import generate, groups_by_length, most_likely
from workbench.pocket.eval.routing import _channels, normalized_information, routing
from workbench.pocket.eval.share import share
from workbench.pocket.families import CHAINS, FAMILIES, make, slips
from workbench.pocket.problems import Slip
from workbench.pocket.rendering import call, final, prompt, render, result, thought
from workbench.pocket.train.export import export
from workbench.pocket.vocabulary import encode, str_tokens
from workbench.recording.taps import Recorder
from workbench.taps import Chain


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Model:
    return Model(export(random_model(), tmp_path_factory.mktemp("random")), dtype="float32")


def test_batched_generation_equals_generation_of_each_prompt_alone(model):
    rng = Random(0)
    prompts = [encode(prompt(make(f, rng), "high")) for f in ("addition", "say", "addition") for _ in range(2)]
    texts = generate(model, prompts, max_tokens=30)
    for ids, text in zip(prompts, texts):
        alone = model.generate(ids, max_tokens=30, record="")
        assert "".join(alone.str_tokens[len(ids) :]) == text
    assert len({len(p) for p in prompts}) > 2 and len(set(texts)) > 4


def test_most_likely_gives_the_argmax_of_the_logits(model):
    texts = [render(make("hops", Random(seed), length=2), "high").ids for seed in range(4)]
    for rows, token_ids in most_likely(model, texts):
        for row, tokens in zip(rows, token_ids):
            logits = forward(model.config, model.weights, torch.tensor([texts[row]]))
            assert torch.equal(tokens, logits[0].argmax(-1))
    assert sorted(row for rows in groups_by_length(texts) for row in rows) == [0, 1, 2, 3]


def patterns(model: Model, tap) -> tuple[Recorder, torch.Tensor]:
    names = [f"blocks.{n}.attn.hook_{point}" for n in range(model.config.n_layers) for point in ("pattern", "sink")]
    recorded = Recorder(names)
    logits = forward(model.config, model.weights, some_ids(), Chain(tap, recorded))
    return recorded, logits


def test_without_sinks_every_row_sums_to_one(model):
    recorded, _ = patterns(model, NoSinks())
    for layer in range(model.config.n_layers):
        assert (recorded[f"blocks.{layer}.attn.hook_sink"] == 0).all()
        assert torch.allclose(recorded[f"blocks.{layer}.attn.hook_pattern"].sum(-1), torch.ones(1), atol=1e-5)


def test_masked_full_layers_attend_only_within_the_window_in_prefill_and_decode(model):
    recorded, _ = patterns(model, MaskFarKeys(model.config))
    plain, _ = patterns(model, Chain())
    n = some_ids().shape[1]
    far = torch.arange(n)[:, None] - torch.arange(n) >= model.config.window
    for layer in range(model.config.n_layers):
        name = f"blocks.{layer}.attn.hook_pattern"
        assert (recorded[name][..., far] == 0).all()
        assert (plain[name][..., far].sum() > 0) == (not model.config.is_sliding(layer))
    ids = some_ids()[0].tolist()
    text = generate(model, [ids], max_tokens=5, tap=MaskFarKeys(model.config))[0]
    for _ in range(5):
        ((_, token_ids),) = most_likely(model, [ids], MaskFarKeys(model.config))
        ids.append(int(token_ids[0, -1]))
    assert model.tokenizer is not None
    assert model.tokenizer.decode(ids[n:]) == text


def test_a_window_longer_than_the_text_masks_nothing(model):
    wide = MaskFarKeys(replace(model.config, window=10_000))
    assert torch.allclose(patterns(model, wide)[1], patterns(model, Chain())[1], atol=1e-5)


def test_masked_keys_get_no_attention_and_earlier_queries_are_unchanged(model):
    recorded, logits = patterns(model, MaskKeys(slice(10, 20), 40))
    plain = patterns(model, Chain())[1]
    for layer in range(model.config.n_layers):
        pattern = recorded[f"blocks.{layer}.attn.hook_pattern"]
        assert (pattern[..., 40:, 10:20] == 0).all() and (pattern[..., 19:40, 10:20].sum(-1) > 0).any()
    assert torch.allclose(logits[:, :40], plain[:, :40], atol=1e-5)
    assert not torch.allclose(logits[:, 40:], plain[:, 40:], atol=1e-3)


@pytest.mark.parametrize("family", CHAINS)
def test_a_prefix_with_a_slip_ends_after_the_wrong_step(family):
    problem = make(family, Random(4), length=3)
    slip = slips(problem, Random(0))[0]
    wrong = problem.slipped(Slip(slip.number, slip.value, corrected=False))
    passed, free = prefix(wrong, slip.number, passed=True), prefix(wrong, slip.number, passed=False)
    assert passed == free + "," and free.endswith(wrong.steps[slip.number].text)
    assert (prompt(problem, "high") + thought(wrong.analysis)).startswith(passed)


def test_an_answer_counts_only_if_the_calculator_was_called():
    problem = make("calculator", Random(0))
    assert correct(
        [problem] * 3, [call(problem) + result(problem) + final(problem), final(problem), call(problem)]
    ) == [
        True,
        False,
        False,
    ]


def test_accuracy_is_one_for_a_model_that_knows_the_answers(model, monkeypatch):
    """The model's generation is replaced by the reference solutions."""

    def reference_solutions(_, prompts, **__):
        texts = []
        for ids in prompts:
            text = "".join(str_tokens(ids))
            problem, effort = by_prompt[text.removesuffix(result_of.get(text, ""))]
            analysis = "" if effort == "low" else thought({"medium": problem.brief, "high": problem.analysis}[effort])
            texts.append(analysis + (call(problem) if problem.call and text not in result_of else final(problem)))
        return texts

    by_prompt = {
        prompt(p, e): (p, e)
        for family in FAMILIES
        for length in (None, FAMILIES[family].longest + 1)
        for trained in (False, True)
        for p in held_out(family, 3, length=length, trained_wording=trained)
        for e in ("low", "medium", "high")
    }
    result_of: dict[str, str] = {}
    monkeypatch.setattr(accuracy_module, "generate", reference_solutions)
    cells = accuracy_module.accuracy(model, 3, families=[*CHAINS, "say", "look"])
    assert len(cells) == 7 * 3
    for cell in cells.values():
        for key in ("new_wordings", "trained_wordings", "one_longer"):
            assert cell[key]["share"] == 1 and cell[key]["n"] == 3


def test_problems_of_the_evaluation_are_held_out():
    problems = held_out("swaps", 40)
    assert all(p.split == "test" and not p.wording.trained for p in problems)
    assert {p.length for p in held_out("swaps", 5, length=9)} == {9}


def test_normalized_information_is_a_share_of_the_label_entropy():
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 2, 400), np.tile([0, 1], 200)
    assert normalized_information(x, x, None, 5)["nmi"] == 1 and normalized_information(x, y, None, 20)["nmi"] < 0.03
    assert normalized_information(2 * x + y, x, y, 5)["nmi"] == 1 and normalized_information(y, 2 * x + y, None, 5)[
        "nmi"
    ] == pytest.approx(0.5, abs=0.01)
    assert normalized_information(x, x, None, 20)["null"] < 0.02


def test_routing_of_a_random_model_adds_up(model):
    results = routing(model, 2, n_shuffles=2)
    assert len(results["layers"]) == model.config.n_layers
    for layer in results["layers"]:
        assert layer["load_min"] <= 1 <= layer["load_max"] and 0 <= layer["entropy"] <= 1
        assert layer["knows"]["token class"]["nmi"] > layer["knows"]["token class"]["null"]
    assert np.array(results["sink_mean"]).shape == (model.config.n_layers, model.config.n_heads)
    assert (np.array(results["sink_mean"]) <= np.array(results["sink_max"])).all()


def test_each_token_has_the_channel_or_role_of_its_message():
    rendered = render(make("say", Random(0)), "high")
    named = list(zip(str_tokens(rendered.ids), _channels(str_tokens(rendered.ids))))
    assert named[0] == ("<|start|>", "system") and named[-1] == ("<|return|>", "final")
    assert ("user", "user") in named and (" it", "analysis") in named and (" is", "final") in named


def test_wilson_interval_has_its_nominal_coverage():
    """The interval contains the true share in about 95 of 100 experiments."""
    rng = np.random.default_rng(1)
    for p in (0.5, 0.95):
        inside = [s["low"] <= p <= s["high"] for s in (share((rng.random(300) < p).tolist()) for _ in range(400))]
        assert 0.92 < np.mean(inside) < 0.985


def test_figures_are_drawn_from_results(tmp_path):
    cell = {"new_wordings": share([True, True, False])}
    curve = [{"tokens": t, "high": dict.fromkeys(FAMILIES, t / 10)} for t in (5, 10)]
    courses = [{"plan": {}}, *curve, {"plan": {}}, *curve]  # the second continues the token count of the first
    (tmp_path / "curve.jsonl").write_text("\n".join(map(json.dumps, courses)))
    results = {"accuracy": {"hops/low": cell, "hops/high": cell}, "routing": {"sink_mean": [[0.25, 0.5]]}}
    figures.draw(results, tmp_path / "curve.jsonl", tmp_path)
    bars = (tmp_path / "accuracy.svg").read_text()
    assert bars.count('height="106.7"') == 2
    svg = (tmp_path / "curve.svg").read_text()
    assert svg.count("<polyline") == len(FAMILIES)
    curve = re.search(r'points="([^"]*)"', svg)
    assert curve
    points = curve[1].split()
    assert [float(point.split(",")[0]) for point in points] == [190, 330, 470, 610]
    assert ">0.25<" in (tmp_path / "sinks.svg").read_text()


def test_parity_is_exact_for_the_same_weights_and_fails_for_others(model, tmp_path):
    from workbench.pocket.eval.parity import parity

    folder = export(random_model(), tmp_path)
    same = parity(model, folder, 2, max_tokens=12)
    assert same["texts_alike"]["share"] == 1 and same["logits_differ_by"] < 2e-5 * same["largest_logit"]
    other = parity(model, export(random_model(1), tmp_path / "other"), 1, max_tokens=12)
    assert other["texts_alike"]["share"] == 0 and other["logits_differ_by"] > 0.1


def test_the_card_has_the_numbers_of_results_json():
    pocket = Path(__file__).parents[2] / "data" / "pocket"
    text = (pocket / "README.md").read_text(encoding="utf-8")
    results = json.loads((pocket / "results.json").read_text(encoding="utf-8"))
    assert results["digest"] == Model(pocket).digest
    assert card.filled(text, results) == text
    results["tokens_per_second"] += 1
    assert card.filled(text, results) != text
