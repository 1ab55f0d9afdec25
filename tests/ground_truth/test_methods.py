"""The methods of benchmarks.ground_truth: exact answers, and what they find on pocket where it is trained."""

from random import Random

import numpy as np
import pytest
import torch

import workbench as wb
from benchmarks.ground_truth import cases, hiding, patching, readouts
from benchmarks.ground_truth.cases import Case, fitting_problems, scored_problems
from benchmarks.ground_truth.cost import count_passes
from benchmarks.ground_truth.methods import METHODS
from benchmarks.ground_truth.scores import auroc, compare, pooled_pairs
from benchmarks.ground_truth.values import with_another_value
from workbench.experiments.cached_run import CachedRun
from workbench.pocket.families import make
from workbench.pocket.problems import Problem, Wording

TERSE = Wording(terse=True)


@pytest.fixture(scope="module")
def model() -> wb.Model:
    return wb.Model("pocket")


@pytest.fixture(scope="module")
def case(model: wb.Model) -> Case:
    return Case(model, make("dag", Random(5), length=7, wording=TERSE))


@pytest.mark.parametrize("name", [name for name in METHODS if name != "receiver heads"])
def test_a_method_has_a_finite_score_for_every_pair(name: str, case: Case, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(hiding, "N_SAMPLES", 1)
    matrix, below = METHODS[name].scores(case), np.tril(np.ones((7, 7), bool), -1)
    assert matrix.shape == (7, 7) and np.isfinite(matrix[below]).all()


def test_attention_of_full_layers_is_a_part_of_all_attention(case: Case):
    everything, full = hiding.attention_all(case), hiding.attention_full(case)
    assert (everything >= full / 2 - 1e-9).all(), "half of the layers are full"
    assert (everything[np.triu_indices(7, 1)] == 0).all() and (everything.sum(1) <= 1 + 1e-6).all()


def test_receiver_heads_have_scores_only_for_steps_with_distant_later_steps(model: wb.Model, case: Case):
    matrix = hiding.receivers(case)
    assert np.isfinite(matrix[:, :3]).all() and np.isnan(matrix[:, 3:]).all()
    assert (matrix == matrix[:1])[:, :3].all(), "the same for all later steps"
    assert np.isnan(hiding.receivers(Case(model, make("dag", Random(0), length=6)))).all()


def test_a_step_without_another_value_has_no_effect(case: Case, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(cases, "with_another_value", lambda ids, segment, step: ids)
    unchanged = Case(case.model, case.problem)
    for name in ("value change", "activation patching", "attribution patching"):
        assert METHODS[name].scores(unchanged) == pytest.approx(0, abs=1e-5)


def test_resampling_is_the_share_of_continuations_with_a_step_after_minus_before(
    case: Case, monkeypatch: pytest.MonkeyPatch
):
    """The fake model repeats the solution, except before step 1, where it answers at once."""
    prompts: list[list[int]] = []

    def rollouts(model, tokens, n, *, max_tokens, seed):
        prompts.append(list(tokens))
        rest = case.token_ids[len(tokens) :]
        assert max_tokens >= len(rest)
        return [[] if seed == 1 else rest] * n

    monkeypatch.setattr(hiding, "rollouts", rollouts)
    expected = np.zeros((7, 7))
    expected[1:, 0], expected[2:, 1] = -1, 1
    assert (hiding.resampling(case) == expected).all()
    assert prompts == [case.token_ids[: segment.start] for segment in case.segments]


def test_patching_the_embedding_of_another_value_is_changing_the_value(case: Case):
    j, segment = 1, case.segments[1]
    changed = CachedRun(case.model, with_another_value(case.token_ids, segment, case.problem.steps[j]))
    last = case.model.config.n_layers
    difference = patching.step_logprobs(case, changed.resid(last)[0]) - patching.step_logprobs(
        case, case.run.resid(last)[0]
    )
    effect = patching.patched_effects(case, 0, j, changed.resid(0)[0, segment])
    assert np.abs(effect[2:]).max() > 1e-3 and not effect[:2].any()
    assert effect[2:] == pytest.approx(difference[2:].numpy(), abs=1e-4)


def test_patching_a_step_with_its_own_residuals_changes_nothing(case: Case):
    for layer in (0, 3, 5):
        own = case.run.resid(layer)[0, case.segments[2]]
        assert patching.patched_effects(case, layer, 2, own) == pytest.approx(0, abs=1e-5)


def test_the_metric_of_a_step_is_the_mean_log_probability_of_its_tokens(case: Case):
    logprobs = case.model.forward(torch.tensor([case.token_ids]))[0].log_softmax(-1)
    of_steps = patching.step_logprobs(case, case.run.resid(case.model.config.n_layers)[0])
    segment = case.segments[4]
    expected = np.mean([float(logprobs[at - 1, case.token_ids[at]]) for at in range(segment.start, segment.stop)])
    assert float(of_steps[4]) == pytest.approx(expected, abs=1e-4)


def test_attribution_is_the_limit_of_patching_for_small_changes():
    """In float64, so that the difference quotient is exact enough."""
    exact = Case(wb.Model("pocket", dtype="float64"), make("dag", Random(5), length=4, wording=TERSE))
    gradient, rng = patching.gradients(exact), np.random.default_rng(0)
    for layer, j in ((0, 1), (3, 0), (5, 2)):
        segment = exact.segments[j]
        resid = exact.run.resid(layer)[0, segment].clone()
        direction = torch.tensor(rng.normal(size=resid.shape))
        up, down = (patching.patched_effects(exact, layer, j, resid + x * direction) for x in (1e-5, -1e-5))
        expected = torch.einsum("ipd,pd->i", gradient[:, layer, segment], direction).numpy()
        assert np.abs(expected[j + 1 :]).max() > 1e-4
        assert (up - down)[j + 1 :] / 2e-5 == pytest.approx(expected[j + 1 :], rel=1e-3, abs=1e-6)


def test_a_step_does_not_depend_on_later_positions(case: Case):
    gradient = patching.gradients(case)
    for i, segment in enumerate(case.segments):
        assert not gradient[i, :, segment.stop - 1 :].any()


def test_the_best_rank_is_the_smallest_over_the_rows():
    logits = torch.tensor([[1.0, 3.0, 2.0], [5.0, 6.0, 1.0]])
    assert [readouts._best_rank(logits, token) for token in range(3)] == [1, 0, 1]


def test_the_lens_ranks_a_printed_operand_first(model: wb.Model):
    """In a chain of variables, a step prints the values that it uses, so the last layer predicts them."""
    case = Case(model, make("variables", Random(1), length=4))
    matrix = readouts.lens_rank(case)
    used = [matrix[i, j] for i, j, used in case.problem.pairs if used]
    assert (np.array(used) > -np.log(2)).all() and matrix[np.tril_indices(len(matrix), -1)].min() < -np.log(3)


def passes(case: Case, name: str) -> float:
    fresh = Case(case.model, case.problem)
    return count_passes(case.model, lambda: METHODS[name].scores(fresh), len(case.token_ids))


def test_passes_are_those_that_each_method_is_known_to_need(case: Case):
    n, n_layers, segments = len(case.token_ids), case.model.config.n_layers, case.segments
    after = sum(n - segment.stop for segment in segments) / n
    with_own = sum(n - segment.start for segment in segments) / n
    upper_layers = sum(n_layers - layer for layer in range(n_layers)) / n_layers
    expected = {
        "attention, all layers": 1,
        "suppression, later": 2 + after,  # the trace, the unedited run, and the text after each step
        "suppression, all": 2 + with_own,
        "suppression, routing frozen": 2 + 3 * after,
        "routing shift": 2 + after,
        "value change": 1 + len(segments),
        "attribution patching": 2 + len(segments),
        "activation patching": 1 + len(segments) + with_own * upper_layers,
        "logit-lens rank": 1,
    }
    assert {name: passes(case, name) for name in expected} == pytest.approx(expected)


def test_a_method_that_is_undefined_needs_no_pass(model: wb.Model):
    short = Case(model, make("dag", Random(0), length=4))
    assert passes(short, "receiver heads") == 0


def test_counting_leaves_the_scores_as_they_are(case: Case):
    counted: list[np.ndarray] = []
    count_passes(case.model, lambda: counted.append(hiding.suppression_all(case)), 1)
    assert np.array_equal(counted[0], hiding.suppression_all(case))


def area(problems: list[Problem], matrices: list[np.ndarray]) -> float:
    return auroc(compare(pooled_pairs(problems, matrices), len(problems)))


def test_on_trained_chains_of_variables_the_methods_find_most_of_what_is_used(model: wb.Model):
    problems = scored_problems("variables", 2, "a test")
    texts = [Case(model, problem) for problem in problems]
    for name in ("attention, all layers", "suppression, later", "value change", "activation patching"):
        assert area(problems, [METHODS[name].scores(case) for case in texts]) > 0.95, name


def test_a_probe_finds_what_it_was_fitted_on_in_other_problems(model: wb.Model):
    probe = readouts.PairProbe(model, fitting_problems("lists", 24))
    problems = scored_problems("lists", 8, "a test")
    assert area(problems, [probe(Case(model, problem)) for problem in problems]) > 0.85
