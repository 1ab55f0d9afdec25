"""The rules of benchmarks.ground_truth that do not use the model, on problems whose answers are known."""

import doctest
from random import Random

import numpy as np
import pytest

from benchmarks.ground_truth import baselines, cases, cost, values
from benchmarks.ground_truth.baselines import CHAIN_RULES, consistent_values, named_in_chain, named_in_question
from benchmarks.ground_truth.cases import fitting_problems, lengths, pair_indices, scored_problems
from benchmarks.ground_truth.fitted_rules import FittedChainRule, PositionRule
from benchmarks.ground_truth.scores import auroc, compare, pooled_pairs
from benchmarks.ground_truth.values import value_positions, with_another_value
from workbench.pocket.families import CHAINS, DAGS, FAMILIES, make, of_row, rows
from workbench.pocket.families.dag import Dag
from workbench.pocket.problems import Problem, Wording
from workbench.pocket.rendering import render
from workbench.pocket.vocabulary import str_tokens

EXAMPLE = Dag(("1+2", "3-4", "a+b", "7-2"), "dbca", "c")  # a 3, b 9, c 2, d 5
TERSE = Wording(terse=True)


def area(problems: list[Problem], rule) -> float:
    return auroc(compare(pooled_pairs(problems, [rule(problem) for problem in problems]), len(problems)))


@pytest.mark.parametrize("module", [baselines, cases, cost, values])
def test_the_examples_in_docstrings_are_right(module):
    assert doctest.testmod(module, optionflags=doctest.NORMALIZE_WHITESPACE).failed == 0


def test_rules_of_the_chain_on_a_problem_by_hand():
    spoken, terse = Problem(EXAMPLE), Problem(EXAMPLE, TERSE)
    scores = {name: rule(terse) for name, rule in CHAIN_RULES.items()}
    assert scores["nearness"][3, :3].tolist() == [-3, -2, -1]
    for name in ("equal value", "shared name", "equal token", "named in the chain"):
        assert not scores[name].any(), "a terse chain of different values shares nothing"
    assert named_in_chain(spoken).tolist() == [[0, 0, 0, 0], [0, 0, 0, 0], [1, 1, 0, 0], [0, 0, 0, 0]]
    assert CHAIN_RULES["shared name"](spoken)[2].tolist() == [1, 1, 0, 0]
    assert CHAIN_RULES["equal token"](spoken)[1].tolist() == [2, 0, 0, 0], "so, and the 3"


def test_consistent_values_counts_the_sums_and_differences():
    matrix = consistent_values(Problem(EXAMPLE, TERSE))  # values 3, 9, 2, 5
    assert matrix[2].tolist() == [1, 1, 0, 0], "3 + 9 = 2"
    assert matrix[3].tolist() == [1, 0, 1, 0], "3 + 2 = 5"
    assert not consistent_values(make("hops", Random(0), length=4)).any(), "people are not digits"


@pytest.mark.parametrize("family", DAGS)
def test_the_chain_names_all_that_is_used_if_spoken_and_nothing_if_terse(family):
    for seed in range(60):
        spoken = make(family, Random(seed), length=7)
        later, earlier, used = pair_indices(spoken)
        assert (named_in_chain(spoken)[later, earlier] == used).all()
        assert not named_in_chain(Problem(spoken.facts, TERSE)).any()


@pytest.mark.parametrize("family", [*DAGS, "hint", "tools"])
@pytest.mark.parametrize("terse", [False, True])
def test_parsing_the_question_gives_the_graph(family, terse):
    for seed in range(60):
        drawn = make(family, Random(seed))
        problem = Problem(drawn.facts, Wording(seed % 3, seed % 2, seed % 2, terse))
        later, earlier, used = pair_indices(problem)
        matrix = named_in_question(problem)
        assert matrix is not None and (matrix[later, earlier] == used).all()


def test_families_without_labels_have_no_rule_of_the_question():
    assert named_in_question(make("hops", Random(0))) is None


def test_a_position_rule_gives_the_share_of_used_pairs_with_half_a_count_added():
    rule = PositionRule([Problem(EXAMPLE), Problem(Dag(("1+2", "a-4", "1+1", "7-2"), "dbca", "c"))])
    shares = rule(Problem(EXAMPLE))
    assert shares[2, 0] == shares[1, 0] == 1.5 / 3 and shares[3, 0] == 0.5 / 3
    assert (rule(make("dag", Random(0), length=6)) == 0.5).all(), "no chain of this length was counted"


def test_the_fitted_rule_finds_spoken_graphs_and_the_positions_of_tree_but_little_in_terse_dags():
    areas = {}
    for row in ("dag", "dag terse", "tree terse"):
        problems = scored_problems(row, 60, "a test")
        areas[row] = area(problems, FittedChainRule(fitting_problems(row, 300)))
    assert areas["dag"] == 1 and 0.55 < areas["dag terse"] < 0.72 and areas["tree terse"] > 0.75


@pytest.mark.parametrize("row", rows(DAGS))
def test_nearness_is_at_chance_in_the_scored_problems(row):
    problems = scored_problems(row, 300, "a test")
    assert 0.42 < area(problems, CHAIN_RULES["nearness"]) < 0.6
    if row.endswith("terse"):
        names = ("equal value", "shared name", "equal token", "named in the chain")
        assert all(area(problems, CHAIN_RULES[name]) < 0.7 for name in names)


@pytest.mark.parametrize("row", ["dag terse", "boxes", "lists"])
def test_scored_problems_are_held_out_and_their_lengths_balanced(row):
    problems = scored_problems(row, 24, "a test")
    assert {problem.split for problem in problems} == {"test"}
    assert {problem.wording.terse for problem in problems} == {row.endswith("terse")}
    assert not any(problem.wording.trained for problem in problems)
    counts = [sum(problem.length == length for problem in problems) for length in lengths(row)]
    assert max(counts) - min(counts) <= 1 and lengths(row)[0] == 4
    assert {problem.split for problem in fitting_problems(row, 8)} == {"train"}
    assert [p.question for p in problems] != [p.question for p in scored_problems(row, 24, "another")]


@pytest.mark.parametrize("family", [*DAGS, "variables", "addition", "hops", "swaps", "lists", "tools"])
def test_another_value_changes_the_value_of_one_step_and_nothing_else(family):
    for seed in range(20):
        terse = seed % 2 == 1 and FAMILIES[family].has_terse
        problem = make(family, Random(seed), wording=Wording(terse=terse))
        rendered = render(problem, "high")
        for segment, step in zip(rendered.steps, problem.steps):
            positions = value_positions(rendered.ids, segment, step)
            assert segment.start <= positions[0] and positions[-1] < segment.stop
            words = "".join(str_tokens([rendered.ids[at] for at in positions]))
            assert words.replace(" ", "") == step.value.replace(" ", "") or not step.value
            changed = with_another_value(rendered.ids, segment, step)
            different = [k for k, (a, b) in enumerate(zip(changed, rendered.ids, strict=True)) if a != b]
            assert {*different} <= {*positions}
            if step.value.strip().isdigit() and len(positions) == 1:
                assert different == positions and "".join(str_tokens([changed[different[0]]])).isdigit()
            assert changed == with_another_value(rendered.ids, segment, step)


def test_the_rows_have_terse_wordings_only_where_the_family_has_them():
    assert [of_row(row, trained=False)[0] for row in rows(DAGS)] == ["dag", "dag", "boxes", "boxes", "tree", "tree"]


def test_values_of_two_steps_are_compared_as_numbers_of_equal_colors():
    problem = make("boxes", Random(1), length=4)
    colors = [{*step.value.split()} for step in problem.steps]
    expected = np.array([[len(colors[i] & colors[j]) if j < i else 0 for j in range(4)] for i in range(4)])
    assert (CHAIN_RULES["equal value"](problem) == expected).all()


@pytest.mark.parametrize("family", CHAINS)
def test_three_of_the_older_families_have_no_pairs_to_compare_at_equal_distance(family):
    problems = scored_problems(family, 60, "a test")
    pairs = pooled_pairs(problems, [CHAIN_RULES["nearness"](problem) for problem in problems])
    assert compare(pairs, 60, same_distance=True).n.any() == (family in ("variables", "hops"))
