import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from openai_harmony import Author, Conversation, Message, RenderConversationConfig, Role, StreamableParser, StreamState

from tests.conversation.written import ids_of
from workbench.conversation.parse import parse
from workbench.traces.spans import Span

CONTROL = ["start", "channel", "message", "constrain", "end", "return", "call", "endoftext"]
WORDS = [
    "assistant",
    "user",
    "functions.calc",
    " to=",
    "functions",
    "analysis",
    "final",
    "json",
    " code",
    " ",
    "It is 5.",
    "x",
    "👧",
]

CALL = {"role": "assistant", "channel": "commentary", "recipient": "functions.f"}
THOUGHT, FINAL = ({"role": "assistant", "channel": channel} for channel in ("analysis", "final"))


def spans_of(text: str, tokenizer, start_role: str | None = None) -> list[Span]:
    return parse(ids_of(text, tokenizer), tokenizer, start_role)


def header_of(span: Span) -> dict:
    """The fields of a header that are not None."""
    keys = ("role", "channel", "recipient", "author", "content_type")
    return {key: getattr(span, key) for key in keys if getattr(span, key) is not None}


def content(text: str, tokenizer, start_role: str | None = None) -> list[str]:
    ids = ids_of(text, tokenizer)
    return [tokenizer.decode(ids[s.content]) for s in parse(ids, tokenizer, start_role)]


# Well-formed.


@pytest.mark.parametrize(
    ("header", "fields"),
    [
        ("<|start|>user<|message|>", {"role": "user"}),
        ("<|start|>assistant<|channel|>analysis<|message|>", {"role": "assistant", "channel": "analysis"}),
        (
            "<|start|>assistant to=functions.f<|channel|>commentary <|constrain|> json<|message|>",
            CALL | {"content_type": "<|constrain|>json"},
        ),
        (
            "<|start|>assistant<|channel|>commentary to=functions.f <|constrain|>json<|message|>",
            CALL | {"content_type": "<|constrain|>json"},
        ),
        (
            "<|start|>assistant<|channel|>commentary to=functions.f<|constrain|>json<|message|>",
            CALL | {"content_type": "<|constrain|>json"},
        ),
        (
            "<|start|>assistant to=python<|channel|>analysis code<|message|>",
            {"role": "assistant", "channel": "analysis", "recipient": "python", "content_type": "code"},
        ),
        (
            "<|start|>functions.f to=assistant<|channel|>commentary<|message|>",
            {"role": "tool", "channel": "commentary", "recipient": "assistant", "author": "functions.f"},
        ),
        ("<|start|>python<|message|>", {"role": "tool", "author": "python"}),
    ],
)
@pytest.mark.parametrize("end", ["<|end|>", "<|return|>", "<|call|>", ""])
def test_well_formed_headers_are_parsed(header, fields, end, pocket, real):
    for tokenizer in (pocket, real):
        (span,) = spans_of(header + "It is 5." + end, tokenizer)
        assert header_of(span) == fields
        assert span.complete == bool(end)
        assert content(header + "It is 5." + end, tokenizer) == ["It is 5."]


def test_a_completion_that_begins_inside_a_header_is_parsed(pocket):
    text = "<|channel|>analysis<|message|>x<|end|><|start|>assistant<|channel|>final<|message|>y<|return|>"
    assert [header_of(s) for s in spans_of(text, pocket, "assistant")] == [
        {"role": "assistant", "channel": "analysis"},
        {"role": "assistant", "channel": "final"},
    ]
    with_start = spans_of("<|start|>assistant" + text, pocket)
    alone = spans_of(text, pocket, "assistant")
    assert [(s.content_start, s.content_stop) for s in with_start] == [
        (s.content_start + 2, s.content_stop + 2) for s in alone
    ]


def test_the_start_of_the_answer_is_an_empty_message_of_the_assistant(pocket):
    *_, last = spans_of("<|start|>user<|message|>hi<|end|><|start|>assistant", pocket)
    assert header_of(last) == {"role": "assistant"}
    assert not last.complete and last.content_start == last.content_stop == last.stop


# Malformed: every token stays, with the fields that could be parsed.


@pytest.mark.parametrize(
    ("text", "role", "expected"),
    [
        ("hello no header", None, [({"role": "unparsed"}, "hello no header", False)]),
        ("I can't.<|return|>", "assistant", [({"role": "assistant"}, "I can't.", True)]),
        ("<|start|>assistantI can't.<|return|>", None, [({"role": "assistant"}, "I can't.", True)]),
        ("<|start|>assistant I can't.<|return|>", None, [({"role": "assistant"}, " I can't.", True)]),
        ("<|start|>assistant to=functions.f", None, [({"role": "assistant", "recipient": "functions.f"}, "", False)]),
        ("<|channel|>anal", "assistant", [({"role": "assistant", "channel": "anal"}, "", False)]),
        (
            "<|channel|>analysis<|message|>unfinished",
            "assistant",
            [({"role": "assistant", "channel": "analysis"}, "unfinished", False)],
        ),
        (
            "<|channel|>analysis<|channel|>final<|message|>x<|return|>",
            "assistant",
            [({"role": "assistant", "channel": "final"}, "x", True)],
        ),
        ("analysis<|message|>x<|return|>", "assistant", [({"role": "assistant", "channel": "analysis"}, "x", True)]),
        ("<|start|>nobody<|message|>x<|end|>", None, [({"role": "unparsed"}, "x", True)]),
        (
            "<|start|><|channel|>final<|message|>x<|end|>",
            None,
            [({"role": "assistant", "channel": "final"}, "x", True)],
        ),
        ("<|start|>assistant<|channel|><|message|>x<|end|>", None, [({"role": "assistant"}, "x", True)]),
        ("<|start|>assistant<|message|>no channel<|return|>", None, [({"role": "assistant"}, "no channel", True)]),
        (
            "<|start|>user<|message|>a<|start|>user<|message|>b<|end|>",
            None,
            [({"role": "user"}, "a", False), ({"role": "user"}, "b", True)],
        ),
        (
            "<|start|>user<|message|>a<|channel|>b<|message|>c<|end|>",
            None,
            [({"role": "user"}, "a<|channel|>b<|message|>c", True)],
        ),
        (
            "<|start|>user<|message|>a<|end|>zzz<|end|><|end|>",
            None,
            [({"role": "user"}, "a", True), ({"role": "unparsed"}, "zzz", True), ({"role": "unparsed"}, "", True)],
        ),
        ("<|start|><|start|>", None, [({"role": "unparsed"}, "", False)] * 2),
        ("", "assistant", []),
    ],
)
def test_malformed_text_is_parsed_into_messages(text, role, expected, pocket, real):
    for tokenizer in (pocket, real):
        spans = spans_of(text, tokenizer, role)
        messages = zip(spans, content(text, tokenizer, role), strict=True)
        assert [(header_of(span), text, span.complete) for span, text in messages] == expected


@pytest.mark.parametrize(
    ("completion", "expected"),
    [
        # a marker is missing: after the role, before the channel, before the content
        ("analysis<|message|>x<|end|>", [(THOUGHT, "x")]),
        (" analysis<|message|>x<|end|>", [(THOUGHT, "x")]),
        ("commentary to=functions.f<|message|>{}<|call|>", [(CALL, "{}")]),
        ("assistant<|channel|>final<|message|>x<|return|>", [(FINAL, "x")]),
        ("<|channel|>analysis I must refuse<|end|>", [(THOUGHT, " I must refuse")]),
        ("<|channel|>analysisI must refuse<|end|>", [(THOUGHT, "I must refuse")]),
        ("<|channel|>commentary to=functions.f{}<|call|>", [(CALL, "{}")]),
        (
            "<|channel|>commentary to=functions.f <|constrain|>json{}<|call|>",
            [(CALL | {"content_type": "<|constrain|>json"}, "{}")],
        ),
        ("I must refuse<|end|>", [({"role": "assistant"}, "I must refuse")]),
        # a channel twice, a superfluous word, a tool's name without "to="
        ("<|channel|>commentary to=functions.f<|channel|>commentary<|message|>{}<|call|>", [(CALL, "{}")]),
        (
            "<|channel|>analysis to=functions.f<|channel|>commentary json<|message|>{}<|call|>",
            [(CALL | {"content_type": "json"}, "{}")],
        ),
        ("<|channel|>commentary functions.f<|message|>{}<|call|>", [(CALL, "{}")]),
        ("<|channel|>commentary to= functions.f<|message|>{}<|call|>", [(CALL, "{}")]),
        ("<|channel|>commentaryto=functions.f<|message|>{}<|call|>", [(CALL, "{}")]),
        (
            "<|channel|>commentary to=functions.f<|message|>{}<|call|>commentary to=functions.f<|message|>{}<|call|>",
            [(CALL, "{}"), (CALL, "{}")],
        ),
        (
            "<|channel|>commentary to=functions.f<|message|>{}<|call|>commentary<|channel|>final<|message|>x<|return|>",
            [(CALL, "{}"), (FINAL, "x")],
        ),
        # a later message without `<|start|>`: only an assistant writes a channel
        (
            "<|channel|>analysis<|message|>x<|end|><|channel|>final<|message|>y<|return|>",
            [(THOUGHT, "x"), (FINAL, "y")],
        ),
        ("<|channel|>analysis<|message|>x<|end|>final<|message|>y<|return|>", [(THOUGHT, "x"), (FINAL, "y")]),
        (
            "<|channel|>analysis<|message|>x<|end|>assistant<|channel|>final y<|return|>",
            [(THOUGHT, "x"), (FINAL, " y")],
        ),
        # an unknown word is not the content type of a thought, and not the recipient of an answer
        ("I see<|channel|>analysis<|message|>x<|end|>", [(THOUGHT, "x")]),
        ("<|channel|>final json<|message|>{}<|return|>", [(FINAL | {"content_type": "json"}, "{}")]),
    ],
)
def test_completions_are_parsed_the_same_alone_and_in_a_conversation(completion, expected, pocket, real):
    for tokenizer in (pocket, real):
        completion_ids = ids_of(completion, tokenizer)
        prompt = ids_of("<|start|>user<|message|>q<|end|><|start|>assistant", tokenizer)
        ids = prompt + completion_ids
        alone, inside = parse(completion_ids, tokenizer, "assistant"), parse(ids, tokenizer)[1:]
        for spans, token_ids in ((alone, completion_ids), (inside, ids)):
            assert [(header_of(span), tokenizer.decode(token_ids[span.content])) for span in spans] == expected


@pytest.mark.parametrize(
    ("text", "fields"),
    [
        ("<|start|>assistantanalysis<|message|>x<|end|>", THOUGHT),
        ("<|start|>assistent to=functions.f<|channel|>commentary<|message|>{}<|call|>", CALL),
        ("<|start|>get_weather to=assistant<|channel|>commentary<|message|>x<|end|>",
         {"role": "tool", "channel": "commentary", "recipient": "assistant", "author": "get_weather"}),
        ("<|start|>browser.search<|message|>x<|end|>", {"role": "tool", "author": "browser.search"}),
        ("<|start|>user:alice<|message|>x<|end|>", {"role": "user"}),
    ],
)  # fmt: skip
def test_the_role_follows_from_the_name_and_the_recipient(text, fields, pocket, real):
    for tokenizer in (pocket, real):
        (span,) = spans_of(text, tokenizer)
        assert header_of(span) == fields


def test_no_token_is_ever_lost(pocket, real):
    pieces = st.sampled_from([f"<|{name}|>" for name in CONTROL] + WORDS)

    @settings(max_examples=300, deadline=None)
    @given(st.lists(pieces, max_size=24).map("".join), st.sampled_from([None, "assistant", "user"]), st.booleans())
    def check(text, role, use_pocket):
        tokenizer = pocket if use_pocket else real
        ids = ids_of(text, tokenizer)
        assert_spans_cover(ids, tokenizer, role)

    check()


def test_any_ids_can_be_parsed(pocket, real):
    control = st.sampled_from([*pocket.special.values(), *real.special.values()])

    @settings(max_examples=300, deadline=None)
    @given(st.lists(st.integers(-3, 201_200) | st.integers(0, 447) | control))
    def check(ids):
        assert_spans_cover(ids, pocket, None)
        assert_spans_cover(ids, real, "assistant")

    check()


def assert_spans_cover(ids, tokenizer, role) -> None:
    """Asserts that the spans cover all ids, and that each message alone is parsed the same."""
    spans = parse(ids, tokenizer, role)
    assert [s.start for s in spans] == [0, *(s.stop for s in spans[:-1])][: len(spans)]
    assert (spans[-1].stop if spans else 0) == len(ids)
    for span in spans:
        assert span.start <= span.content_start <= span.content_stop <= span.stop and span.start < span.stop
        if not (span.start == 0 and role):
            (alone,) = parse(ids[span.start : span.stop], tokenizer)
            assert header_of(alone) == header_of(span) and alone.complete == span.complete
            assert alone.content == slice(span.content_start - span.start, span.content_stop - span.start)
    assert parse(ids, tokenizer, role) == spans


# Against openai-harmony, on conversations rendered by it.

text = st.text(max_size=12) | st.sampled_from(
    ["7 °C. 👩‍👧", "<|end|>", "<|start|>user<|message|>", '{"city":"Oslo"}', "\n\n"]
)
name = st.sampled_from(["f", "get_weather", "a-b"])
of = Message.from_role_and_content


def call(text: str, name: str, kind: str) -> Message:
    if kind == "python":
        return of(Role.ASSISTANT, text).with_channel("analysis").with_recipient("python").with_content_type("code")
    message = of(Role.ASSISTANT, text).with_channel("commentary").with_recipient(f"functions.{name}")
    return message.with_content_type("<|constrain|>json" if kind == "constrained" else "json")


message = st.one_of(
    st.builds(lambda t: of(Role.USER, t), text),
    st.builds(lambda t: of(Role.SYSTEM, t), text),
    st.builds(lambda t: of(Role.DEVELOPER, t), text),
    st.builds(
        lambda t, c: of(Role.ASSISTANT, t).with_channel(c), text, st.sampled_from(["analysis", "commentary", "final"])
    ),
    st.builds(call, text, name, st.sampled_from(["python", "constrained", "named"])),
    st.builds(
        lambda t, n: (
            Message.from_author_and_content(Author.new(Role.TOOL, f"functions.{n}"), t)
            .with_recipient("assistant")
            .with_channel("commentary")
        ),
        text,
        name,
    ),
)


def test_well_formed_conversations_are_parsed_as_by_harmony(real, harmony):
    keep = RenderConversationConfig(auto_drop_analysis=False)

    @settings(max_examples=150, deadline=None)
    @given(st.lists(message, min_size=1, max_size=6))
    def check(messages):
        ids = harmony.render_conversation(Conversation.from_messages(messages), keep)
        by_harmony = harmony.parse_messages_from_completion_tokens(ids)
        spans = parse(ids, real)
        assert len(spans) == len(by_harmony) == len(messages)
        for span, message in zip(spans, by_harmony):
            assert (span.role, span.author) == (message.author.role.value, message.author.name)
            assert (span.channel, span.recipient) == (message.channel, message.recipient)
            assert span.content_type == message.content_type
            assert real.decode(ids[span.content]) == message.content[0].to_dict()["text"]
            assert span.complete

    check()


def test_content_tokens_are_those_of_harmonys_streaming_parser(real, harmony):
    @settings(max_examples=60, deadline=None)
    @given(st.lists(message, min_size=1, max_size=4))
    def check(messages):
        ids = harmony.render_conversation(Conversation.from_messages(messages))
        stream, content_positions = StreamableParser(harmony, None), []
        for position, token in enumerate(ids):
            inside = stream.state == StreamState.CONTENT
            stream.process(token)
            if inside and stream.state == StreamState.CONTENT:
                content_positions.append(position)
        assert [
            p for span in parse(ids, real) for p in range(span.content_start, span.content_stop)
        ] == content_positions

    check()


def test_a_call_that_harmony_renders_but_cannot_parse_is_parsed(real, harmony):
    ids = harmony.render(
        of(Role.ASSISTANT, "{}")
        .with_channel("commentary")
        .with_recipient("functions.f")
        .with_content_type("<|constrain|> json")
    )
    (span,) = parse(ids, real)
    assert header_of(span) == CALL | {"content_type": "<|constrain|>json"}
