"""Earlier messages: which of them are rendered, and that messages of a trace keep their original tokens."""

import os
from dataclasses import replace
from random import Random
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from openai_harmony import Author, Conversation, Message, RenderConversationConfig, Role, SystemContent

from tests.conversation.conversations import BROKEN, NAMES, STARTS, TYPES, mutated, random_conversation
from tests.conversation.written import ids_of
from workbench.conversation.chat import chat
from workbench.conversation.history import history
from workbench.conversation.parse import parse
from workbench.conversation.render import render
from workbench.errors import PromptError

CALC = {"name": "calc", "parameters": {"type": "object", "properties": {}}}


def parsed_tokens(ids, tokenizer) -> Any:
    """The part of a trace that `history` reads."""
    return SimpleNamespace(tokens=ids, str_tokens=tokenizer.str_tokens(ids), spans=parse(ids, tokenizer))


def rerendered(prompt_chat, ids, tokenizer, template=None) -> list[int]:
    """The prompt rendered from the messages in `ids`, all thoughts included."""
    earlier = chat(None, history=history(parsed_tokens(ids, tokenizer))).messages
    return list(render(replace(prompt_chat, messages=earlier, keep_thoughts=True), tokenizer, template).ids)


def as_prompt(ids, tokenizer) -> list[int]:
    """`ids` as a prompt: the last message closed, `<|end|>` for `<|return|>`, and `<|start|>assistant` at the end."""
    special = tokenizer.special
    start = [special["<|start|>"], *tokenizer.encode("assistant")]
    if ids[-len(start) :] == start:
        ids = ids[: -len(start)]
    last = parse(ids, tokenizer)[-1]
    call = last.role == "assistant" and last.recipient not in (None, "assistant", "all")
    closed = [] if last.complete else [special["<|call|>" if call else "<|end|>"]]
    prompt_ids = [*ids, *closed]
    for span in parse(prompt_ids, tokenizer):
        if prompt_ids[span.stop - 1] == special["<|return|>"]:
            call = span.role == "assistant" and span.recipient not in (None, "assistant", "all")
            prompt_ids[span.stop - 1] = special["<|call|>" if call else "<|end|>"]
    return [*prompt_ids, *start]


def shifted(spans, by: int) -> list:
    return [
        replace(s, start=s.start + by, stop=s.stop + by, content_start=s.content_start + by,
                content_stop=s.content_stop + by)
        for s in spans
    ]  # fmt: skip


def assert_same_after_prompt(prompt: list[int], completion: list[int], tokenizer) -> None:
    """Asserts that a completion is parsed the same alone and after a prompt that ends with `<|start|>assistant`."""
    n_start_tokens = 1 + len(tokenizer.encode("assistant"))
    alone = shifted(parse(completion, tokenizer, "assistant"), len(prompt))
    inside = [s for s in parse([*prompt, *completion], tokenizer) if s.stop > len(prompt)]
    if alone and inside and inside[0].start < len(prompt):
        alone[0] = replace(alone[0], start=len(prompt) - n_start_tokens)
    assert inside == alone, tokenizer.decode(completion)


def test_completions_are_parsed_the_same_alone_and_conversations_rerender_to_the_same_ids(real, harmony):
    @settings(max_examples=500, deadline=None)
    @given(st.integers(0, 2**31))
    def check(seed):
        run = random_conversation(seed, real)
        ids = list(run.prompt)
        for number, completion in enumerate(run.completions):
            assert_same_after_prompt(ids, completion, real)
            ids += completion
            ids += run.between[number] if number < len(run.between) else []
        assert ids == run.ids
        assert rerendered(run.chat, ids, real) == as_prompt(ids, real)

    check()


def test_thousands_of_mutated_headers_are_parsed_without_an_error_or_a_lost_token(real):
    rng = Random(0)
    headers = [ids_of(text, real) for text in [*BROKEN, *STARTS, *TYPES, *(f" to={name}" for name in NAMES)]]
    headers = [header for header in headers if header]
    prompt = ids_of("<|start|>user<|message|>hi<|end|><|start|>assistant", real)
    end = real.special["<|end|>"]
    for number in range(10_000 if os.environ.get("WORKBENCH_LONG") else 2_000):
        completion = [*mutated(rng, real, headers), *[real.special["<|message|>"]] * (number % 2), 84, end]
        assert_same_after_prompt(prompt, completion, real)
        text = parsed_tokens(prompt + completion, real)
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
def test_generated_messages_rerender_to_their_original_ids(call, real, harmony):
    prompt_chat = chat("hi")
    ids = [*render(prompt_chat, real).ids, *ids_of(call, real)]
    assert rerendered(prompt_chat, ids, real) == as_prompt(ids, real)


@pytest.mark.parametrize("role", ["developer", "system"])
def test_system_or_developer_text_after_the_first_message_is_refused(role, real, harmony):
    late = f"<|channel|>final<|message|>Yes.<|end|><|start|>{role}<|message|>Be brief.<|end|>"
    late += "<|start|>user<|message|>Go on."
    with pytest.raises(PromptError, match=f"followed by {role} text"):
        rerendered(chat("hi"), [*render(chat("hi"), real).ids, *ids_of(late + "<|end|>", real)], real)


def test_ids_that_the_tokenizer_would_not_produce_rerender_unchanged(real, harmony):
    prompt_chat = chat("hi")
    letters = [i for letter in "It is five." for i in real.encode(letter)]
    half = real.encode("👧")[:1]  # not UTF-8
    ids = [*render(prompt_chat, real).ids, *ids_of("<|channel|>final<|message|>", real), *letters, *half]
    assert real.encode("It is five.") != letters
    assert rerendered(prompt_chat, ids, real) == as_prompt(ids, real)


def test_a_changed_message_is_rendered_with_its_changes(real, harmony):
    prompt_chat = chat("hi")
    completion = "<|channel|>commentary to=functions.f <|constrain|>json<|message|>{}<|call|>"
    ids = [*render(prompt_chat, real).ids, *ids_of(completion, real)]
    user, call = history(parsed_tokens(ids, real))
    text = real.decode(render(chat(None, history=[user, call | {"content": '{"x": 1}'}]), real).ids)
    assert text.endswith(
        '<|start|>assistant<|channel|>commentary to=functions.f <|constrain|>json<|message|>{"x": 1}<|call|>'
        "<|start|>assistant"
    )
    text = real.decode(render(chat(None, history=[user, call | {"recipient": "functions.g"}]), real).ids)
    assert "<|start|>assistant to=functions.g<|channel|>commentary <|constrain|>json<|message|>{}<|call|>" in text
    with pytest.raises(PromptError, match="must be token ids"):
        chat(None, history=[call | {"ids": "x"}])


def test_messages_of_pocket_rerender_to_their_original_ids_with_its_template(pocket, template):
    prompt_chat = chat("What is 812*29?", tools=[CALC], reasoning="high")
    completion = (
        "<|channel|>analysis<|message|>Use calc.<|end|><|start|>assistant"
        '<|channel|>commentary to=functions.calc <|constrain|>json<|message|>{"x":"812*29"}<|call|>'
        "<|start|>functions.calc to=assistant<|channel|>commentary<|message|>23548<|end|>"
        "<|start|>assistant<|channel|>final<|message|>It is 23548.<|end|>"
    )
    ids = [*render(prompt_chat, pocket, template).ids, *ids_of(completion, pocket)]
    assert rerendered(prompt_chat, ids, pocket, template) == as_prompt(ids, pocket)


# Which earlier messages are rendered.


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
def test_thoughts_before_the_last_final_message_are_left_out(turns, real, harmony):
    earlier = [message for n in range(turns) for message in turn(n)]
    text = real.decode(render(chat("next", history=earlier), real).ids)
    assert "think" not in text and all(f"a{n}" in text for n in range(turns))
    with_thoughts = real.decode(render(chat("next", history=earlier, keep_thoughts=True), real).ids)
    assert [f"think{n}" in with_thoughts for n in range(turns)] == [True] * turns


def test_thoughts_of_an_unfinished_turn_stay(real, harmony):
    text = real.decode(render(chat(None, history=[*turn(0), *turn(1), *LOOP]), real).ids)
    assert "think9" in text and "think0" not in text and "think1" not in text


def test_built_in_calls_and_results_on_analysis_are_left_out_with_the_thoughts(real, harmony):
    messages = [
        {"role": "assistant", "thinking": "look", "recipient": "browser.search", "content": '{"query":"x"}'},
        {"role": "tool", "name": "browser.search", "content": "a page"},
        {"role": "assistant", "content": "an answer"},
    ]
    text = real.decode(render(chat("next", history=[turn(0)[0], *messages]), real).ids)
    assert "look" not in text and "a page" not in text and "an answer" in text


def test_a_history_with_one_answer_renders_as_by_harmony(real, harmony):
    """openai-harmony drops analysis only before the first final message, and only if the last answer is final."""
    message = Message.from_role_and_content
    conversation = [
        message(Role.SYSTEM, SystemContent.new()),
        message(Role.USER, "q"),
        message(Role.ASSISTANT, "look").with_channel("analysis"),
        message(Role.ASSISTANT, "1").with_channel("analysis").with_recipient("python").with_content_type("code"),
        Message.from_author_and_content(Author.new(Role.TOOL, "python"), "1")
        .with_channel("analysis")
        .with_recipient("assistant"),
        message(Role.ASSISTANT, "a").with_channel("final"),
        message(Role.USER, "next"),
    ]
    messages = [
        {"role": "user", "content": "q"},
        {"role": "assistant", "thinking": "look", "recipient": "python", "content": "1"},
        {"role": "tool", "name": "python", "content": "1"},
        {"role": "assistant", "content": "a"},
    ]
    for keep in (False, True):
        config = RenderConversationConfig(auto_drop_analysis=not keep)
        expected = harmony.render_conversation_for_completion(
            Conversation.from_messages(conversation), Role.ASSISTANT, config
        )
        assert list(render(chat("next", history=messages, keep_thoughts=keep), real).ids) == expected


def test_both_renderers_leave_out_the_same_thoughts(pocket, template):
    without = chat("next", history=[*turn(0), *turn(1)])
    assert "think" not in pocket.decode(render(without, pocket, template).ids)
    with_thoughts = chat("next", history=[*turn(0), *turn(1)], keep_thoughts=True)
    text = pocket.decode(render(with_thoughts, pocket, template).ids)
    assert "think0" in text and "think1" in text
    dropping = template.replace("{{ m.thinking }}", "")
    with pytest.raises(PromptError, match=r"no place for .*\(assistant\)"):
        render(with_thoughts, pocket, dropping)


# Names of tools.


def test_a_function_may_lack_its_namespace(real, harmony):
    tool = {"name": "get_weather", "parameters": {"type": "object", "properties": {}}}
    text = real.decode(render(chat(None, tools=[tool], history=LOOP), real).ids)
    assert " to=functions.get_weather<|channel|>" in text and "<|start|>functions.get_weather to=assistant" in text
    full = [m | {k: f"functions.{m[k]}" for k in ("recipient", "name") if k in m} for m in LOOP]
    assert (
        real.decode(render(chat(None, tools=[tool | {"name": "functions.get_weather"}], history=full), real).ids)
        == text
    )


def test_built_in_tools_have_no_namespace_and_functions_of_the_same_name_have_one(real, harmony):
    messages = [
        {"role": "user", "content": "q"},
        {"role": "assistant", "recipient": "python", "content": "1"},
        {"role": "tool", "name": "python", "content": "1"},
        {"role": "assistant", "recipient": "browser.open", "content": "{}"},
    ]
    text = real.decode(render(chat(None, tools=["python", "browser"], history=messages), real).ids)
    assert "<|start|>assistant to=python<|channel|>analysis code<|message|>" in text
    assert "<|start|>python to=assistant<|channel|>analysis<|message|>" in text
    assert "<|start|>assistant to=browser.open<|channel|>analysis code<|message|>" in text
    text = real.decode(render(chat(None, tools=[{"name": "python"}], history=messages[:3]), real).ids)
    assert "<|start|>assistant to=functions.python<|channel|>commentary <|constrain|>json<|message|>" in text
    assert "<|start|>functions.python to=assistant<|channel|>commentary<|message|>" in text


def test_the_template_renders_a_function_the_same_with_and_without_its_namespace(pocket, template):
    history = [
        {"role": "user", "content": "What is 812*29?"},
        {"role": "assistant", "recipient": "calc", "content": '{"x": "812*29"}'},
        {"role": "tool", "name": "calc", "content": "23548"},
    ]
    full = [m | {k: f"functions.{m[k]}" for k in ("recipient", "name") if k in m} for m in history]
    bare, named = (render(chat(None, tools=[CALC], history=h), pocket, template).ids for h in (history, full))
    assert bare == named and "to=functions.calc" in pocket.decode(bare)


@pytest.mark.parametrize(
    ("keys", "header"),
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
def test_the_header_of_a_call_has_the_keys_of_the_message_or_the_defaults_of_gpt_oss(keys, header, real, harmony):
    call = {"role": "assistant", "recipient": "functions.f", "content": "{}"} | keys
    text = real.decode(render(chat(None, history=[{"role": "user", "content": "q"}, call]), real).ids)
    assert text.endswith(f"<|start|>assistant{header}{{}}<|call|><|start|>assistant")
    (message,) = harmony.parse_messages_from_completion_tokens(ids_of(f"<|start|>assistant{header}{{}}<|call|>", real))
    assert message.recipient == "functions.f"
