"""Headers from openai-harmony's own tests and from models are parsed as by its non-strict parser, with exceptions.

`WHY` lists the reasons for the exceptions; docs/concepts/harmony.md has the same list.
"""

from collections import Counter

import pytest
from openai_harmony import HarmonyError, Role, StreamableParser

from tests.conversation.written import ids_of
from workbench.conversation.parse import parse

A, F = "<|start|>assistant", "functions.get_weather"
CITY = '{"location": "Tokyo"}'
THINKS = f"{A}<|channel|>analysis<|message|>We must refuse<|end|>{A}<|channel|>final<|message|>I'm sorry.<|return|>"

WHY = {
    "refused": "harmony stops with an error, so the rest of the text is lost",
    "lost": "harmony leaves out tokens of the text",
    "recipient": "harmony parses another word as the recipient, so that an analysis or answer becomes a call",
    "channel": "harmony uses the first of two channels, and parses the second as the recipient",
    "content": "harmony leaves `to=…` and the content type in the content, and changes its spaces",
}

CASES: list[tuple[str, Role | None, str | None]] = [
    # headers from harmony's own tests
    (f'<|channel|>analysis<|message|>User asks: "2 + 2?"<|end|>{A}<|channel|>final<|message|>4.', Role.ASSISTANT, None),
    (f"<|channel|>analysis<|message|>U<|end|>{A}<|channel|>analysis to=f code<|message|>{CITY}", Role.ASSISTANT, None),
    (f"{A} to={F}<|channel|>commentary <|constrain|>json<|message|>{CITY}<|call|>", None, None),
    (f"{A} to={F}<|channel|>commentary<|constrain|>json<|message|>{CITY}<|call|>", None, None),
    (f"{A} to={F}<|channel|>commentary<|constrain|>json<|message|>{CITY}<|end|>", None, None),
    (f"{A}<|channel|>commentary to={F}<|constrain|>json<|message|>{CITY}<|call|>", None, None),
    (f"{A} to={F}<|channel|>commentary json<|message|>{CITY}<|call|>", None, None),
    (f"{A}<|channel|>final <|constrain|>json<|message|>{CITY}<|return|>", None, "recipient"),
    (f"<|start|>browser.search to=assistant<|channel|>commentary<|message|>{CITY}", None, None),
    (f"<|start|>{F} to=assistant<|channel|>commentary<|message|>{CITY}<|end|>", None, None),
    (f"I must refuse<|end|>{THINKS}", Role.ASSISTANT, None),
    (f"<|channel|>analysis I must refuse<|end|>{THINKS}", Role.ASSISTANT, "content"),
    ("<|channel|>commentary Hello<|end|>", Role.ASSISTANT, "content"),
    (f"... Let's use it.<|end|>{A} to={F}<|channel|>commentary json<|message|>{CITY}<|call|>", Role.ASSISTANT, None),
    (f"{A}<|message|>Hello Müller, Γειά σου, Привет, 你好 😊👋🏾🇺🇸.<|end|>", None, None),
    (f"{A}<|message|>\x00 <|end|>{A}<|message|>Hi<|end|>", None, None),
    ("<|start|>system<|message|>Reasoning: high<|end|><|start|>developer<|message|># Tools<|end|>", None, None),
    (f"<|start|>user<|message|>What is 2 + 2?<|end|>{A}<|channel|>final<|message|>4.<|end|>", None, None),
    (f"<|start|>{F}<|message|>{CITY}<|end|>", None, "refused"),
    # headers from models
    ("<|channel|>analysis<|message|>unfinished", Role.ASSISTANT, None),
    (f"{A} to=python<|channel|>analysis code<|message|>1+1<|call|>", None, None),
    (f"{A}<|channel|>commentary to={F} code<|message|>{CITY}<|call|>", None, None),
    (f"{A}<|channel|>commentary to={F}<|message|>{CITY}<|call|>", None, None),
    (f"{A}<|channel|>commentary {F} json<|message|>{CITY}<|call|>", None, None),
    (f"{A}<|channel|>commentary {F}<|message|>{CITY}<|call|>", None, None),
    (f"{A} {F}<|channel|>commentary<|message|>{CITY}<|call|>", None, None),
    (f"{A}<|channel|>commentary<|message|>I will look.<|end|>", None, None),
    (f"{A}<|message|>no channel<|return|>", None, None),
    (f"{A}assistant<|channel|>final<|message|>4<|return|>", None, "refused"),
    (f"{A}<|channel|>final json<|message|>{CITY}<|return|>", None, "recipient"),
    ("analysis<|message|>We think<|end|>", Role.ASSISTANT, "recipient"),
    (f"{A}analysis<|message|>We think<|end|>", None, "refused"),
    (f"{A}commentary to={F}<|message|>{CITY}<|call|>", None, "recipient"),
    (f"{A}<|channel|>commentary to={F} <|constrain|> json<|message|>{CITY}<|call|>", None, "refused"),
    ("<|channel|>analysis<|channel|>final<|message|>4<|return|>", Role.ASSISTANT, "channel"),
    (f"{A}<|channel|>commentary to={F}<|channel|>commentary <|constrain|>json<|message|>{CITY}", None, "channel"),
    (f"{A}<|channel|>analysis to={F}<|channel|>commentary json<|message|>{CITY}<|call|>", None, "channel"),
    (f"<|channel|>commentary to={F}{CITY}<|call|>", Role.ASSISTANT, "content"),
    (f"<|channel|>commentary to={F} <|constrain|>json{CITY}<|call|>", Role.ASSISTANT, "content"),
    (f"{A}<|channel|>analysis We think<|end|>", None, "lost"),
    (f"{A}I can't.<|return|>", None, "lost"),
    (f"{A}<|channel|>analysis<|message|>x<|end|><|channel|>final<|message|>4<|return|>", None, "refused"),
    (f"{A} to=f<|channel|>commentary<|message|>{{}}<|call|>commentary{A}<|channel|>final<|message|>4", None, "refused"),
    (f"{A}<|channel|><|message|>4<|return|>", None, "refused"),
    ("<|start|><|channel|>final<|message|>4<|return|>", None, "refused"),
    ("<|start|>user:alice<|message|>hi<|end|>", None, "refused"),
    ("<|start|>nobody<|message|>hi<|end|>", None, "refused"),
    (f"{A}<|channel|>anal", None, "refused"),
    (f"{A}<|message|>a{A}<|message|>b<|end|>", None, "lost"),
    ("no header at all", None, "refused"),
]  # fmt: skip


def parsed_by_harmony(ids: list[int], role: Role | None, harmony) -> list[tuple] | str:
    """The messages by harmony's non-strict parser, or "refused" if it raises."""
    stream = StreamableParser(harmony, role, strict=False)
    try:
        for token in ids:
            stream.process(token)
        stream.process_eos()
    except HarmonyError:
        return "refused"
    return [
        (m.author.role.value, m.author.name, m.channel, m.recipient, m.content_type, m.content[0].to_dict()["text"])
        for m in stream.messages
    ]


def parsed(ids: list[int], role: Role | None, real) -> list[tuple]:
    spans = parse(ids, real, role.value if role else None)
    return [(s.role, s.author, s.channel, s.recipient, s.content_type, real.decode(ids[s.content])) for s in spans]


@pytest.mark.parametrize(("text", "role", "why"), CASES)
def test_headers_are_parsed_as_by_harmony_except_for_listed_reasons(text, role, why, real, harmony):
    ids = ids_of(text, real)
    messages, by_harmony = parsed(ids, role, real), parsed_by_harmony(ids, role, harmony)
    assert (messages == by_harmony) == (why is None), (messages, by_harmony)
    assert (by_harmony == "refused") == (why == "refused"), by_harmony
    assert why is None or why in WHY


def test_the_number_of_differing_headers_by_reason_is_recorded():
    counts = Counter(why for *_, why in CASES)
    assert (len(CASES), counts[None]) == (50, 24)
    assert {why: n for why, n in counts.items() if why} == {
        "refused": 12, "recipient": 4, "content": 4, "lost": 3, "channel": 3,
    }  # fmt: skip
