import re
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests import o200k
from tests.conversation.conftest import POCKET
from workbench.conversation.tokenizer import Tokenizer
from workbench.errors import PromptError
from workbench.traces.spans import Span
from workbench.traces.steps import _END, KINDS, Step, find_step, kind, segment_slices, steps


def written(pieces: list[str], spans: list[Span]) -> Any:
    """The part of a trace that `steps` needs."""
    return SimpleNamespace(str_tokens=pieces, spans=spans)


def trace(pieces, channel: str = "analysis") -> Any:
    """A trace that is one message, without a header."""
    pieces = list(pieces)
    return written(pieces, [Span(0, len(pieces), 0, len(pieces), "assistant", channel)])


def texts(text: str) -> list[str]:
    return [step.text for step in steps(trace(text))]


@pytest.mark.parametrize(
    "want",
    [
        # pocket's shorthand, all seven problems
        ["7+8=15,", " 2+3+1=6,", " 2+1=3."],
        ["i=e*4,", " e=a-4.", " a=6-8=8,", " e=8-4=4."],
        ["c=b*2,", " b=a+4,", " a=3."],
        ["1 Jim to Kay,", " 2 Kay to Dee,", " 3 Dee to Pam."],
        ["Ida. Eve and Ida: Ida to Eve,", " Eve and Oz: Eve to Oz,", " Ann and Bob: Oz."],
        ["min 2 left 45759,", " min 4 left 5759,", " min 5 left 759."],
        ["Use calc."],
        # prose
        ["The user asks for a capital.", " It is Oslo, I think.", " Oslo has lakes, hills, and a fjord."],
        ["We use pi, e.g. 3.14 or 3.1416.", " That is, i.e. a number, fine.", " Dr. Smith etc. and others agree."],
        ["We have apples, pears etc.", " So we can begin to count."],
        ["Is it prime?!", " No, it is not (7 divides it.)", ' She text "never again."', " Then left."],
        ["Hmm... wait, that is odd.", " We count again... The count is 5."[:18], " The count is five."],
        ["It costs 1,000 crowns, 2,000 with tax."],
        ["For x=1, y=2 we get f(x=1, y=2).", " If a=3, b=4, then c is five."],
        # gpt-oss is terse
        ["So 7*8=56. Good."],
        ["So 7*8=56.", " Good. Then add 5 to that."],
        ["3*4=12,", " 12+5=17, so we have seventeen."],
        # lines and lists
        ["Options are these:\n", "1. Paris is large.\n", "2. Rome is old.\n\n", "So we pick Rome."],
        ["- First a point\n", "- Then another one\n\n\n", "And no more of them"],
        ["First line here.\r\n", "Second line here."],
        # mathematics
        ["x^2 = 9, so x = 3 or x = -3.", " We take \\frac{1}{2}, which is 0.5."],
        ["f(x=1, y=2) = 3,", " g(x=2, y=2) = 4."],
        # other punctuation
        ["在这里我们需要计算一个简单的和。", "三加四等于七，所以答案是七，对吗？", "对，我们已经检查过这个答案了！"],
        ["答案是五。", "但我需要检查一下！", "对吗？是的。"],
        ["答えは十です。", "確認します！"],
        ["그것은 다섯입니다.", " 네, 맞습니다."],
        # the full stop of each script
        ["हमें दो संख्याएँ जोड़नी हैं।", " पहले हम इकाई जोड़ते हैं।", " फिर दहाई।"],
        ["ہمیں دو اعداد جمع کرنے ہیں۔", " پہلے اکائیاں جمع کریں۔", " پھر دہائیاں جمع۔"],
        ["هل هذا العدد أولي؟", " لا، إنه يقبل القسمة على سبعة."],
        ["Մենք պետք է գումարենք։", " Հետո ստուգենք պատասխանը։"],
        ["መጀመሪያ እንደምራለን።", " ከዚያ እናረጋግጣለን።"],
        ["আমাদের দুটি সংখ্যা যোগ করতে হবে।", " তারপর উত্তর।"],
        ["ပထမဦးစွာ ပေါင်းပါမည်။", " ထို့နောက် စစ်ဆေးပါမည်။"],
        ["យើងត្រូវបូកលេខពីរ។", " បន្ទាប់មកពិនិត្យចម្លើយ។"],
        ["ᠪᠢᠳᠡ ᠲᠣᠭ᠎ᠠ ᠨᠡᠮᠡᠨ᠎ᠡ᠃", " ᠳᠠᠷᠠᠭ᠎ᠠ ᠱᠠᠯᠭᠠᠨ᠎ᠠ᠃"],
        ["वह बोला, «दस जोड़ो।»", " फिर उसने सत्रह बताया।"],
        ["क्या यह सही है?", " हाँ, यह सही है।"],
        ["最初の値は３．１４です。", "次にこれを二倍にします．", "だから答えは６．２８です。"],
        ["これは正しいでしょうか⁉", "はい、これは正しい答えです。"],
        ["یہ ٹھیک ہے؟!", " جی ہاں، ٹھیک ہے۔"],
        # abbreviations
        ["The train leaves at 5 p.m. and arrives at 7 p.m. on that day.", " So it takes two hours."],
        ["He came at 9 a.m. We left at 10."[:15], " We left the house at ten."],
        ["It is in the U.S. and in the U.K. too.", " We note the U.S. Senate here."],
        ["He lives in the U.S.", " The house is in Ohio."],
        [
            "Smith Inc. and Jones Ltd. merged, says Lee et al. (2023) in vol. 3, pp. 4 to 9.",
            " That was on Jan. 5 of it.",
        ],
        ["Mt. Everest and St. Louis are far apart.", " See problem No. 5 of the list."],
        ["Сложим числа, т.е. найдём сумму.", " Затем проверим ответ."],
        ["Wir nehmen z.B. Pi und d.h. etwa 3,14.", " Dann folgt die Antwort."],
        ["Das gilt z. B. für Pi und d. h. etwa für 3,14.", " Dann folgt die Antwort."],
        ["Сложим числа, т. е. найдём сумму.", " А. С. Пушкин писал стихи."],
        ["It was shown by Smith et al. 2020 on ca. 500 texts.", " We use it here."],
        # code is one piece
        ["The code is this:\n", "```python\nx = f(1, 2)\nprint(x). Yes\n```\n", "That prints three."],
        ["Unfinished code:\n", "```\na = 1. b\nc"],
        # too short to part
        ["ok"],
        ["\n\n"],
        ["A. B. C. And a longer one."],
    ],
)
def test_steps_are_the_sentences_of(want):
    assert texts("".join(want)) == want


def test_no_text_has_no_steps():
    assert steps(trace("")) == []
    assert steps(trace("hi", channel="final")) == []
    assert steps(written([], [])) == []


def test_every_message_of_the_channel_has_its_own_steps():
    pieces = [*"<ab>One thing. ", *"<cd>Another thing."]
    spans = [
        Span(0, 15, 4, 14, "assistant", "analysis"),
        Span(15, len(pieces), 19, len(pieces), "assistant", "analysis"),
    ]
    parsed = steps(written(pieces, spans))
    assert [(s.start, s.stop, s.text) for s in parsed] == [(4, 14, "One thing."), (19, 33, "Another thing.")]


def test_an_end_inside_a_token_moves_to_the_end_of_the_token():
    pieces = ["We are", " done. So", " we", " can", " stop", ".\n\n", "That", " is", " all."]
    assert [s.text for s in steps(trace(pieces))] == ["We are done. So", " we can stop.\n\n", "That is all."]


def test_a_character_in_two_tokens_is_not_split():
    pieces = ["我们已经知道这个答案", "", "。", "", "", "所", "以我们现在可以停下来"]
    parsed = steps(trace(pieces))
    assert [(s.start, s.stop) for s in parsed] == [(0, 3), (3, 7)]


bits = st.sampled_from(
    [
        "7+8=15",
        ", ",
        ". ",
        "! ",
        "? ",
        "\n",
        "\n\n",
        "1. ",
        "e.g. ",
        "So ",
        "we ",
        "Paris",
        "and ",
        " ",
        "etc. ",
        "3.14",
        "。",
        "...",
        "… ",
        "(",
        ")",
        "x=1",
        "1 Jim to Kay",
        "Good",
        "wait ",
        "i=e*4",
        "2 Bo to Al",
        '" ',
        "A. ",
        "min 2 left 34",
        "- ",
        "1,000",
        "`",
        "我们",
        "👩\u200d👧",
        "फिर दो।",
        "۔",
        "U.S. ",
        "5 p.m. ",
        "No. ",
        "．",
        "\t",
    ]
)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.one_of(bits, st.just("```\n"), st.text(max_size=3)), max_size=16), st.booleans())
def test_steps_partition_the_channel(text, by_character):
    pieces = list("".join(text)) if by_character else text
    parsed = steps(trace(pieces))
    assert "".join(s.text for s in parsed) == "".join(text)
    assert [s.start for s in parsed] == [0, *(s.stop for s in parsed)][: len(parsed)]
    assert (parsed[-1].stop if parsed else 0) == len(pieces)
    assert all(s.start < s.stop and s.text == "".join(pieces[s.start : s.stop]) and s.kind in KINDS for s in parsed)
    assert steps(trace(pieces)) == parsed


@settings(max_examples=300, deadline=None)
@given(st.lists(bits, max_size=14).map("".join))
def test_a_step_read_alone_is_one_step(text):
    for step in steps(trace(text)):
        assert texts(step.text) == [step.text]


@pytest.mark.parametrize("folder", [POCKET, None])
def test_steps_hold_whole_tokens_of_real_tokenizers(folder):
    tokenizer = Tokenizer.from_folder(folder or o200k.folder())
    text = "We add them. So 7+8=15, 2+3+1=6, 2+1=3.\n\nThat is 365. 日本語で書きましょう。👩‍👧 The answer is 365."
    ids = tokenizer.encode(text)
    parsed = steps(trace(tokenizer.str_tokens(ids)))
    assert [s.text for s in parsed] == [
        "We add them.",
        " So 7+8=15,",
        " 2+3+1=6,",
        " 2+1=3.\n\n",
        "That is 365.",
        " 日本語で書きましょう。",
        "👩‍👧 The answer is 365.",
    ]
    assert all(tokenizer.decode(ids[s.start : s.stop]) == s.text for s in parsed)


def test_a_step_is_found_by_position():
    two_steps = [Step(2, 5, "I see."), Step(9, 11, "So 5.")]
    assert [find_step(two_steps, p) for p in (1, 2, 4, 5, 8, 9, 10, 11)] == [
        None,
        two_steps[0],
        two_steps[0],
        None,
        None,
        two_steps[1],
        two_steps[1],
        None,
    ]
    assert find_step([], 0) is None


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("The user asks how many primes there are below 50.", "problem_setup"),
        ("We need to find c, given that a=3.", "problem_setup"),
        ("Let's list them and count.", "plan_generation"),
        ("We can use the sieve.", "plan_generation"),
        ("Use calc.", "plan_generation"),
        ("Copy it.", "plan_generation"),
        ("Recall that 2 is prime by definition.", "fact_retrieval"),
        (" c=b*2,", "fact_retrieval"),
        ("The capital of France is Paris.", "fact_retrieval"),
        (" 7+8=15,", "active_computation"),
        (" a=6-8=8,", "active_computation"),
        ("So 7 × 8 = 56.", "active_computation"),
        ("Let's compute: 3^2 + 4^2 = 25.", "active_computation"),
        ("1 Jim to Kay,", "active_computation"),
        (" Eve and Oz: Eve to Oz,", "active_computation"),
        ("min 2 left 45759,", "active_computation"),
        ("Wait, that is not right.", "uncertainty_management"),
        ("Hmm, maybe 49 counts too.", "uncertainty_management"),
        ("Let me double-check the sum.", "self_checking"),
        ("Good.", "self_checking"),
        ("So there are fifteen of them.", "result_consolidation"),
        ("Thus we have the whole list.", "result_consolidation"),
        ("So the answer is 15.", "final_answer_emission"),
        ("I'll respond with the list.", "final_answer_emission"),
        ("I'll answer in one line.", "final_answer_emission"),
        ("1. Paris in spring", "unknown"),
        ("", "unknown"),
    ],
)
def test_step_kinds_match_those_assigned_by_a_reader(text, want):
    assert kind(text) == want


TEXT = written(["a"] * 9, [])


def test_segments_are_slices_of_positions_within_the_text():
    assert segment_slices(TEXT, [slice(2, 4), slice(-3, None), slice(0, 10**6)]) == [
        slice(2, 4),
        slice(6, 9),
        slice(0, 9),
    ]
    assert (
        segment_slices(TEXT, [slice(5, 5)]) == [slice(5, 5)]
        and segment_slices(TEXT, []) == []
        and segment_slices(TEXT) == []
    )


@pytest.mark.parametrize("part", [5, "steps", None, (0, 3), slice(5, 3), slice(20, 30), slice(0, 6, 2), slice("a", 2)])
def test_an_invalid_segment_is_refused_with_its_index(part):
    with pytest.raises(PromptError, match=r"segments\[1\]"):
        segment_slices(TEXT, [slice(0, 2), part])


@pytest.mark.parametrize("repeated", ["=", "1-1-", "\t", " ", "([", "\n", "!", "!…", "1=1,", "or what ", "```\n", ". "])
def test_a_model_stuck_in_a_loop_gets_its_steps(repeated):
    """200,000 characters: with rules of quadratic time some of these would take minutes."""
    text = (repeated * 200_000)[:200_000]
    sentences = steps(trace([text[i : i + 8] for i in range(0, len(text), 8)]))
    assert "".join(step.text for step in sentences) == text


UNBOUNDED = re.compile(_END.pattern.replace("{0,50}", "*").replace("{1,50}", "+"), _END.flags)


@given(
    st.lists(
        st.sampled_from(["!" * 70, "…", "?", ".", " " * 70, "\t", "\n", "\r", "。", ")", '"', "a", "1", "```"]),
        max_size=12,
    )
)
def test_bounded_runs_end_where_unbounded_ones_do(parts):
    text = "".join(parts)
    bounded, unbounded = ([match.end() for match in rule.finditer(text)] for rule in (_END, UNBOUNDED))
    assert bounded == unbounded


def test_the_kind_of_a_long_step_is_that_of_its_beginning():
    assert kind("Wait, " + "a" * 5000) == "uncertainty_management" and kind("a" * 5000 + " final answer") == "unknown"
