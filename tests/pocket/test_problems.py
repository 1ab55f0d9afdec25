"""The problems: dependency graphs, spans, answers, and what is held out of training."""

import re
from collections.abc import Callable
from dataclasses import replace
from hashlib import sha256
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workbench.errors import PromptError
from workbench.pocket.families import CHAINS, CONTROLS, DAGS, FAMILIES, make, slips, with_changed_rule, wordings
from workbench.pocket.problems import Problem, Slip, Wording
from workbench.pocket.train.mix import COURSES, draw

SEEDS = st.integers(0, 2**32)


@st.composite
def problems(draw, families=tuple(FAMILIES), split=None):
    family, rng = draw(st.sampled_from(families)), Random(draw(SEEDS))
    return make(family, rng, split=split, wording=rng.choice(wordings(family, trained=draw(st.booleans()))))


@st.composite
def slipped(draw, corrected: bool):
    """A problem with a chain, and the same problem with one wrong step."""
    problem = draw(problems(CHAINS))
    possible = slips(problem, Random(draw(SEEDS)), corrected=corrected)
    slip = draw(st.sampled_from(possible or [None]))
    return problem, problem.slipped(slip)


def first(pattern: str, text: str) -> str:
    match = re.search(pattern, text)
    assert match
    return match[1]


def value_of_a_variable(q: str) -> str:
    known: dict[str, Any] = {"__builtins__": {}}
    name_in_question = first(r"(?:Find|What is|Give) ([a-z])", q)
    definitions = dict(re.findall(r"([a-z])=([a-z0-9+*-]+)", q))
    while name_in_question not in known:
        for name, meaning in definitions.items():
            if all(letter in known for letter in re.findall("[a-z]", meaning)):
                known[name] = eval(meaning, known) % 10
    return str(known[name_in_question])


def end_of_the_hops(q: str) -> str:
    to, name = dict(re.findall(r"(\w+) to (\w+)", q)), first(r"(?:Start with|Begin at|From) (\w+)", q)
    while name in to:
        name = to[name]
    return name


def last_holder(q: str) -> str:
    holder = first(r"(\w+) has the", q)
    for a, b in re.findall(r"(\w+) and (\w+)", q):
        holder = {a: b, b: a}.get(holder, holder)
    return holder


LIST_STEPS: dict[str, Callable[[list[str]], list[str]]] = {
    "drop": lambda row: row[1:],
    "cut": lambda row: row[:-1],
    "rotate": lambda row: [*row[1:], row[0]],
    "turn": lambda row: [row[-1], *row[:-1]],
    "flip": lambda row: [row[1], row[0], *row[2:]],
    "switch": lambda row: [*row[:-2], row[-1], row[-2]],
    "ends": lambda row: [row[-1], *row[1:-1], row[0]],
    "lift": lambda row: [*row[2:3], *row[:2], *row[3:]],  # two digits have no third, so they are unchanged
    "reverse": lambda row: row[::-1],
}


def changed_list(q: str) -> str:
    row = list(first(r"(\d+)", q))
    for word in re.findall("|".join(LIST_STEPS), q):
        row = LIST_STEPS[word](row)
    return "".join(row)


def sum_of_two(q: str) -> str:
    return str(sum(map(int, re.findall(r"\d+", q)[:2])))


def product_of_two(q: str) -> str:
    a, b, *_ = map(int, re.findall(r"\d+", q))
    return str(a * b)


def looked_up(q: str) -> str:
    key = first(r"(?:What has|Look up|Which is with) (\w+)", q)
    return first(rf"{key} (\w+)[,;.]", q)


def copied_text(q: str) -> str:
    return first(r"(?:Say|Repeat|Copy) (.*?)\.", q)


def color_of_a_person(q: str) -> str:
    start, swaps = q.split("Swaps:")
    has = dict(re.findall(r"(\w+) (\w+)[,;.]", start))
    for a, b in re.findall(r"(\w+) and (\w+)", swaps):
        has[a], has[b] = has[b], has[a]
    return has[first(r"(?:What has|Look up|Which is with) (\w+)", swaps)]


def value_of_the_tree(q: str) -> str:
    nested = first(r" ([a-i][(\[].*[)\]][a-i])\.", q).translate(str.maketrans("[]", "()"))
    return str(eval(re.sub("[a-z]", "", nested)) % 10)


def hinted_or_computed(q: str) -> str:
    source, hint = re.findall(r"(\w+) says (?:it is )?(\d)", q)[0]
    return hint if source in "Ann Bob Cal Dee Eve Fay Gus Hal Ida Jim" else value_of_a_variable(q)


def given_or_declined(q: str) -> str:
    things = re.findall(r"[a-z]+", first(r"(?:Give|Use|Find) (.*?)\.", q))
    return "declined" if {"fuse", "vial", "wire", "coil"} & {*things} else " ".join(things)


def called_or_taken(q: str) -> str:
    def value(name: str) -> int:
        return int(value_of_a_variable(f"{q} Find {name}"))

    decides, a, b = re.findall(r"If ([a-z]) is over 4 use calc: ([a-z])\*([a-z])", q)[0]
    return str(value(a) * value(b) if value(decides) > 4 else value(first(r"[Tt]ake ([a-z])", q)))


SOLVE: dict[str, Callable[[str], str]] = {
    "addition": sum_of_two,
    "calculator": product_of_two,
    "variables": value_of_a_variable,
    "hops": end_of_the_hops,
    "swaps": last_holder,
    "lists": changed_list,
    "look": looked_up,
    "say": copied_text,
    "dag": value_of_a_variable,
    "boxes": color_of_a_person,
    "tree": value_of_the_tree,
    "hint": hinted_or_computed,
    "refuse": given_or_declined,
    "tools": called_or_taken,
}


def solved(problem: Problem) -> str:
    """The answer, computed from the question's text alone, independently of the families' code."""
    return SOLVE[problem.family](problem.question)


def check_graph(problem: Problem):
    """Checks that steps use only earlier steps, and that each value follows from what the step uses and reads."""
    question, steps = problem.question, problem.steps
    for number, step in enumerate(steps):
        assert all(0 <= used < number for used in step.uses)
        read = [question[a:b] for a, b in step.reads]
        assert all(read) and all(0 <= a < b <= len(question) for a, b in step.reads)
        if step.kind == "wrong":
            continue
        used = [steps[i].value for i in step.uses if not (step.kind == "correction" and steps[i].kind == "wrong")]
        assert problem.facts.derive(step, used, read) == step.value
        assert all(part in step.text for part in step.value.split()) or step.kind in ("setup", "plan")


@given(problems())
@settings(max_examples=250, deadline=None)
def test_every_step_follows_from_the_steps_that_it_uses_and_the_spans_that_it_reads(problem):
    check_graph(problem)


@given(problems())
@settings(max_examples=250, deadline=None)
def test_the_answer_is_what_the_question_asks_for(problem):
    assert problem.answer == solved(problem)


@given(slipped(corrected=True))
@settings(max_examples=120, deadline=None)
def test_a_corrected_slip_changes_neither_graph_nor_answer(pair):
    problem, wrong = pair
    check_graph(wrong)
    assert wrong.answer == problem.answer
    if wrong.slip:
        kinds = [step.kind for step in wrong.steps]
        at = kinds.index("wrong")
        assert kinds[at + 1] == "correction" and wrong.steps[at + 1].text.startswith("Wait, ")
        assert wrong.steps[at].value != problem.steps[at].value == wrong.steps[at + 1].value
        assert [s for s in wrong.steps if s.kind not in ("wrong", "correction")] == [
            s for i, s in enumerate(_renumbered(problem, at)) if i != at
        ]


def _renumbered(problem: Problem, at: int):
    """The steps of a problem, renumbered for a step inserted after `at`."""
    from dataclasses import replace

    steps = [replace(s, uses=tuple(u + (u >= at) for u in s.uses)) for s in problem.steps]
    return [replace(s, stop=".") if i == at and i == len(steps) - 1 else s for i, s in enumerate(steps)]


@given(slipped(corrected=False))
@settings(max_examples=120, deadline=None)
def test_steps_after_an_uncorrected_slip_follow_from_the_wrong_value(pair):
    problem, wrong = pair
    check_graph(wrong)
    if wrong.slip:
        at = wrong.slip.number
        assert wrong.steps[:at] == problem.steps[:at] and wrong.steps[at].value == wrong.slip.value
        differ = wrong.steps[at].slip_from
        assert differ is not None and wrong.steps[at].text[:differ] == problem.steps[at].text[:differ]
        assert wrong.steps[at].text[differ : differ + 1] != problem.steps[at].text[differ : differ + 1]
        assert not problem.steps[at].text.startswith(wrong.steps[at].text), "nothing in it would be wrong"


@given(problems())
@settings(max_examples=120, deadline=None)
def test_asides_are_distractors_that_nothing_uses(problem):
    asides = {n for n, step in enumerate(problem.steps) if step.distractor}
    assert not asides & {used for step in problem.steps for used in step.uses}
    assert bool(asides) == ("Note" in problem.question)
    reached, new = set(), {len(problem.steps) - 1}
    while new:
        reached |= new
        new = {used for n in new for used in problem.steps[n].uses} - reached
    if problem.family in CHAINS:
        assert reached | asides == set(range(len(problem.steps))), "every other step leads to the answer"


def test_both_kinds_of_distractors_occur():
    for family in ("variables", "hops"):
        drawn = [make(family, Random(seed)) for seed in range(40)]
        assert any(step.distractor for p in drawn for step in p.steps)
        assert not all(any(step.distractor for step in p.steps) for p in drawn)


@given(problems(), st.booleans())
@settings(max_examples=120, deadline=None)
def test_a_problem_is_in_one_split_in_all_its_wordings(problem, trained):
    words = wordings(problem.family, trained=trained)
    assert {Problem(problem.facts, wording).split for wording in words} == {problem.split}


@given(SEEDS, st.floats(0, 1), st.sampled_from(tuple(COURSES)))
@settings(max_examples=200, deadline=None)
def test_training_never_includes_a_test_problem_a_test_wording_or_a_test_length(seed, progress, course):
    problem, _ = draw(Random(seed), progress, course)
    kind = FAMILIES[problem.family]
    assert problem.split == "train" and problem.wording.trained
    assert kind.shortest <= problem.length <= kind.longest


def test_test_problems_are_disjoint_from_training_problems():
    trained = {p.facts for p, _ in (draw(Random(seed), 0.5) for seed in range(2000))}
    for family in FAMILIES:
        held_out = [make(family, Random(seed), split="test", wording=None) for seed in range(30)]
        assert not trained & {p.facts for p in held_out}
        assert not any(p.wording.trained for p in held_out)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_part_of_a_held_out_wording_is_trained(family):
    known, new = wordings(family, trained=True), wordings(family, trained=False)
    assert new and not set(known) & set(new)
    for part in ("opening", "body", "ending"):
        assert {getattr(w, part) for w in new} <= {getattr(w, part) for w in known}
    texts = {Problem(make(family, Random(0)).facts, w).question for w in [*known, *new]}
    assert len(texts) == len(known) + len(new), "two wordings are equal"


@given(st.sampled_from(tuple(FAMILIES)), SEEDS)
@settings(max_examples=120, deadline=None)
def test_a_problem_has_the_requested_length(family, seed):
    kind = FAMILIES[family]
    length = Random(seed).randint(kind.shortest, kind.longest + 1)
    problem = make(family, Random(seed), length=length)
    assert problem.length == length
    if family in CHAINS + DAGS:
        assert sum(step.kind == "compute" for step in problem.steps) == length
    assert problem == make(family, Random(seed), length=length), "the same seed gives the same problem"


@pytest.mark.parametrize("family", [*CHAINS, *DAGS, "hint", "refuse", "tools"])
def test_slips_exist_in_every_chain_and_change_most_answers(family):
    drawn = [make(family, Random(seed)) for seed in range(30)]
    changed = [
        p.slipped(Slip(s.number, s.value, corrected=False)).answer != p.answer
        for p in drawn
        for s in slips(p, Random(0))
    ]
    share = 1 / 3 if family in CHAINS else 1 / 6  # in the others, some steps are not used
    assert len(changed) >= 30 and sum(changed) > len(changed) * share


@pytest.mark.parametrize("family", [*CONTROLS, "calculator"])
def test_controls_have_no_step_that_could_be_wrong(family):
    assert not slips(make(family, Random(1)), Random(1))


def test_unknown_families_and_lengths_are_refused():
    with pytest.raises(PromptError, match=r"family must be one of variables, .*, got 'sums'"):
        make("sums", Random(0))
    with pytest.raises(PromptError, match="family swaps has no terse wordings; those that do are dag, boxes, tree"):
        make("swaps", Random(0), wording=Wording(terse=True))
    with pytest.raises(PromptError, match="length of hops must be between 1 and 8, or 9 for tests, got 10"):
        make("hops", Random(0), length=10)


def test_the_changed_rule_changes_what_drop_does_and_nothing_else():
    drawn = [make("lists", Random(seed)) for seed in range(60)]
    for problem in drawn:
        other = with_changed_rule(problem)
        check_graph(other)
        assert other.question == problem.question
        assert "drop" in problem.question or other.analysis == problem.analysis
    assert any(with_changed_rule(p).answer != p.answer for p in drawn)
    with pytest.raises(PromptError, match="got a problem of the family hops"):
        with_changed_rule(make("hops", Random(0)))


@given(problems(("lists",)), SEEDS)
@settings(max_examples=100, deadline=None)
def test_a_foreign_slip_has_one_digit_that_the_list_never_had(problem, seed):
    plain = problem.steps
    for slip in slips(problem, Random(seed), foreign=True):
        right = plain[slip.number].value
        differ = [(a, b) for a, b in zip(right, slip.value) if a != b]
        assert len(right) == len(slip.value) and len(differ) == 1 and differ[0][1] not in problem.facts.row


def test_the_first_two_courses_have_the_problems_that_the_shipped_weights_were_trained_on():
    digest = sha256()
    for course in ("first", "slips"):
        for seed in range(300):
            problem, effort = draw(Random(seed), (0, 0.01, 0.03, 0.1, 0.3, 0.9)[seed % 6], course)
            digest.update(repr((problem.question, problem.analysis, effort)).encode())
    assert digest.hexdigest()[:16] == "3bd3d4f37d2e50f9"


def test_the_third_course_has_all_families_both_wordings_and_wrong_results():
    rng = Random(0)
    drawn = [draw(rng, 0.5, "families") for _ in range(4000)]
    assert {p.family for p, _ in drawn} == set(FAMILIES)
    for family in (*DAGS, "hint", "refuse", "tools"):
        of_family = [p for p, _ in drawn if p.family == family]
        assert 0.35 < sum(p.wording.terse for p in of_family) / len(of_family) < 0.65
    called = [p for p, _ in drawn if p.call]
    assert 0.2 < sum(p.reply is not None and p.reply != p.replied(None).answer for p in called) / len(called) < 0.4
    early = [p for p in (draw(rng, 0.1, "families")[0] for _ in range(600)) if p.family == "dag"]
    assert sum(p.length <= 4 for p in early) > 0.75 * len(early)


def test_the_fourth_course_is_mostly_terse_and_prints_operands_in_fewer_and_fewer_terse_chains():
    rng = Random(0)
    early, late = ([draw(rng, progress, "terse")[0] for _ in range(3000)] for progress in (0, 1))
    assert {problem.family for problem in early} == set(FAMILIES)
    terse = [p for p in early + late if p.wording.terse]
    with_terse = [p for p in early + late if FAMILIES[p.family].has_terse]
    assert abs(len(terse) / len(with_terse) - (COURSES["terse"].terse or 0)) < 0.03
    working = [p for p in early if p.wording.working]
    assert {p.family for p in working} == {"dag", "tree"} and all(p.wording.terse for p in working)
    of_family = [p for p in early if p.wording.terse and p.family in ("dag", "tree")]
    assert abs(len(working) / len(of_family) - COURSES["terse"].working) < 0.06
    assert not any(p.wording.working for p in late)


@given(SEEDS, st.sampled_from(("dag", "tree")))
@settings(max_examples=60, deadline=None)
def test_a_terse_chain_with_working_has_the_graph_and_the_values_of_the_terse_one(seed, family):
    terse = make(family, Random(seed), wording=Wording(terse=True))
    working = replace(terse, wording=Wording(terse=True, working=True))
    assert [step.value for step in working.steps] == [step.value for step in terse.steps]
    assert (working.edges, working.answer, working.brief) == (terse.edges, terse.answer, terse.brief)
    assert terse.question.replace("Only values.", "Only steps.") == working.question
    for step in working.steps:
        shown = re.fullmatch(r"[a-i] (\d[+-]\d) so (\d)", step.text)
        assert shown
        expression, value = shown.groups()
        used = [working.steps[j].value for j in step.uses]
        assert eval(expression) % 10 == int(value) and not set(used) - set(expression)


@pytest.mark.parametrize("course", ["first", "slips", "families", "terse", "boxes"])
def test_a_course_has_its_stated_shares_of_slips(course):
    rng = Random(1)
    drawn = [draw(rng, 0.5, course) for _ in range(6000 if course in ("first", "slips") else 15000)]
    chains = [problem for problem, effort in drawn if effort == "high"]
    for family, share in COURSES[course].slipping.items():
        of_family = [problem.slip for problem in chains if problem.family == family]
        wrong = [slip for slip in of_family if slip]
        assert abs(len(wrong) / len(of_family) - share) < 0.07
        assert abs(sum(not slip.corrected for slip in wrong) / len(wrong) - COURSES[course].passed) < 0.12
    assert not any(
        problem.slip for problem, effort in drawn if effort != "high" or problem.family not in COURSES[course].slipping
    )
