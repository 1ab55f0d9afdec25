import pytest

from workbench.conversation.chat import as_chat, chat
from workbench.errors import PromptError


def test_equal_chats_are_equal_and_hashable():
    tools = [{"name": "f", "description": "d", "parameters": {"type": "object", "properties": {}}}]
    wrapped = [{"type": "function", "function": tools[0]}]
    assert chat("hi", tools=tools) == chat("hi", tools=wrapped)
    assert len({chat("hi", tools=tools), chat("hi", tools=wrapped), chat("ho")}) == 2


def test_as_chat_makes_a_chat_of_a_str_and_returns_a_chat_unchanged():
    low = chat("hi", reasoning="low")
    assert as_chat(low) is low
    assert as_chat("hi") == chat("hi")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"reasoning": "max"}, "reasoning must be 'low', 'medium' or 'high', got 'max'"),
        ({"user": ""}, "the question is empty"),
        ({"user": " \n"}, "the question is empty"),
        ({"user": 5}, "must be text, got int"),
        ({"user": None}, "the chat is empty"),
        ({"user": "\ud800"}, "not valid Unicode"),
        ({"system": ""}, "system is empty"),
        ({"history": [{"role": "robot", "content": "x"}]}, "role 'robot', must be 'user', 'assistant' or 'tool'"),
        ({"history": [{"role": "system", "content": "x"}]}, "arguments of chat"),
        ({"history": [{"content": "x"}]}, "role None"),
        ({"history": ["x"]}, r"history\[0\] must be a dict"),
        ({"history": [{"role": "user"}]}, r"the content of history\[0\] must be text"),
        ({"history": [{"role": "user", "content": "x", "color": 1}]}, "'color'; a message may have: role, content"),
        (
            {"history": [{"role": "user", "content": "x", "thinking": "y"}]},
            "'thinking', which a message of role 'user'",
        ),
        ({"history": [{"role": "tool", "content": "x"}]}, "the tool that wrote it"),
        ({"history": [{"role": "tool", "content": "x", "name": "f to=user"}]}, "must be one word"),
        ({"history": [{"role": "assistant", "content": "x", "recipient": "f<|end|>"}]}, "must be one word"),
        ({"history": [{"role": "assistant", "content": "x", "name": "f"}]}, "the tool of a call is its 'recipient'"),
        ({"tools": "python"}, "must be a list"),
        ({"tools": ["calc"]}, "browser and python are"),
        ({"tools": [{"description": "x"}]}, "a dict with 'name'"),
        ({"tools": [{"name": "two words"}]}, "must be one word"),
        ({"tools": [{"name": "f"}, {"name": "f"}]}, "contains 'f' twice"),
        ({"tools": [{"name": "f", "parameters": "x"}]}, "must be a JSON schema"),
        ({"tools": [{"name": "f", "parameters": {"x": object()}}]}, "are not JSON"),
        ({"date": ""}, "date is empty"),
    ],
)
def test_invalid_arguments_are_refused_with_what_is_allowed(arguments, message):
    with pytest.raises(PromptError, match=message):
        chat(**{"user": "hi"} | arguments)


def test_the_result_of_a_tool_may_be_empty():
    history = [{"role": "user", "content": "x"}, {"role": "tool", "name": "functions.f", "content": ""}]
    assert chat(None, history=history).messages[-1].content == ""


def test_headers_are_completed_as_harmony_writes_them():
    history = [
        {"role": "assistant", "content": "{}", "recipient": "functions.f"},
        {"role": "assistant", "content": "1+1", "recipient": "python"},
        {"role": "assistant", "content": "hi"},
        {"role": "tool", "content": "2", "name": "python"},
        {"role": "tool", "content": "2", "name": "functions.f"},
    ]
    headers = [(m.channel, m.recipient, m.content_type) for m in chat("x", history=history).messages[:-1]]
    assert headers == [
        ("commentary", "functions.f", "<|constrain|>json"),
        ("analysis", "python", "code"),
        ("final", None, None),
        ("analysis", "assistant", None),
        ("commentary", "assistant", None),
    ]
