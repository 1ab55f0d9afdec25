"""Problems as tokens: texts round-trip, steps have the right tokens, and a chat gives the prompts of training."""

from itertools import pairwise
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.conversation.written import ids_of
from tests.pocket.test_problems import SEEDS, problems, slipped
from workbench.conversation.chat import chat
from workbench.conversation.render import render as render_chat
from workbench.conversation.tokenizer import Tokenizer
from workbench.errors import PromptError
from workbench.pocket.families import make
from workbench.pocket.rendering import (
    EFFORTS,
    TEMPLATE,
    analysis,
    answer_in,
    call,
    final,
    prompt,
    render,
    result,
    thought,
)
from workbench.pocket.train.mix import draw
from workbench.pocket.vocabulary import d_vocab, encode, str_tokens, symbols, tokenizer_json
from workbench.traces.spans import Span
from workbench.traces.steps import steps

CALC = {"name": "calc", "description": "", "parameters": {"type": "object", "properties": {}}}
POCKET = Path(__file__).parents[2] / "data" / "pocket"


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer(tokenizer_json().encode())


def text_of(problem, effort: str) -> str:
    chain = analysis(problem, effort)
    calculator = call(problem) + result(problem) if problem.call else ""
    return prompt(problem, effort) + (thought(chain) if chain else "") + calculator + final(problem)


@given(problems(), st.sampled_from(EFFORTS))
@settings(max_examples=120, deadline=None)
def test_every_conversation_round_trips_and_has_the_tokenizers_ids(tokenizer, problem, effort):
    text, ids = text_of(problem, effort), render(problem, effort).ids
    assert "".join(str_tokens(ids)) == tokenizer.decode(ids) == text
    assert list(ids) == ids_of(text, tokenizer)
    assert max(ids) < len(symbols()) <= d_vocab()


@given(st.text(max_size=40))
@settings(max_examples=120, deadline=None)
def test_any_text_round_trips_through_the_tokenizer(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_the_ids_equal_those_of_the_shipped_tokenizer():
    shipped = Tokenizer.from_folder(POCKET)
    assert {name: symbols().get(name) for name in shipped.symbols} == shipped.symbols
    assert {name: symbols()[name] for name in shipped.special} == shipped.special


@given(SEEDS, st.floats(0, 1))
@settings(max_examples=120, deadline=None)
def test_words_are_one_token_each(seed, progress):
    problem, effort = draw(Random(seed), progress)
    tokens = str_tokens(render(problem, effort).ids)
    assert all(token.strip() for token in tokens if len(token) > 1)
    assert not any(a[-1:].isalpha() and len(b) > 1 and b[0].isalpha() for a, b in pairwise(tokens) if len(a) > 1)


def test_an_unknown_word_is_refused():
    with pytest.raises(PromptError, match="' hippopotamus' is not a word of pocket's vocabulary"):
        encode("Say hippopotamus.")


@given(slipped(corrected=True))
@settings(max_examples=120, deadline=None)
def test_steps_are_the_tokens_of_their_texts(pair):
    _, problem = pair
    rendered = render(problem, "high")
    texts = ["".join(str_tokens(rendered.ids[step])) for step in rendered.steps]
    assert [text.strip() for text in texts] == [step.text for step in problem.steps]
    assert all(a.stop < b.start for a, b in zip(rendered.steps, rendered.steps[1:]))


@given(slipped(corrected=True))
@settings(max_examples=120, deadline=None)
def test_all_assistant_tokens_are_supervised_except_wrong_values_and_the_end_of_the_longest_analyses(pair):
    plain, problem = pair
    rendered = render(problem, "high")
    head = len(encode(prompt(problem, "high")))
    unsupervised = [i for i, supervised in enumerate(rendered.supervised) if not supervised and i >= head]
    assert not any(rendered.supervised[:head])
    if problem.length == problem.facts.longest:
        assert unsupervised.pop() == rendered.steps[-1].stop
        assert str_tokens(rendered.ids[rendered.steps[-1].stop :])[:2] == [".", "<|end|>"]
    if problem.slip is None:
        assert not unsupervised
        return
    at = next(i for i, step in enumerate(problem.steps) if step.kind == "wrong")
    wrong_step = rendered.steps[at]
    assert unsupervised == list(range(unsupervised[0], wrong_step.stop)) and unsupervised[0] >= wrong_step.start
    right = encode(" " + plain.steps[at].text)
    wrong = encode(" " + problem.steps[at].text)
    same = (
        next(i for i, (a, b) in enumerate(zip(wrong, right)) if a != b) if wrong[: len(right)] != right else len(right)
    )
    assert list(rendered.ids[unsupervised[0] : wrong_step.stop]) == wrong[same:]


@given(slipped(corrected=False))
@settings(max_examples=80, deadline=None)
def test_the_comma_after_an_uncorrected_wrong_step_is_unsupervised_and_later_steps_are_supervised(pair):
    _, problem = pair
    if problem.slip is None:
        return
    rendered = render(problem, "high")
    at = next(i for i, step in enumerate(problem.steps) if step.kind == "wrong")
    stop = rendered.steps[at].stop
    assert not rendered.supervised[stop - 1] and not rendered.supervised[stop]
    rest = rendered.supervised[stop + 1 :]
    assert rest.count(False) == (problem.length == problem.facts.longest and at + 1 < len(problem.steps))


def test_the_result_of_the_calculator_is_not_supervised():
    problem = make("calculator", Random(0))
    rendered = render(problem, "low")
    tokens = zip(str_tokens(rendered.ids), rendered.supervised)
    unsupervised = "".join(token for token, supervised in tokens if not supervised)
    assert unsupervised == prompt(problem, "low") + result(problem)


@given(problems(), st.sampled_from(EFFORTS))
@settings(max_examples=100, deadline=None)
def test_a_chat_renders_to_the_prompt_of_training(tokenizer, problem, effort):
    tools = [CALC] if problem.facts.has_calculator else None
    conversation = chat(problem.question, reasoning=effort, tools=tools)
    assert list(render_chat(conversation, tokenizer, TEMPLATE).ids) == encode(prompt(problem, effort))


@pytest.mark.parametrize("effort", EFFORTS)
def test_a_chat_with_the_calculators_result_renders_to_the_text_of_training(effort, tokenizer):
    problem = make("calculator", Random(2))
    called = {"role": "assistant", "recipient": "functions.calc", "content": f'{{"x": "{problem.call}"}}'}
    if effort != "low":
        called["thinking"] = analysis(problem, effort)
    history = [
        {"role": "user", "content": problem.question},
        called,
        {"role": "tool", "name": "functions.calc", "content": problem.answer},
    ]
    conversation = chat(None, reasoning=effort, tools=[CALC], history=history)
    whole = encode(text_of(problem, effort))
    assert list(render_chat(conversation, tokenizer, TEMPLATE).ids) + encode(final(problem)) == whole


def test_answers_are_parsed_in_the_trained_form_only():
    assert answer_in("<|channel|>final<|message|>It is Kay.<|return|>") == "Kay"
    assert answer_in("<|channel|>final<|message|>It is Kay") is None
    assert answer_in("It is Kay.<|return|>") is None


def test_an_unknown_effort_is_refused():
    with pytest.raises(PromptError, match="effort must be one of low, medium, high, got 'huge'"):
        render(make("say", Random(0)), "huge")


@given(slipped(corrected=True))
@settings(max_examples=200, deadline=None)
def test_steps_splits_an_analysis_into_its_true_steps(pair):
    _, problem = pair
    tokens = str_tokens(encode(problem.analysis))
    thought = Span(0, len(tokens), 0, len(tokens), "assistant", "analysis")
    split = steps(cast("Any", SimpleNamespace(str_tokens=tokens, spans=[thought])))
    assert [step.text.strip().rstrip(",.") for step in split] == [step.text for step in problem.steps]
