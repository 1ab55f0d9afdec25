"""The figures: what is written is what the runner writes, interventions do what they say, statistics are exact."""

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
from workbench.pocket.eval import accuracy as measured
from workbench.pocket.eval import card, figures
from workbench.pocket.eval.accuracy import problems, right
from workbench.pocket.eval.causes import Cut, NoSinks, prefix
from workbench.pocket.eval.routing import _channels, knows, routing
from workbench.pocket.eval.share import share
from workbench.pocket.eval.writing import alike, read, write
from workbench.pocket.families import CHAINS, FAMILIES, make, slips
from workbench.pocket.problems import Slip
from workbench.pocket.rendering import call, final, prompt, render, result, thought
from workbench.pocket.train.export import export
from workbench.pocket.vocabulary import encode, pieces
from workbench.recording.taps import Recorder
from workbench.taps import Chain


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Model:
    return Model(export(random_model(), tmp_path_factory.mktemp("random")), dtype="float32")


def test_many_prompts_are_answered_as_one_after_the_other(model):
    rng = Random(0)
    prompts = [encode(prompt(make(f, rng), "high")) for f in ("addition", "say", "addition") for _ in range(2)]
    together = write(model, prompts, max_tokens=30)
    for asked, text in zip(prompts, together):
        alone = model.generate(asked, max_tokens=30, record="")
        assert "".join(alone.str_tokens[len(asked) :]) == text
    assert len({len(p) for p in prompts}) > 2 and len(set(together)) > 4


def test_reading_gives_the_likeliest_next_tokens(model):
    texts = [render(make("hops", Random(seed), length=2), "high").ids for seed in range(4)]
    for rows, likely in read(model, texts):
        for row, tokens in zip(rows, likely):
            logits = forward(model.config, model.weights, torch.tensor([texts[row]]))
            assert torch.equal(tokens, logits[0].argmax(-1))
    assert sorted(row for rows in alike(texts) for row in rows) == [0, 1, 2, 3]


def patterns(model: Model, tap) -> tuple[Recorder, torch.Tensor]:
    names = [f"blocks.{n}.attn.hook_{point}" for n in range(model.config.n_layers) for point in ("pattern", "sink")]
    seen = Recorder(names)
    logits = forward(model.config, model.weights, some_ids(), Chain(tap, seen))
    return seen, logits


def test_without_sinks_every_row_sums_to_one(model):
    seen, _ = patterns(model, NoSinks())
    for layer in range(model.config.n_layers):
        assert (seen[f"blocks.{layer}.attn.hook_sink"] == 0).all()
        assert torch.allclose(seen[f"blocks.{layer}.attn.hook_pattern"].sum(-1), torch.ones(1), atol=1e-5)


def test_cut_full_layers_see_as_far_as_sliding_ones_also_while_writing(model):
    seen, _ = patterns(model, Cut(model.config))
    plain, _ = patterns(model, Chain())
    n = some_ids().shape[1]
    far = torch.arange(n)[:, None] - torch.arange(n) >= model.config.window
    for layer in range(model.config.n_layers):
        name = f"blocks.{layer}.attn.hook_pattern"
        assert (seen[name][..., far] == 0).all()
        assert (plain[name][..., far].sum() > 0) == (not model.config.is_sliding(layer))
    ids = some_ids()[0].tolist()
    written = write(model, [ids], max_tokens=5, tap=Cut(model.config))[0]
    for _ in range(5):
        ((_, likely),) = read(model, [ids], Cut(model.config))
        ids.append(int(likely[0, -1]))
    assert model.tokenizer is not None
    assert model.tokenizer.decode(ids[n:]) == written


def test_a_wide_window_cuts_nothing(model):
    wide = Cut(replace(model.config, window=10_000))
    assert torch.allclose(patterns(model, wide)[1], patterns(model, Chain())[1], atol=1e-5)


def test_the_blind_do_not_see_what_is_hidden_and_all_before_them_is_as_it_was(model):
    seen, logits = patterns(model, MaskKeys(slice(10, 20), 40))
    plain = patterns(model, Chain())[1]
    for layer in range(model.config.n_layers):
        pattern = seen[f"blocks.{layer}.attn.hook_pattern"]
        assert (pattern[..., 40:, 10:20] == 0).all() and (pattern[..., 19:40, 10:20].sum(-1) > 0).any()
    assert torch.allclose(logits[:, :40], plain[:, :40], atol=1e-5)
    assert not torch.allclose(logits[:, 40:], plain[:, 40:], atol=1e-3)


@pytest.mark.parametrize("family", CHAINS)
def test_a_wrong_step_is_planted_where_it_belongs(family):
    problem = make(family, Random(4), length=3)
    slip = slips(problem, Random(0))[0]
    wrong = problem.slipped(Slip(slip.number, slip.value, corrected=False))
    passed, free = prefix(wrong, slip.number, passed=True), prefix(wrong, slip.number, passed=False)
    assert passed == free + "," and free.endswith(wrong.steps[slip.number].text)
    assert (prompt(problem, "high") + thought(wrong.analysis)).startswith(passed)


def test_an_answer_counts_only_if_the_calculator_was_called():
    problem = make("calculator", Random(0))
    assert right([problem] * 3, [call(problem) + result(problem) + final(problem), final(problem), call(problem)]) == [
        True,
        False,
        False,
    ]


def test_accuracy_is_one_for_a_model_that_knows_the_answers(model, monkeypatch):
    """A stand-in for the model that writes what training would have had it write."""

    def knows(_, prompts, **__):
        texts = []
        for ids in prompts:
            text = "".join(pieces(ids))
            problem, effort = known[text.removesuffix(result_of.get(text, ""))]
            said = "" if effort == "low" else thought({"medium": problem.brief, "high": problem.analysis}[effort])
            texts.append(said + (call(problem) if problem.call and text not in result_of else final(problem)))
        return texts

    known = {
        prompt(p, e): (p, e)
        for family in FAMILIES
        for length in (None, FAMILIES[family].longest + 1)
        for trained in (False, True)
        for p in problems(family, 3, length=length, trained_wording=trained)
        for e in ("low", "medium", "high")
    }
    result_of: dict[str, str] = {}
    monkeypatch.setattr(measured, "write", knows)
    cells = measured.accuracy(model, 3, families=[*CHAINS, "say", "look"])
    assert len(cells) == 7 * 3
    for cell in cells.values():
        for key in ("new_wordings", "trained_wordings", "one_longer"):
            assert cell[key]["share"] == 1 and cell[key]["n"] == 3


def test_held_out_problems_of_the_figures_are_held_out():
    asked = problems("swaps", 40)
    assert all(p.split == "test" and not p.wording.trained for p in asked)
    assert {p.length for p in problems("swaps", 5, length=9)} == {9}


def test_what_experts_know_is_a_share_of_what_there_is_to_know():
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 2, 400), np.tile([0, 1], 200)
    assert knows(x, x, None, 5)["nmi"] == 1 and knows(x, y, None, 20)["nmi"] < 0.03
    assert knows(2 * x + y, x, y, 5)["nmi"] == 1 and knows(y, 2 * x + y, None, 5)["nmi"] == pytest.approx(0.5, abs=0.01)
    assert knows(x, x, None, 20)["null"] < 0.02


def test_routing_of_a_random_model_adds_up(model):
    found = routing(model, 2, n_shuffles=2)
    assert len(found["layers"]) == model.config.n_layers
    for layer in found["layers"]:
        assert layer["load_min"] <= 1 <= layer["load_max"] and 0 <= layer["entropy"] <= 1
        assert layer["knows"]["token class"]["nmi"] > layer["knows"]["token class"]["null"]
    assert np.array(found["sink_mean"]).shape == (model.config.n_layers, model.config.n_heads)
    assert (np.array(found["sink_mean"]) <= np.array(found["sink_max"])).all()


def test_channels_are_those_of_the_messages():
    rendered = render(make("say", Random(0)), "high")
    named = list(zip(pieces(rendered.ids), _channels(pieces(rendered.ids))))
    assert named[0] == ("<|start|>", "system") and named[-1] == ("<|return|>", "final")
    assert ("user", "user") in named and (" it", "analysis") in named and (" is", "final") in named


def test_wilson_covers_its_share():
    """The interval holds the true share in about 95 of 100 experiments."""
    rng = np.random.default_rng(1)
    for p in (0.5, 0.95):
        inside = [s["low"] <= p <= s["high"] for s in (share((rng.random(300) < p).tolist()) for _ in range(400))]
        assert 0.92 < np.mean(inside) < 0.985


def test_figures_are_drawn_from_results(tmp_path):
    cell = {"new_wordings": share([True, True, False])}
    curve = [{"tokens": t, "high": dict.fromkeys(FAMILIES, t / 10)} for t in (5, 10)]
    courses = [{"plan": {}}, *curve, {"plan": {}}, *curve]  # the second is counted on from the end of the first
    (tmp_path / "curve.jsonl").write_text("\n".join(map(json.dumps, courses)))
    results = {"accuracy": {"hops/low": cell, "hops/high": cell}, "routing": {"sink_mean": [[0.25, 0.5]]}}
    figures.draw(results, tmp_path / "curve.jsonl", tmp_path)
    bars = (tmp_path / "accuracy.svg").read_text()
    assert bars.count('height="106.7"') == 2
    drawn = (tmp_path / "curve.svg").read_text()
    assert drawn.count("<polyline") == len(FAMILIES)
    curve = re.search(r'points="([^"]*)"', drawn)
    assert curve
    places = curve[1].split()
    assert [float(place.split(",")[0]) for place in places] == [190, 330, 470, 610]
    assert ">0.25<" in (tmp_path / "sinks.svg").read_text()


def test_transformers_writes_what_the_runner_writes(model, tmp_path):
    from workbench.pocket.eval.parity import parity

    folder = export(random_model(), tmp_path)
    found = parity(model, folder, 2, max_tokens=12)
    assert found["texts_alike"]["share"] == 1 and found["logits_differ_by"] < 2e-5 * found["largest_logit"]
    other = parity(model, export(random_model(1), tmp_path / "other"), 1, max_tokens=12)
    assert other["texts_alike"]["share"] == 0 and other["logits_differ_by"] > 0.1


def test_the_card_says_what_was_measured():
    pocket = Path(__file__).parents[2] / "data" / "pocket"
    text = (pocket / "README.md").read_text(encoding="utf-8")
    results = json.loads((pocket / "results.json").read_text(encoding="utf-8"))
    assert results["digest"] == Model(pocket).digest
    assert card.filled(text, results) == text
    results["tokens_per_second"] += 1
    assert card.filled(text, results) != text
