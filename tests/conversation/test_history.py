"""Earlier messages: what of them is shown to the model, and that what it wrote comes back as it was."""

import os
from dataclasses import replace
from random import Random
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from openai_harmony import Author, Conversation, Message, RenderConversationConfig, Role, SystemContent

from tests.conversation.conversations import BROKEN, NAMES, STARTS, TYPES, drawn, mutated
from tests.conversation.written import ids_of
from workbench.conversation.chat import chat
from workbench.conversation.history import history
from workbench.conversation.parse import parse
from workbench.conversation.render import render
from workbench.errors import PromptError

CALC = {"name": "calc", "parameters": {"type": "object", "properties": {}}}


def text_of(ids, tokenizer) -> Any:
    """What `history` reads of a trace."""
    return SimpleNamespace(tokens=ids, str_tokens=tokenizer.str_tokens(ids), spans=parse(ids, tokenizer))


def again(asked, ids, tokenizer, template=None) -> list[int]:
    """The prompt made of the messages in `ids`, all of them shown."""
    earlier = chat(None, history=history(text_of(ids, tokenizer))).messages
    return list(render(replace(asked, messages=earlier, keep_thoughts=True), tokenizer, template).ids)


def as_prompt(ids, tokenizer) -> list[int]:
    """`ids` as the beginning of a prompt: the last message closed, `<|end|>` for `<|return|>`, the next one begun."""
    special = tokenizer.special
    start = [special["<|start|>"], *tokenizer.encode("assistant")]
    if ids[-len(start) :] == start:
        ids = ids[: -len(start)]
    last = parse(ids, tokenizer)[-1]
    call = last.role == "assistant" and last.recipient not in (None, "assistant", "all")
    closed = [] if last.complete else [special["<|call|>" if call else "<|end|>"]]
    out = [*ids, *closed]
    for span in parse(out, tokenizer):
        if out[span.stop - 1] == special["<|return|>"]:
            call = span.role == "assistant" and span.recipient not in (None, "assistant", "all")
            out[span.stop - 1] = special["<|call|>" if call else "<|end|>"]
    return [*out, *start]


def moved(spans, by: int) -> list:
    return [
        replace(s, start=s.start + by, stop=s.stop + by, content_start=s.content_start + by,
                content_stop=s.content_stop + by)
        for s in spans
    ]  # fmt: skip


def same_after_a_prompt(prompt: list[int], completion: list[int], tokenizer) -> None:
    """A completion is read alone as after a prompt that ends with `<|start|>assistant`, which is its first header."""
    begun = 1 + len(tokenizer.encode("assistant"))
    alone = moved(parse(completion, tokenizer, "assistant"), len(prompt))
    inside = [s for s in parse([*prompt, *completion], tokenizer) if s.stop > len(prompt)]
    if alone and inside and inside[0].start < len(prompt):
        alone[0] = replace(alone[0], start=len(prompt) - begun)
    assert inside == alone, tokenizer.decode(completion)


def test_a_conversation_is_read_alone_as_inside_and_comes_back_as_it_was(real, harmony):
    @settings(max_examples=500, deadline=None)
    @given(st.integers(0, 2**31))
    def check(seed):
        run = drawn(seed, real)
        text = list(run.prompt)
        for number, completion in enumerate(run.written):
            same_after_a_prompt(text, completion, real)
            text += completion
            text += run.between[number] if number < len(run.between) else []
        assert text == run.ids
        assert again(run.asked, text, real) == as_prompt(text, real)

    check()


def test_thousands_of_mutated_headers_are_read_without_an_error_or_a_loss(real):
    rng = Random(0)
    headers = [ids_of(text, real) for text in [*BROKEN, *STARTS, *TYPES, *(f" to={name}" for name in NAMES)]]
    headers = [header for header in headers if header]
    prompt = ids_of("<|start|>user<|message|>hi<|end|><|start|>assistant", real)
    end = real.special["<|end|>"]
    for number in range(10_000 if os.environ.get("WORKBENCH_LONG") else 2_000):
        completion = [*mutated(rng, real, headers), *[real.special["<|message|>"]] * (number % 2), 84, end]
        same_after_a_prompt(prompt, completion, real)
        text = text_of(prompt + completion, real)
        assert [s.start for s in text.spans] == [0, *(s.stop for s in text.spans[:-1])]
        assert text.spans[-1].stop == len(text.tokens)
        messages = chat(None, history=history(text)).messages
        assert [i for message in messages for i in message.ids or ()] == text.tokens


@pytest.mark.parametrize(
    "call",
    [
        "<|channel|>commentary to=functions.f <|constrain|>json<|message|>{}<|call|>",
        " to=functions.f<|channel|>commentary <|constrain|>json<|message|>{}<|call|>",
        " to=functions.f<|channel|>commentary json<|message|>{}<|call|>",
        " to=functions.f<|channel|>commentary<|message|>{}<|call|>",
        "<|channel|>analysis to=lookup_weather code<|message|>{}<|call|>",
        "<|channel|>analysis to=browser.search code<|message|>{}<|call|>",
        " to=python<|channel|>analysis code<|message|>1+1<|call|>",
        "<|channel|>commentary<|message|>I will look it up.<|end|>",
        "<|channel|>final <|constrain|>json<|message|>{}<|end|>",
        "<|message|>no channel<|end|>",
    ],
)
def test_what_a_model_wrote_comes_back_as_it_was(call, real, harmony):
    asked = chat("hi")
    ids = [*render(asked, real).ids, *ids_of(call, real)]
    assert again(asked, ids, real) == as_prompt(ids, real)


@pytest.mark.parametrize("role", ["developer", "system"])
def test_late_instructions_which_a_chat_cannot_hold_are_refused_and_not_dropped(role, real, harmony):
    late = f"<|channel|>final<|message|>Yes.<|end|><|start|>{role}<|message|>Be brief.<|end|>"
    late += "<|start|>user<|message|>Go on."
    with pytest.raises(PromptError, match=f"followed by {role} text"):
        again(chat("hi"), [*render(chat("hi"), real).ids, *ids_of(late + "<|end|>", real)], real)


def test_tokens_that_the_tokenizer_would_not_choose_come_back_too(real, harmony):
    asked = chat("hi")
    letters = [i for letter in "It is five." for i in real.encode(letter)]
    half = real.encode("👧")[:1]  # not UTF-8
    ids = [*render(asked, real).ids, *ids_of("<|channel|>final<|message|>", real), *letters, *half]
    assert real.encode("It is five.") != letters
    assert again(asked, ids, real) == as_prompt(ids, real)


def test_a_changed_message_is_rendered_as_it_was_changed(real, harmony):
    asked = chat("hi")
    said = "<|channel|>commentary to=functions.f <|constrain|>json<|message|>{}<|call|>"
    ids = [*render(asked, real).ids, *ids_of(said, real)]
    user, call = history(text_of(ids, real))
    text = real.decode(render(chat(None, history=[user, call | {"content": '{"x": 1}'}]), real).ids)
    assert text.endswith(
        '<|start|>assistant<|channel|>commentary to=functions.f <|constrain|>json<|message|>{"x": 1}<|call|>'
        "<|start|>assistant"
    )
    text = real.decode(render(chat(None, history=[user, call | {"recipient": "functions.g"}]), real).ids)
    assert "<|start|>assistant to=functions.g<|channel|>commentary <|constrain|>json<|message|>{}<|call|>" in text
    with pytest.raises(PromptError, match="must be token ids"):
        chat(None, history=[call | {"ids": "x"}])


def test_what_pocket_wrote_comes_back_as_it_was_by_its_template(pocket, template):
    asked = chat("What is 812*29?", tools=[CALC], reasoning="high")
    wrote = (
        "<|channel|>analysis<|message|>Use calc.<|end|><|start|>assistant"
        '<|channel|>commentary to=functions.calc <|constrain|>json<|message|>{"x":"812*29"}<|call|>'
        "<|start|>functions.calc to=assistant<|channel|>commentary<|message|>23548<|end|>"
        "<|start|>assistant<|channel|>final<|message|>It is 23548.<|end|>"
    )
    ids = [*render(asked, pocket, template).ids, *ids_of(wrote, pocket)]
    assert again(asked, ids, pocket, template) == as_prompt(ids, pocket)


# What is shown of it.


def turn(n: int) -> list[dict]:
    return [
        {"role": "user", "content": f"q{n}"},
        {"role": "assistant", "thinking": f"think{n}", "content": f"a{n}"},
    ]


LOOP = [
    {"role": "user", "content": "q9"},
    {"role": "assistant", "thinking": "think9", "recipient": "get_weather", "content": "{}"},
    {"role": "tool", "name": "get_weather", "content": "sunny"},
]


@pytest.mark.parametrize("turns", [1, 2, 3])
def test_thoughts_before_the_last_answer_are_left_out(turns, real, harmony):
    earlier = [message for n in range(turns) for message in turn(n)]
    asked = chat("next", history=earlier)
    text = real.decode(render(asked, real).ids)
    assert "think" not in text and all(f"a{n}" in text for n in range(turns))
    every = real.decode(render(chat("next", history=earlier, keep_thoughts=True), real).ids)
    assert [f"think{n}" in every for n in range(turns)] == [True] * turns


def test_the_thoughts_of_a_turn_under_way_stay(real, harmony):
    text = real.decode(render(chat(None, history=[*turn(0), *turn(1), *LOOP]), real).ids)
    assert "think9" in text and "think0" not in text and "think1" not in text


def test_built_in_calls_and_results_on_analysis_are_left_out_with_the_thoughts(real, harmony):
    page = [
        {"role": "assistant", "thinking": "look", "recipient": "browser.search", "content": '{"query":"x"}'},
        {"role": "tool", "name": "browser.search", "content": "a page"},
        {"role": "assistant", "content": "found"},
    ]
    asked = chat("next", history=[turn(0)[0], *page])
    text = real.decode(render(asked, real).ids)
    assert "look" not in text and "a page" not in text and "found" in text


def test_one_answer_is_followed_as_harmony_follows_it(real, harmony):
    """openai-harmony drops before the first final message only, and only if the assistant's last one is final."""
    of = Message.from_role_and_content
    conversation = [
        of(Role.SYSTEM, SystemContent.new()),
        of(Role.USER, "q"),
        of(Role.ASSISTANT, "look").with_channel("analysis"),
        of(Role.ASSISTANT, "1").with_channel("analysis").with_recipient("python").with_content_type("code"),
        Message.from_author_and_content(Author.new(Role.TOOL, "python"), "1")
        .with_channel("analysis")
        .with_recipient("assistant"),
        of(Role.ASSISTANT, "a").with_channel("final"),
        of(Role.USER, "next"),
    ]
    mine = [
        {"role": "user", "content": "q"},
        {"role": "assistant", "thinking": "look", "recipient": "python", "content": "1"},
        {"role": "tool", "name": "python", "content": "1"},
        {"role": "assistant", "content": "a"},
    ]
    for keep in (False, True):
        config = RenderConversationConfig(auto_drop_analysis=not keep)
        theirs = harmony.render_conversation_for_completion(
            Conversation.from_messages(conversation), Role.ASSISTANT, config
        )
        assert list(render(chat("next", history=mine, keep_thoughts=keep), real).ids) == theirs


def test_both_renderers_leave_out_the_same_thoughts(pocket, template):
    asked = chat("next", history=[*turn(0), *turn(1)])
    assert "think" not in pocket.decode(render(asked, pocket, template).ids)
    every = chat("next", history=[*turn(0), *turn(1)], keep_thoughts=True)
    text = pocket.decode(render(every, pocket, template).ids)
    assert "think0" in text and "think1" in text
    forgetful = template.replace("{{ m.thinking }}", "")
    with pytest.raises(PromptError, match=r"no place for .*\(assistant\)"):
        render(every, pocket, forgetful)


# Names of tools.


def test_a_function_without_its_namespace_is_the_same_function(real, harmony):
    tool = {"name": "get_weather", "parameters": {"type": "object", "properties": {}}}
    text = real.decode(render(chat(None, tools=[tool], history=LOOP), real).ids)
    assert " to=functions.get_weather<|channel|>" in text and "<|start|>functions.get_weather to=assistant" in text
    full = [m | {k: f"functions.{m[k]}" for k in ("recipient", "name") if k in m} for m in LOOP]
    assert (
        real.decode(render(chat(None, tools=[tool | {"name": "functions.get_weather"}], history=full), real).ids)
        == text
    )


def test_built_in_tools_stay_bare_and_a_function_of_that_name_does_not(real, harmony):
    called = [
        {"role": "user", "content": "q"},
        {"role": "assistant", "recipient": "python", "content": "1"},
        {"role": "tool", "name": "python", "content": "1"},
        {"role": "assistant", "recipient": "browser.open", "content": "{}"},
    ]
    text = real.decode(render(chat(None, tools=["python", "browser"], history=called), real).ids)
    assert "<|start|>assistant to=python<|channel|>analysis code<|message|>" in text
    assert "<|start|>python to=assistant<|channel|>analysis<|message|>" in text
    assert "<|start|>assistant to=browser.open<|channel|>analysis code<|message|>" in text
    text = real.decode(render(chat(None, tools=[{"name": "python"}], history=called[:3]), real).ids)
    assert "<|start|>assistant to=functions.python<|channel|>commentary <|constrain|>json<|message|>" in text
    assert "<|start|>functions.python to=assistant<|channel|>commentary<|message|>" in text


def test_both_renderers_take_a_function_with_and_without_its_namespace(pocket, template):
    history = [
        {"role": "user", "content": "What is 812*29?"},
        {"role": "assistant", "recipient": "calc", "content": '{"x": "812*29"}'},
        {"role": "tool", "name": "calc", "content": "23548"},
    ]
    full = [m | {k: f"functions.{m[k]}" for k in ("recipient", "name") if k in m} for m in history]
    bare, named = (render(chat(None, tools=[CALC], history=h), pocket, template).ids for h in (history, full))
    assert bare == named and "to=functions.calc" in pocket.decode(bare)


@pytest.mark.parametrize(
    ("given", "header"),
    [
        ({}, " to=functions.f<|channel|>commentary <|constrain|>json<|message|>"),
        ({"content_type": "json"}, " to=functions.f<|channel|>commentary json<|message|>"),
        ({"content_type": "<|constrain|> json"}, " to=functions.f<|channel|>commentary <|constrain|>json<|message|>"),
        ({"content_type": "code"}, " to=functions.f<|channel|>commentary code<|message|>"),
        ({"content_type": None}, " to=functions.f<|channel|>commentary<|message|>"),
        ({"channel": "analysis"}, " to=functions.f<|channel|>analysis <|constrain|>json<|message|>"),
        ({"channel": None, "content_type": None}, " to=functions.f<|message|>"),
    ],
)
def test_a_call_has_the_content_type_that_is_given_or_that_of_gpt_oss(given, header, real, harmony):
    call = {"role": "assistant", "recipient": "functions.f", "content": "{}"} | given
    text = real.decode(render(chat(None, history=[{"role": "user", "content": "q"}, call]), real).ids)
    assert text.endswith(f"<|start|>assistant{header}{{}}<|call|><|start|>assistant")
    (read,) = harmony.parse_messages_from_completion_tokens(ids_of(f"<|start|>assistant{header}{{}}<|call|>", real))
    assert read.recipient == "functions.f"
