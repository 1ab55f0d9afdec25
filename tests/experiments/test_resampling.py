"""Resampling: greedy rollouts equal generation, samples follow the probabilities, and importances add up."""

from typing import Any

import numpy as np
import pytest
import torch

import workbench as wb
from tests.model.models import some_tokens, tiny
from workbench.errors import NotRecorded
from workbench.experiments import resampling as module
from workbench.experiments.resampling import divergence, resampling
from workbench.experiments.sampling import rollouts, row_seeds

PARTS = [slice(10, 15), slice(15, 20), slice(20, 30)]


def test_at_temperature_zero_rollouts_equal_generation():
    model = tiny()
    prompt = some_tokens(30)
    rows = rollouts(model, prompt, 3, temperature=0, max_tokens=12)
    assert rows == [model.generate(prompt, max_tokens=12, record="").tokens[30:]] * 3


def test_tokens_are_sampled_with_their_probabilities():
    model = tiny()
    prompt = some_tokens(30)
    p = model.forward(torch.tensor([prompt]))[0, -1].double().softmax(-1).numpy()
    first = np.array([row[0] for row in rollouts(model, prompt, 4000, max_tokens=1)])
    frequencies = np.bincount(first, minlength=len(p)) / len(first)
    likely = np.argsort(-p)[:8]
    assert np.all(np.abs(frequencies - p)[likely] < 4 * np.sqrt(p * (1 - p) / len(first))[likely])
    assert rollouts(model, prompt, 5, max_tokens=9, seed=3) == rollouts(model, prompt, 5, max_tokens=9, seed=3)
    assert rollouts(model, prompt, 5, max_tokens=9, seed=3) != rollouts(model, prompt, 5, max_tokens=9, seed=4)


def test_each_continuation_is_the_generated_one_with_its_seed():
    """In whatever batch; rows have the same bits as alone, so the sampled tokens are equal too."""
    model = wb.Model(tiny_folder_of_stops())
    prompt = some_tokens(20)
    rows = rollouts(model, prompt, 5, max_tokens=30, temperature=0.9, seed=6)
    assert rows[:2] == rollouts(model, prompt, 2, max_tokens=30, temperature=0.9, seed=6)
    for row, seed in zip(rows, row_seeds(6, 5)):
        alone = model.generate(prompt, max_tokens=30, temperature=0.9, seed=seed, record="")
        assert list(alone.tokens[20:]) == row


def test_rows_stop_individually():
    model = wb.Model(tiny_folder_of_stops())
    rows = rollouts(model, some_tokens(20), 6, max_tokens=40, seed=1)
    assert len({len(row) for row in rows}) > 1
    for row in rows:
        assert all(token not in model.stop_ids for token in row[:-1])
        assert len(row) == 40 or row[-1] in model.stop_ids


def tiny_folder_of_stops():
    from tests.checkpoints import Random

    model = Random(seed=0).transformers(torch.float32)
    model.generation_config.eos_token_id = list(range(40))
    return model


@pytest.fixture
def known(monkeypatch):
    """Simulated rollouts that answer "x" with a probability set by the number of prompt tokens."""
    probabilities = {10: 0.1, 15: 0.1, 20: 0.7, 30: 0.95}

    def draws(model, texts, n, *, seeds, **how):
        rngs = [np.random.default_rng([seed, len(tokens)]) for seed, tokens in zip(seeds, texts)]
        return [
            [["x" if rng.random() < probabilities[len(tokens)] else "y"] for _ in range(n)]
            for rng, tokens in zip(rngs, texts)
        ]

    monkeypatch.setattr(module.drawing, "side_by_side", draws)
    return probabilities


def last(text: Any) -> str:
    """The answer of a simulated rollout."""
    return text[-1]


def test_known_accuracies_are_covered_and_importances_sum(known):
    trace = tiny().trace(some_tokens(30), record="")
    inside, runs = [], []
    for seed in range(40):
        effects = resampling(tiny(), trace, "x", n_samples=100, segments=PARTS, parse_answer=last, seed=seed)
        runs.append(effects)
        truth = np.array(list(known.values()))
        inside += ((effects["low"] <= truth) & (truth <= effects["high"])).values.tolist()
        assert float(effects["importance"].sum()) == pytest.approx(
            float(effects["accuracy"][-1] - effects["accuracy"][0])
        )
        assert int(np.argmax(effects["importance"].values)) == 1
    assert 0.9 < np.mean(inside) < 0.99
    assert runs[-1].attrs["detectable"] == pytest.approx(0.198, abs=1e-3)
    assert 0.1 < runs[-1].attrs["null_max"] < 0.25


def test_a_step_without_effect_has_zero_importance(known):
    known.update(dict.fromkeys(known, 1.0))
    trace = tiny().trace(some_tokens(30), record="")
    effects = resampling(tiny(), trace, "x", n_samples=30, segments=PARTS, parse_answer=last)
    assert (effects["importance"] == 0).all() and (effects["kl"] == 0).all() and effects.attrs["null_max"] == 0


def test_a_text_without_an_answer_does_not_count_as_wrong(monkeypatch):
    """All answers are correct, but earlier cuts have more continuations without an answer."""
    shares = {10: 0.9, 15: 0.5, 20: 0.2, 30: 0.0}

    def draws(model, texts, n, **how):
        return [[["cut" if i < shares[len(tokens)] * n else "x"] for i in range(n)] for tokens in texts]

    monkeypatch.setattr(module.drawing, "side_by_side", draws)
    answer = lambda tokens: None if tokens[-1] == "cut" else tokens[-1]  # noqa: E731
    trace = tiny().trace(some_tokens(30), record="")
    effects = resampling(tiny(), trace, "x", n_samples=20, segments=PARTS, parse_answer=answer)
    assert effects["none"].values.tolist() == pytest.approx(list(shares.values()))
    assert (effects["accuracy"] == 1).all() and (effects["importance"] == 0).all() and effects.attrs["null_max"] == 0
    assert effects.attrs["answers"][:1] == [{"<none>": 18, "x": 2}]
    assert float(effects["kl_p"][0]) < 0.02 < float(effects["kl"][0])
    shares.update({10: 1.0, 15: 1.0})
    effects = resampling(tiny(), trace, "x", n_samples=20, segments=PARTS, parse_answer=answer)
    assert (
        np.isnan(effects["accuracy"][:2]).all() and np.isnan(effects["low"][0]) and float(effects["accuracy"][2]) == 1
    )
    assert effects.attrs["null_max"] == 0
    shares.update(dict.fromkeys(shares, 1.0))
    effects = resampling(tiny(), trace, "x", n_samples=20, segments=PARTS, parse_answer=answer)
    assert np.isnan(effects.attrs["null_max"]) and np.isnan(effects["importance"]).all() and (effects["kl"] == 0).all()


def test_kl_of_equal_distributions_matches_its_null():
    rng = np.random.default_rng(1)
    probabilities = {"a": 0.5, "b": 0.3, "c": 0.15, "<none>": 0.05}
    pairs = [
        [list(rng.choice(list(probabilities), 20, p=list(probabilities.values()))) for _ in "12"] for _ in range(300)
    ]
    kl = np.array([divergence(*pair) for pair in pairs])
    nulls = [module._null_divergences(before, after) for before, after in pairs]
    assert 0.05 < kl.mean() < 0.15
    assert np.mean([null.mean() for null in nulls]) == pytest.approx(kl.mean(), rel=0.15)
    p = np.array([(1 + (null >= one).sum()) / 1001 for one, null in zip(kl, nulls)])
    assert 0.01 < (p <= 0.05).mean() < 0.10
    assert (module._null_divergences(["a"] * 20, ["a"] * 20) == 0).all()


def test_divergence_uses_smoothed_counts():
    p, q = np.array([3.5, 1.5]) / 5, np.array([0.5, 4.5]) / 5
    assert divergence(["a", "a", "a", "b"], ["b", "b", "b", "b"]) == pytest.approx((p * np.log(p / q)).sum())
    one, none = ["a"] * 1 + ["b"] * 99, ["b"] * 100
    assert 0 < divergence(one, none) < 0.01  # 0.2 nats with a smoothing of 1e-9


def test_invalid_resampling_inputs_are_refused():
    trace = tiny().trace(some_tokens(30), record="")
    with pytest.raises(NotRecorded, match="no steps"):
        resampling(tiny(), trace, "x", segments=[])
    with pytest.raises(NotRecorded, match="has no answer"):
        resampling(tiny(), trace, segments=PARTS, parse_answer=lambda tokens: None)
