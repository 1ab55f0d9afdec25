"""Rules that do not use the model cannot find the graphs of dag, boxes and tree."""

from collections import Counter
from random import Random

import numpy as np
import pytest

from workbench.analysis.statistics import auroc
from workbench.pocket.balance import BASELINES, balance, main, rule_auroc, table
from workbench.pocket.families import DAGS, FAMILIES, make, slips
from workbench.pocket.families.boxes import Boxes, last_writes
from workbench.pocket.families.dag import random_uses
from workbench.pocket.families.tree import random_tree
from workbench.pocket.problems import Problem, Slip, Step, Wording

LENGTHS = [(family, length) for family in DAGS for length in (*range(4, FAMILIES[family].longest + 2), None)]


@pytest.mark.parametrize(("family", "length"), LENGTHS)
def test_nearness_is_near_chance_and_so_are_values_and_names_in_terse_chains(family, length):
    """With a margin: the limits for 2,000 problems are 0.40 to 0.60, and 0.70."""
    terse = balance(family, length, n=600, terse=True, seed=1)
    assert 0.42 < terse["nearness"] < 0.59
    assert 0.40 < terse["equal value"] < 0.66 and terse["shared name"] == 0.5
    spoken = balance(family, length, n=150, seed=1)
    assert spoken["shared name"] > 0.8, "a spoken chain prints what each step uses"


@pytest.mark.parametrize("family", ["variables", "hops", "swaps", "lists"])
def test_nearness_finds_nearly_every_edge_in_the_older_families(family):
    problems = [make(family, Random(seed), length=5) for seed in range(60)]
    assert rule_auroc(problems, BASELINES["nearness"]) > 0.95


@pytest.mark.parametrize(("family", "low", "high"), [("dag", 0.45, 0.55), ("boxes", 0.45, 0.58), ("tree", 0.75, 0.9)])
def test_positions_tell_what_is_used_in_tree_but_not_in_dag_and_boxes(family, low, high):
    """A rule that has counted how often each pair of positions is used, on other problems of the same length."""
    rng = Random(4)
    counted, scored = ([make(family, rng, length=5).pairs for _ in range(1500)] for _ in range(2))
    used = np.zeros((5, 5))
    for i, j, truth in (pair for pairs in counted for pair in pairs):
        used[i, j] += truth
    scores = np.array([used[i, j] for pairs in scored for i, j, _ in pairs])
    assert low < auroc(scores, np.array([truth for pairs in scored for *_, truth in pairs])) < high


@pytest.mark.parametrize("length", [4, 6, 8])
def test_in_dag_a_pair_is_used_equally_often_at_every_distance(length):
    rng, n = Random(2), 4000
    used = np.zeros((length, length))
    for _ in range(n):
        for i, row in enumerate(random_uses(rng, length)):
            assert len(row) <= 2
            used[i, row] += 1
    shares = [np.diagonal(used, -d).mean() / n for d in range(1, length)]
    assert max(shares) - min(shares) < 0.04


def test_swaps_are_used_at_most_twice_and_steps_of_a_tree_once():
    rng = Random(3)
    for length in range(1, 10):
        for _ in range(50):
            writes, tree = last_writes(rng, length), random_tree(rng, length)
            assert max(sum(j in row for row in writes) for j in range(length)) <= 2
            assert [sum(j in row for row in tree) for j in range(length)] == [1] * (length - 1) + [0]
            assert all(len(row) <= 2 and all(j < i for j in row) for i, row in enumerate(tree))


def test_a_step_of_boxes_uses_the_latest_step_of_each_of_its_people():
    for seed in range(60):
        problem = make("boxes", Random(seed))
        swaps = problem.facts.swaps  # type: ignore[attr-defined]
        for i, pair in enumerate(swaps):
            latest = {
                max(j for j in range(i) if name in swaps[j]) for name in pair if any(name in s for s in swaps[:i])
            }
            assert set(problem.edges[i]) == latest


@pytest.mark.parametrize("family", DAGS)
def test_both_wordings_of_a_problem_have_the_same_graph_and_values(family):
    for seed in range(40):
        spoken = make(family, Random(seed))
        terse = Problem(spoken.facts, Wording(terse=True))
        assert spoken.edges == terse.edges and spoken.answer == terse.answer
        assert [step.value for step in spoken.steps] == [step.value for step in terse.steps]
        assert terse.analysis == spoken.brief and len(terse.analysis) < len(spoken.analysis)


@pytest.mark.parametrize("family", DAGS)
def test_another_value_of_a_step_changes_every_step_that_uses_it_alone(family):
    """Every edge has an effect: no product with 0 hides it."""
    n_users = 0
    for seed in range(30):
        problem = make(family, Random(seed), length=6)
        for slip in slips(problem, Random(seed)):
            changed = problem.slipped(Slip(slip.number, slip.value, corrected=False))
            for i, uses in problem.edges.items():
                if uses == (slip.number,) and (family != "boxes" or receives(problem, slip, i)):
                    assert changed.steps[i].value != problem.steps[i].value
                    n_users += 1
    assert n_users > 20


def receives(problem: Problem, slip: Slip, later: int) -> bool:
    """Whether the person whose color is wrong in this slip takes part in a later swap."""
    right = problem.steps[slip.number].value.split()
    who = next(i for i, (a, b) in enumerate(zip(right, slip.value.split())) if a != b)
    swaps = problem.facts.swaps  # type: ignore[attr-defined]
    return swaps[slip.number][who] in swaps[later]


def test_pairs_leave_out_steps_that_only_restate_the_question():
    problem = make("swaps", Random(0), length=3)
    assert problem.steps[0].kind == "setup" and problem.edges[1] == (0,)
    assert problem.pairs == [(2, 0, False), (2, 1, True), (3, 0, False), (3, 1, False), (3, 2, True)]


def test_baselines_score_pairs_by_distance_values_and_names():
    earlier, later = Step("a Ann red Bob blue so Ann blue Bob red", "blue red"), Step("b red red", "red red")
    scores = {name: rule(earlier, later, 3) for name, rule in BASELINES.items()}
    assert scores == {"nearness": -3, "equal value": 1, "shared name": 0}


def test_the_command_prints_a_row_for_each_wording_and_length(capsys):
    main(["tree", "-n", "20"])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 + 2 * 6 and lines == table(("tree",), 20).splitlines()
    assert lines[2].startswith("| tree | spoken | 4 | 0.")


def test_the_commonest_color_of_boxes_is_no_good_guess():
    rng = Random(0)
    problems = [make("boxes", rng, length=length) for length in (5, 6, 7, 8) for _ in range(100)]
    n_right = 0
    for problem in problems:
        assert isinstance(problem.facts, Boxes)
        n_right += Counter(color for _, color in problem.facts.colors).most_common(1)[0][0] == problem.answer
    assert n_right / len(problems) < 0.45
