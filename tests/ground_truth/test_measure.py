"""When a method counts as working, and the figures of a length, on matrices that are set by hand."""

import numpy as np

from benchmarks.ground_truth import measure
from benchmarks.ground_truth.baselines import CHAIN_RULES
from benchmarks.ground_truth.cases import Matrix, pair_indices, scored_problems
from benchmarks.ground_truth.methods import QUESTION_RULE, question_rule
from workbench.pocket.problems import Problem

PROBLEMS = scored_problems("dag terse", 30, "a test")
RULES = ["nearness", "equal value"]


def truth(problem: Problem) -> Matrix:
    """1 for the used pairs."""
    matrix = np.zeros((len(problem.steps), len(problem.steps)))
    later, earlier, used = pair_indices(problem)
    matrix[later, earlier] = used
    return matrix


def figures(**methods: list[Matrix]) -> dict:
    """The figures of these methods beside two rules."""
    matrices = {name: [CHAIN_RULES[name](problem) for problem in PROBLEMS] for name in RULES}
    return measure._figures(PROBLEMS, matrices | methods, RULES)


def test_a_method_works_if_it_is_above_every_baseline_by_more_than_chance():
    rng = np.random.default_rng(0)
    of = figures(
        right=[truth(problem) for problem in PROBLEMS],
        random=[rng.random(truth(problem).shape) for problem in PROBLEMS],
        wrong=[-truth(problem) for problem in PROBLEMS],
    )
    for column in measure.COLUMNS:
        assert of[column]["works"] == ["right"]
        assert of[column]["auroc"]["right"] == [1, 1, 1] and of[column]["auroc"]["wrong"] == [0, 0, 0]
        best, areas = of[column]["best baseline"], of[column]["auroc"]
        assert areas[best][0] == max(areas[name][0] for name in RULES)
        assert of[column]["above best baseline"]["right"][0] == round(1 - areas[best][0], 4)
        assert of[column]["within problems"]["right"] == 1


def test_a_method_that_equals_a_baseline_does_not_work():
    of = figures(copy=[CHAIN_RULES["equal value"](problem) for problem in PROBLEMS])
    assert (
        of["all pairs"]["works"] == [] and of["all pairs"]["auroc"]["copy"] == of["all pairs"]["auroc"]["equal value"]
    )


def test_the_rule_of_the_question_is_neither_a_baseline_nor_a_method():
    parsed = question_rule(PROBLEMS)
    assert parsed is not None
    of = figures(**{QUESTION_RULE: parsed})["all pairs"]
    assert of["auroc"][QUESTION_RULE] == [1, 1, 1]
    assert of["works"] == [] and of["above best baseline"] == {} and of["best baseline"] in RULES


def test_without_pairs_to_compare_nothing_works():
    problems = scored_problems("lists", 8, "a test")
    matrices = {name: [CHAIN_RULES["nearness"](problem) for problem in problems] for name in ("nearness", "method")}
    of = measure._figures(problems, matrices, ["nearness"])["equal distance"]
    assert of["auroc"]["method"] == [None, None, None] and of["works"] == []


def test_the_figures_of_a_length_are_those_of_its_problems_alone():
    matrices = {"truth": [truth(p) if p.length == 5 else -truth(p) for p in PROBLEMS]}
    problems, of_length = measure._of_length(PROBLEMS, matrices, 5)
    assert {problem.length for problem in problems} == {5} and len(problems) == 6
    assert measure._figures(problems, of_length, ["truth"])["all pairs"]["auroc"]["truth"] == [1, 1, 1]


def test_the_share_of_scored_pairs_is_the_share_of_finite_scores():
    matrix = np.full((4, 4), np.nan)
    matrix[:, 0] = 1
    assert measure._share_scored([scored_problems("dag", 1, "a test")[0]], [matrix]) == 3 / 6
