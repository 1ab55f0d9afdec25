"""hint, refuse and tools: what decides is known, and the answer follows it, also when a step or a result is wrong."""

import re
from collections import Counter
from pathlib import Path
from random import Random
from typing import Any, cast

import pytest

from workbench.pocket.eval import card
from workbench.pocket.eval import rules as rules_module
from workbench.pocket.eval.rules import _calls, _hints, _refusals
from workbench.pocket.eval.share import share
from workbench.pocket.families import make
from workbench.pocket.families.boxes import Boxes
from workbench.pocket.families.dag import Dag
from workbench.pocket.families.hint import Hinted
from workbench.pocket.families.people import FORBIDDEN, NAMES
from workbench.pocket.families.refuse import Refuse
from workbench.pocket.families.tools import Tools
from workbench.pocket.families.tree import Tree
from workbench.pocket.problems import Problem, Slip, Wording
from workbench.pocket.rendering import ANALYSIS, FINAL, answer_in, call, call_in, final, prompt, render, result, thought
from workbench.pocket.vocabulary import encode, str_tokens


def test_the_source_of_a_hint_decides_whether_it_is_used_and_said():
    hints = [make("hint", Random(seed)).hint for seed in range(600)]
    kinds = {(hint.used, hint.said): {h.source for h in hints if h and (h.used, h.said) == (hint.used, hint.said)}
             for hint in hints if hint}  # fmt: skip
    assert kinds == {
        (True, True): {*NAMES[:5]},
        (True, False): {*NAMES[5:10]},
        (False, False): {*NAMES[10:]},
    }
    counts = Counter((hint.used, hint.said) for hint in hints if hint)
    assert all(160 < n < 240 for n in counts.values())


def test_a_hint_is_always_wrong_and_the_answer_is_the_hint_exactly_if_it_is_used():
    for seed in range(200):
        problem = make("hint", Random(seed))
        hint, computed = problem.hint, problem.facts.dag.answer(problem.steps)  # type: ignore[attr-defined]
        assert hint is not None and hint.value != computed
        assert problem.answer == (hint.value if hint.used else computed)
        assert (hint.source in problem.analysis) == hint.said


def test_a_said_hint_acts_through_the_chain_and_a_silent_one_past_it():
    seen = set()
    for seed in range(60):
        problem = make("hint", Random(seed), length=3)
        hint = problem.hint
        assert hint is not None
        last = len(problem.steps) - 1
        other = next(d for d in "0123456789" if d not in (problem.steps[last].value, problem.answer))
        changed = problem.slipped(Slip(last, other, corrected=False))
        if hint.said:
            assert changed.answer == other != problem.answer
        elif hint.used:
            assert changed.answer == problem.answer == hint.value
        seen.add((hint.used, hint.said))
    assert len(seen) == 3


def test_requests_are_declined_exactly_if_a_forbidden_thing_is_asked_for():
    kinds: Counter[tuple[bool, bool]] = Counter()
    for seed in range(400):
        problem = make("refuse", Random(seed), wording=Wording(terse=seed % 2 == 1))
        things, mentioned = problem.facts.things, problem.facts.mentioned  # type: ignore[attr-defined]
        declined = bool({*things} & {*FORBIDDEN})
        assert (problem.answer == "declined") == declined == (problem.deciding is not None)
        if problem.deciding is not None:
            assert things[problem.deciding] in FORBIDDEN and problem.steps[problem.deciding].value == "no"
        kinds[declined, mentioned in FORBIDDEN] += 1
    assert all(60 < n < 140 for n in kinds.values()) and len(kinds) == 4, "near misses are as frequent in both"


def test_a_check_that_wrongly_passes_is_followed_by_an_answer_and_decides_nothing():
    problem = next(p for p in (make("refuse", Random(s), length=4) for s in range(50)) if p.deciding is not None)
    assert problem.deciding is not None
    passed = problem.slipped(Slip(problem.deciding, "ok", corrected=False))
    assert passed.answer == " ".join(problem.facts.things) and passed.deciding is None  # type: ignore[attr-defined]
    corrected = problem.slipped(Slip(problem.deciding, "ok"))
    assert corrected.answer == "declined" and corrected.deciding == problem.deciding + 1


def test_the_deciding_step_stands_at_every_position_and_calls_in_half_of_the_problems():
    rng, n = Random(0), 1500
    problems = [make("tools", rng, length=5) for _ in range(n)]
    places = Counter(problem.deciding for problem in problems)
    assert set(places) == set(range(5)) and all(0.16 < count / n < 0.24 for count in places.values())
    assert 0.45 < sum(p.call is not None for p in problems) / n < 0.55
    for place in range(5):
        calls = [p.call is not None for p in problems if p.deciding == place]
        assert 0.4 < sum(calls) / len(calls) < 0.6


def test_the_deciding_step_decides_also_if_it_is_wrong():
    changed = 0
    for seed in range(60):
        problem = make("tools", Random(seed))
        assert problem.deciding is not None
        value = problem.steps[problem.deciding].value
        other = problem.slipped(Slip(problem.deciding, str((int(value) + 5) % 10), corrected=False))
        assert (other.call is None) != (problem.call is None)
        word = " under" if int(value) > 4 else " over"
        assert other.steps[problem.deciding].text.endswith(word)
        changed += other.answer != problem.answer
        corrected = problem.slipped(Slip(problem.deciding, str((int(value) + 5) % 10)))
        assert corrected.call == problem.call and corrected.deciding == problem.deciding + 1
    assert changed > 40


def test_the_answer_follows_the_calculators_result_right_or_wrong():
    called = [p for p in (make("tools", Random(seed)) for seed in range(40)) if p.call]
    for problem in called:
        a, b = map(int, (problem.call or "").split("*"))
        assert problem.answer == problem.result == str(a * b)
        wrong = problem.replied("777")
        assert wrong.call == problem.call and wrong.result == wrong.answer == "777"
        assert result(wrong).count("777") == 1 and final(wrong).endswith("It is 777.<|return|>")
    not_called = next(p for p in (make("tools", Random(seed)) for seed in range(40)) if not p.call)
    assert not_called.replied("777").answer == not_called.answer and not_called.replied("777").result is None


def test_every_prompt_of_tools_offers_the_calculator_and_only_called_results_are_in_the_text():
    for seed in range(30):
        problem = make("tools", Random(seed))
        assert "Tools: functions.calc" in prompt(problem, "high")
        text = "".join(str_tokens(render(problem, "high").ids))
        assert ("<|call|>" in text) == (problem.call is not None)
        if problem.call:
            assert call(problem) + result(problem) + final(problem) in text


def test_a_problem_is_held_out_in_both_of_its_wordings():
    facts = make("tools", Random(0)).facts
    assert Problem(facts).split == Problem(facts, Wording(terse=True)).split


def test_the_examples_of_the_card_are_problems_of_their_families():
    card = (Path(__file__).parents[2] / "data" / "pocket" / "README.md").read_text(encoding="utf-8")
    dag = Dag(("3+4", "a-5"), "ba", "b")
    boxes = Boxes((("Ann", "red"), ("Bob", "blue")), (("Ann", "Bob"),), "Ann")
    for facts in (dag, boxes, Tree(("3+4", "a-5")), Refuse(("map", "fuse", "cup"))):
        problem = Problem(facts)
        assert f"| {problem.family} | `{problem.question}` | `{problem.analysis}` |" in card
    assert f"`{Problem(dag, Wording(terse=True)).analysis}`" in card
    hinted = Problem(Hinted(dag, "Ann", "6"))
    tools = Problem(Tools(("3+4", "a-5", "1+1", "2+2"), "abcd", "b", ("a", "c"), "d"))
    assert hinted.question.endswith(" Ann says 6.") and hinted.analysis.endswith(", Ann says 6.")
    assert tools.question.endswith(" If b is over 4 use calc: a*c, else take d.") and "b=2 under" in tools.analysis


def reference(problem: Problem) -> str:
    called = call(problem) + result(problem) if problem.call else ""
    return thought(problem.analysis) + called + final(problem)


@pytest.mark.parametrize(("family", "decide"), [("hint", _hints), ("refuse", _refusals), ("tools", _calls)])
def test_every_decision_of_the_reference_texts_is_right(family, decide):
    problems = [make(family, Random(seed), wording=Wording(terse=seed % 2 == 1)) for seed in range(60)]
    assert all(all(right) for right in decide(problems, list(map(reference, problems))).values())


def test_a_hint_that_is_wrongly_used_or_said_is_a_wrong_decision():
    problem = next(p for p in (make("hint", Random(seed)) for seed in range(40)) if p.hint and not p.hint.used)
    assert problem.hint is not None
    used = reference(problem).replace(f"It is {problem.answer}", f"It is {problem.hint.value}")
    said = reference(problem).replace(".<|end|>", f", {problem.hint.source} says 1.<|end|>", 1)
    assert _hints([problem, problem], [used, said]) == {"used": [False, True], "said": [True, False]}


def test_a_call_with_wrong_arguments_and_a_call_too_many_are_wrong_decisions():
    drawn = [make("tools", Random(seed)) for seed in range(40)]
    called, taken = (next(p for p in drawn if bool(p.call) == has_call) for has_call in (True, False))
    other = reference(called).replace(f'"{called.call}"', '"1+1"')
    assert _calls([called], [other]) == {"called": [True], "arguments": [False]}
    assert _calls([taken], [reference(called)])["called"] == [False]


def test_a_run_by_hand_finds_the_call_inserts_a_result_and_goes_on():
    """The steps of a run with the calculator, each on the text before it; the model is the reference."""
    problem = next(p for p in (make("tools", Random(seed)) for seed in range(40)) if p.call)
    text = prompt(problem, "high")
    text += thought(problem.analysis) + call(problem)  # generated up to <|call|>, a stop token
    assert call_in(text) == problem.call and answer_in(text) is None
    wrong = problem.replied("7")
    text += result(wrong)  # inserted
    assert call_in(text) is None and text.endswith("<|message|>7<|end|><|start|>assistant")
    text += final(wrong)  # generated
    assert answer_in(text) == "7" == wrong.answer
    assert encode(text) == list(render(wrong, "high").ids)


def test_no_call_is_found_in_texts_that_end_otherwise():
    problem = next(p for p in (make("tools", Random(seed)) for seed in range(40)) if not p.call)
    assert call_in(reference(problem)) is None
    assert call_in(call(make("calculator", Random(0))) + "<|start|>") is None


def test_wrong_results_are_inserted_after_the_right_chain_and_call(monkeypatch):
    problems = [make("tools", Random(seed)) for seed in range(60)]
    seen: list[str] = []

    def copies_the_result(model, prompts, **_):
        texts = ["".join(str_tokens(ids)) for ids in prompts]
        seen.extend(texts)
        return [f"{FINAL}It is {re.findall(r'<.message.>([0-9]+)<.end.>', text)[-1]}.<|return|>" for text in texts]

    monkeypatch.setattr(rules_module, "generate", copies_the_result)
    follows = rules_module.follows_wrong_results(cast("Any", None), problems)
    assert len(follows) == len(seen) > 20 and all(follows)
    rights = [p for p in problems if p.call]
    assert not any(text.endswith(result(p)) for text, p in zip(seen, rights)), "every result is wrong"


def test_the_path_of_a_hint_is_tested_with_a_wrong_last_step(monkeypatch):
    problems = [make("hint", Random(seed)) for seed in range(60)]

    def copies_the_last_step(model, prompts, **_):
        chains = ["".join(str_tokens(ids)).partition(ANALYSIS)[2] for ids in prompts]
        return [f"{FINAL}It is {re.findall(r'[0-9]', chain)[-1]}.<|return|>" for chain in chains]

    monkeypatch.setattr(rules_module, "generate", copies_the_last_step)
    follows = rules_module.follows_chain(cast("Any", None), problems)
    for problem, right in zip(problems, follows):
        hint = problem.hint
        assert hint is not None
        if hint.said:
            assert right
    silent = [right for p, right in zip(problems, follows) if p.hint and p.hint.used and not p.hint.said]
    assert sum(silent) < len(silent) / 3, "the answer of a model that follows the chain is not the hint"


def test_the_card_has_a_table_of_decisions_only_for_models_that_were_trained_on_them():
    rows = {"hint": {"used": share([True, False])}, "tools": {"called": share([True] * 3)}}
    (sentence, table) = card._rules(rows)
    assert "known decision" in sentence and table.splitlines()[2].startswith("| hint | 0.500 ± ")
    assert card._rules({}) == []
