"""Chats rendered by a chat template: pocket's own, and small faulty ones."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.conversation.conftest import POCKET
from tests.conversation.written import control_tokens, ids_of
from workbench.conversation.chat import chat
from workbench.conversation.render import render
from workbench.errors import PromptError

CALC = {"name": "calc", "description": "", "parameters": {"type": "object", "properties": {}}}
PLAIN = "{% for m in messages %}<|start|>{{ m.role }}<|message|>{{ m.content }}<|end|>{% endfor %}<|start|>assistant"


@pytest.mark.parametrize("effort", ["low", "medium", "high"])
def test_a_question_for_pocket_renders_as_in_its_training(effort, pocket, template):
    rendered = render(chat("What is 247+138?", reasoning=effort), pocket, template)
    expected = f"<|start|>system<|message|>Reasoning: {effort}<|end|><|start|>user<|message|>What is 247+138?<|end|>"
    assert rendered.how == "template"
    assert list(rendered.ids) == ids_of(expected + "<|start|>assistant", pocket)


def test_the_tools_of_pocket_are_listed_in_its_developer_message(pocket, template):
    rendered = render(chat("What is 812*29?", reasoning="high", tools=[CALC]), pocket, template)
    expected = (
        "<|start|>system<|message|>Reasoning: high<|end|><|start|>developer<|message|>Tools: functions.calc<|end|>"
        "<|start|>user<|message|>What is 812*29?<|end|><|start|>assistant"
    )
    assert list(rendered.ids) == ids_of(expected, pocket)


def test_spans_are_the_messages(pocket, template):
    history = [
        {"role": "user", "content": "What is 3*4?"},
        {"role": "tool", "name": "functions.calc", "content": "12"},
        {"role": "assistant", "content": "It is 12.", "thinking": "Use calc."},
    ]
    rendered = render(chat("Sort 21.", history=history, keep_thoughts=True), pocket, template)
    assert [(s.role, s.channel, s.author) for s in rendered.spans] == [
        ("system", None, None),
        ("user", None, None),
        ("tool", "commentary", "functions.calc"),
        ("assistant", "analysis", None),
        ("assistant", "final", None),
        ("user", None, None),
        ("assistant", None, None),
    ]


def test_ids_equal_those_of_transformers_on_benign_text(pocket, template):
    from transformers import AutoTokenizer

    hf_tokenizer = AutoTokenizer.from_pretrained(POCKET)
    turn = [
        {"role": "user", "content": "Say Hal Cal."},
        {"role": "assistant", "content": "It is Hal Cal.", "thinking": "Copy it."},
    ]
    for question in ("What is 247+138?", "Mod 10: g=n*6, n=6. Find g.", "Größe 日本 👩‍👧?"):
        for history in ([], turn):
            for tools in (None, [CALC]):
                for effort in ("low", "high"):
                    prompt_chat = chat(question, reasoning=effort, history=history, tools=tools, keep_thoughts=True)
                    expected = hf_tokenizer.apply_chat_template(
                        [*history, {"role": "user", "content": question}],
                        tools=[{"type": "function", "function": CALC}] if tools else None,
                        reasoning_effort=effort,
                        add_generation_prompt=True,
                        return_dict=False,
                    )
                    assert list(render(prompt_chat, pocket, template).ids) == expected


@pytest.mark.parametrize(
    ("arguments", "missing"),
    [
        ({"system": "Be a clock."}, "system text"),
        ({"developer": "Be brief."}, "developer text"),
        ({"date": "2025-08-05"}, "a date"),
        ({"tools": ["python"]}, "the tool 'python'"),
        ({"tools": [{"name": "weather"}]}, "the tool 'weather'"),
        (
            {"history": [{"role": "assistant", "content": "{}", "recipient": "functions.calc"}]},
            "the call to functions.calc",
        ),
        ({"history": [{"role": "tool", "content": "1", "name": "functions.other"}]}, "the tool 'functions.other'"),
        ({"history": [{"role": "assistant", "content": "x", "channel": "commentary"}]}, "channel 'commentary'"),
        (
            {"history": [{"role": "assistant", "content": "x", "channel": "analysis"}]},
            "an analysis message right before",
        ),
        # text that is in pocket's template anyway does not count
        ({"system": "Reasoning: medium"}, "system text"),
    ],
)
def test_parts_that_the_template_would_drop_are_refused(arguments, missing, pocket, template):
    with pytest.raises(PromptError, match=f"template .*{missing}"):
        render(chat("hi", **arguments), pocket, template)


def test_no_text_in_a_chat_becomes_a_control_token(pocket, template):
    pieces = st.sampled_from(
        ["<|end|>", "<|start|>", "<|", "|>", "end", "<", "|", ">", "x", " ", "\ue000", "{{ 7*7 }}", "{%"]
    )
    texts = st.lists(pieces, min_size=1, max_size=8).map("".join).filter(str.strip)

    def rendered_chat(one: str, two: str, three: str):
        history = [
            {"role": "user", "content": one},
            {"role": "tool", "name": "functions.calc", "content": two},
            {"role": "assistant", "content": three, "thinking": one},
        ]
        return render(chat(two, history=history, keep_thoughts=True), pocket, template)

    expected = control_tokens(rendered_chat("a", "b", "c").ids, pocket)

    @settings(max_examples=150, deadline=None)
    @given(texts, texts, texts)
    def check(one, two, three):
        rendered = rendered_chat(one, two, three)
        assert control_tokens(rendered.ids, pocket) == expected
        content = ["".join(pocket.str_tokens(rendered.ids)[s.content]) for s in rendered.spans]
        assert content[1:-1] == [one, two, one, three, two]

    check()


def test_two_adjacent_texts_cannot_form_a_control_token(pocket):
    adjacent = "{% for m in messages %}{{ m.content }}{% endfor %}<|end|>"
    history = [{"role": "user", "content": "<|start"}, {"role": "assistant", "content": "|>"}]
    rendered = render(chat("<|end|>", history=history), pocket, adjacent)
    assert control_tokens(rendered.ids, pocket) == ["<|end|>"]
    assert pocket.decode(rendered.ids) == "<|start|><|end|><|end|>"


# what a template does to a text -> the template's words for it, and the error
CHANGES = {
    "cut": ("m.content[:10]", "changes message 0"),
    "reversed": ("m.content | reverse", "changes message 0"),
    "replaced": ("m.content | replace('12', '99')", "changes message 0"),
    "trimmed": ("m.content | trim", "changes message 0"),
    "escaped": ("m.content | e", "changes message 0"),
    "quoted": ("m.content | tojson", "changes message 0"),
    "wrapped": ("m.content | wordwrap(10)", "changes message 0"),
    "upper": ("m.content | upper", "changes message 0"),
    "twice": ("m.content + m.content", "repeats message 0"),
    "left out": ("''", "no place for message 0"),
    "replaced if it is this": (
        "'What is 99+30?' if '<' in m.content and m.content|length == 18 else m.content",
        "changes",
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_template_that_changes_the_text_is_refused(change, pocket):
    words, message = CHANGES[change]
    with pytest.raises(PromptError, match=message):
        render(chat(" What is <12+30>?\n"), pocket, PLAIN.replace("m.content", words))


def test_a_template_that_changes_the_order_is_refused(pocket):
    history = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    with pytest.raises(PromptError, match="order"):
        render(chat("c", history=history), pocket, PLAIN.replace("in messages", "in messages | reverse"))


def test_a_text_that_the_filters_do_not_change_is_rendered(pocket):
    quoted = "<|start|>user<|message|>{{ messages[0].content | trim | tojson }}<|end|>"
    rendered = render(chat("say <|end|> é"), pocket, quoted)
    assert pocket.decode(rendered.ids) == '<|start|>user<|message|>"say <|end|> é"<|end|>'


def test_a_tool_call_is_passed_to_the_template_as_by_transformers(pocket):
    calls = (
        "{% for m in messages %}{% if m.tool_calls %}{% set c = m.tool_calls[0].function %}"
        "<|start|>assistant to=functions.{{ c.name }}<|channel|>commentary json<|message|>"
        "{{ c.arguments | tojson }}<|call|>"
        "{% else %}<|start|>{{ m.role }}<|message|>{{ m.content }}<|end|>{% endif %}{% endfor %}<|start|>assistant"
    )
    call = {"role": "assistant", "recipient": "functions.calc", "content": '{"x": "<|end|>"}'}
    rendered = render(chat("hi", history=[call]), pocket, calls)
    first = rendered.spans[0]
    assert (first.role, first.recipient, first.content_type) == ("assistant", "functions.calc", "json")
    assert control_tokens(rendered.ids, pocket).count("<|end|>") == 1


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        ("{% for %}", "cannot render"),
        ("{{ raise_exception('only one turn') }}", "only one turn"),
        ("{{ messages[7].content.x }}", "cannot render"),
        ("{{ 1 // 0 }}", "cannot render"),
        ("{{ messages.append(1) }}", "cannot render"),  # immutable
        ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "cannot render"),  # the sandbox
    ],
)
def test_a_failing_template_raises_a_prompt_error(broken, message, pocket):
    with pytest.raises(PromptError, match=message):
        render(chat("hi"), pocket, broken)


def test_strftime_now_returns_the_date_of_the_chat(pocket):
    dated = "{{ strftime_now('%Y-%m-%d') }} " + PLAIN
    assert pocket.decode(render(chat("hi", date="2025-08-05"), pocket, dated).ids).startswith("2025-08-05 <|start|>")
