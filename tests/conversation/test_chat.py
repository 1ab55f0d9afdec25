import pytest

from workbench.conversation.chat import as_chat, chat
from workbench.errors import PromptError


def test_equal_chats_are_equal_and_hashable():
    tools = [{"name": "f", "description": "d", "parameters": {"type": "object", "properties": {}}}]
    wrapped = [{"type": "function", "function": tools[0]}]
    assert chat("hi", tools=tools) == chat("hi", tools=wrapped)
    assert len({chat("hi", tools=tools), chat("hi", tools=wrapped), chat("ho")}) == 2


def test_a_str_is_a_question_and_a_chat_is_itself():
    asked = chat("hi", reasoning="low")
    assert as_chat(asked) is asked
    assert as_chat("hi") == chat("hi")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"reasoning": "max"}, "reasoning='max'.*'low', 'medium' or 'high'"),
        ({"user": ""}, "the question is empty"),
        ({"user": " \n"}, "the question is empty"),
        ({"user": 5}, "must be text, got int"),
        ({"user": None}, "nothing to answer"),
        ({"user": "\ud800"}, "not valid Unicode"),
        ({"system": ""}, "system is empty"),
        ({"history": [{"role": "robot", "content": "x"}]}, "role 'robot': choose 'user', 'assistant' or 'tool'"),
        ({"history": [{"role": "system", "content": "x"}]}, "arguments of chat"),
        ({"history": [{"content": "x"}]}, "role None"),
        ({"history": ["x"]}, r"history\[0\] must be a dict"),
        ({"history": [{"role": "user"}]}, r"the content of history\[0\] must be text"),
        ({"history": [{"role": "user", "content": "x", "colour": 1}]}, "'colour'; a message may have: role, content"),
        (
            {"history": [{"role": "user", "content": "x", "thinking": "y"}]},
            "'thinking', which a message of role 'user'",
        ),
        ({"history": [{"role": "tool", "content": "x"}]}, "which tool answers"),
        ({"history": [{"role": "tool", "content": "x", "name": "f to=user"}]}, "must be one word"),
        ({"history": [{"role": "assistant", "content": "x", "recipient": "f<|end|>"}]}, "must be one word"),
        ({"history": [{"role": "assistant", "content": "x", "name": "f"}]}, "names its tool as 'recipient'"),
        ({"tools": "python"}, "must be a list"),
        ({"tools": ["calc"]}, "browser and python are"),
        ({"tools": [{"description": "x"}]}, "a dict with 'name'"),
        ({"tools": [{"name": "two words"}]}, "must be one word"),
        ({"tools": [{"name": "f"}, {"name": "f"}]}, "given twice"),
        ({"tools": [{"name": "f", "parameters": "x"}]}, "must be a JSON schema"),
        ({"tools": [{"name": "f", "parameters": {"x": object()}}]}, "are not JSON"),
        ({"date": ""}, "date is empty"),
    ],
)
def test_what_cannot_be_said_is_refused_with_what_can(arguments, says):
    with pytest.raises(PromptError, match=says):
        chat(**{"user": "hi"} | arguments)


def test_a_tool_may_have_nothing_to_say():
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
    made = [(m.channel, m.recipient, m.content_type) for m in chat("x", history=history).messages[:-1]]
    assert made == [
        ("commentary", "functions.f", "<|constrain|>json"),
        ("analysis", "python", "code"),
        ("final", None, None),
        ("analysis", "assistant", None),
        ("commentary", "assistant", None),
    ]
