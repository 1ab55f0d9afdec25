import html as stdlib
import re
import sys
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workbench.text import html, html_of_shown, printable, visible, visible_pieces


def test_text_without_hidden_characters_is_unchanged() -> None:
    for text in ("", "plain", "naïve 日本語 العربية ❤️ a\u00a0b"):
        assert visible(text) == text


def test_invisible_characters_are_made_visible() -> None:
    assert visible("a\tb\r\n\x1b[31m\x7f") == "a␉b␍␊␛[31m␡"
    assert visible("\u202ecod.exe\u202c \u200b\ufeff\u2028\u00ad") == (
        "⟨U+202E⟩cod.exe⟨U+202C⟩ ⟨U+200B⟩⟨U+FEFF⟩⟨U+2028⟩⟨U+00AD⟩"
    )
    assert visible("\ud800\U000e0041\U000e0101\u3164") == "⟨U+D800⟩⟨U+E0041⟩⟨U+E0101⟩⟨U+3164⟩"


SHAPED = {
    "Persian": "می\u200cخواهم نمی\u200cدانم خانه\u200cها کتاب\u200cها قرارداد\u200cها",
    "Persian with marks": "مُ\u200cن",
    "an Arabic form": "ه\u200d",
    "Kurdish": "بە\u200cهێز",
    "Hindi": "क्\u200dष क्\u200cष",
    "Bengali": "র\u200d্য ত্\u200d",
    "Malayalam": "അവന്\u200d",
    "Kannada": "ರ\u200d್ಕ",
    "Sinhala": "ශ්\u200dරී",
    "Mongolian": "ᠭ\u200dᠠ",
    "Khmer": "ស៊\u200cី",
    "a flag of tags": "\U0001f3f4\U000e0067\U000e0062\U000e0065\U000e006e\U000e0067\U000e007f!",
    "a family": "👨\u200d👩\u200d👧\u200d👦",
    "a flag": "🏳️\u200d🌈 🏴\u200d☠️",
    "a profession": "👩🏽\u200d⚕️ 🧑🏿\u200d🚀",
    "a heart": "❤️\u200d🔥",
    "a polar bear": "🐻\u200d❄️",
}


@pytest.mark.parametrize("what", SHAPED)
def test_joiners_that_shape_letters_and_emoji_stay(what: str) -> None:
    assert visible(SHAPED[what]) == SHAPED[what]
    for pieces in (list(SHAPED[what]), [SHAPED[what][:3], "", SHAPED[what][3:]]):
        assert visible_pieces(pieces) == pieces


@pytest.mark.parametrize("joiner", ["\u200c", "\u200d"])
@pytest.mark.parametrize(
    "text",
    ["a{}b", "{}", "{}a", "a{}", "1{}2", "Auf{}lage", "日{}本", " {} ", "می{0}{0}خواهم", "क्{0}{0}ष",
     "👨{0}{0}👩", "😀{}a", "a{}😀", "\u3164{}्", "\u2800{}\u2800"],
)  # fmt: skip
def test_hidden_joiners_are_made_visible(joiner: str, text: str) -> None:
    assert f"⟨U+{ord(joiner):04X}⟩" in visible(text.format(joiner))


@settings(max_examples=400)
@given(st.lists(st.sampled_from([*"\u200c\u200dمد\u064fक्র👨🏽\ufe0fa\nᠭ\u180b\u3164\u034f\u202e❤", "", "می\u200c"])))
def test_joiners_among_any_characters_never_hide(pieces: list[str]) -> None:
    text = "".join(pieces)
    assert printable(visible(text)) == visible(text)
    assert "".join(visible_pieces(pieces)) == visible(text) and "".join(visible_pieces(pieces, "\n")) == visible(
        text, "\n"
    )
    assert not re.search("[\u200c\u200d]{2}", visible(text))


def test_hidden_tags_are_made_visible() -> None:
    tags = "".join(chr(0xE0000 + ord(letter)) for letter in "gbeng")
    for text in (tags, "🏴" + tags, "🏳" + tags + "\U000e007f", "🏴" + tags + "a", "🏴" + tags + "\U000e007f" + tags):
        assert "⟨U+E0067⟩" in visible(text)


def test_lines_can_be_kept() -> None:
    assert visible("a\nb\t\u202e", "\n") == "a\nb␉⟨U+202E⟩"
    assert html("<\n>", "<br>") == "&lt;&lt;br&gt;&gt;"  # what stands for a newline is text too


def test_no_control_or_format_character_passes() -> None:
    every = map(chr, range(sys.maxunicode + 1))
    hidden = "".join(char for char in every if unicodedata.category(char) in ("Cc", "Cf", "Cs", "Zl", "Zp"))
    shown = visible(hidden)
    assert shown.isprintable()
    assert len(hidden) > 2000 and not set(hidden) & set(shown)
    shown.encode()  # halves of characters are gone too


def read_back(shown: str) -> str:
    """The original of a text that `visible` has shown."""
    return re.sub("⟨U\\+([0-9A-F]{4,6})⟩|[␀-␟␡↵]", original, shown)


def original(match: re.Match[str]) -> str:
    return chr(int(match[1], 16)) if match[1] else {"␡": "\x7f", "↵": "\n"}.get(match[0]) or chr(ord(match[0]) - 0x2400)


LOOKALIKES = [
    "␛",
    "\x1b",
    "⟨U+202E⟩",
    "\u202e",
    "⟨",
    "U+202E⟩",
    "↵",
    "\n",
    "␊",
    "⟩",
    "\ufe0f",
    "❤",
    "1",
    "\u20e3",
    "\u200d",
]


@given(st.lists(st.one_of(st.sampled_from(LOOKALIKES), st.text(st.characters(), max_size=3))))
def test_a_shown_text_can_be_read_back(pieces: list[str]) -> None:
    text = "".join(pieces)
    for newline in ("␊", "↵", "\n"):
        assert read_back(visible(text, newline)) == text
        assert visible(text, newline) == "".join(visible_pieces(pieces, newline))


@given(st.text(st.characters()))
def test_printable_changes_nothing_that_is_shown_already(text: str) -> None:
    assert printable(visible(text)) == visible(text)
    assert printable(visible(text, "\n"), "\n") == visible(text, "\n")
    assert printable(printable(text)) == printable(text)
    assert printable(text).isprintable() or "\u00a0" in text


@given(st.text(st.characters()))
def test_html_is_escaped(text: str) -> None:
    for safe in (html(text), html_of_shown(visible(text))):
        assert not set("<>\"'\n") & set(safe)
        assert stdlib.unescape(safe) == visible(text)


@pytest.mark.parametrize("text", ["❤️ ☀️ ⚠️ ⭐️ ✔️", "1️⃣ #️⃣", "👁️\u200d🗨️", "🕵🏽\u200d♂️", "❤️\u200d🔥"])
def test_the_selector_of_the_emoji_form_stays_where_it_has_an_effect(text: str) -> None:
    assert visible(text) == text


@pytest.mark.parametrize("selector", ["\ufe00", "\ufe01", "\ufe0e", "\ufe0f"])
@pytest.mark.parametrize("before", ["a", "", "1", "한", " ", "❤\ufe0f", "❤\u200d", "😀", "\u3164", "⟨"])
def test_other_variation_selectors_are_shown(before: str, selector: str) -> None:
    assert visible(f"{before}{selector}🔥").count(f"⟨U+{ord(selector):04X}⟩") == 1


def test_a_joiner_after_a_shown_selector_is_shown_too() -> None:
    assert visible("❤\ufe0f\ufe0f\u200d🔥") == "❤\ufe0f⟨U+FE0F⟩⟨U+200D⟩🔥"


def test_spaces_other_than_the_two_common_ones_are_shown() -> None:
    spaces = "".join(c for c in map(chr, range(sys.maxunicode + 1)) if unicodedata.category(c) == "Zs")
    assert visible(spaces) == " \u00a0" + "".join(f"⟨U+{ord(c):04X}⟩" for c in spaces[2:])


def test_nothing_that_draws_nothing_passes() -> None:
    ranges = ((0x34F, 0x350), (0xFE00, 0xFE10), (0xFFF0, 0xFFF9), (0xE0000, 0xE1000), (0x1D159, 0x1D15A))
    for code in (code for ends in ranges for code in range(*ends)):
        assert visible(f"a{chr(code)}b") == f"a⟨U+{code:04X}⟩b"


def test_symbols_of_controls_are_shown_by_number() -> None:
    symbols = "".join(map(chr, range(0x2400, 0x2440))) + "↵"
    assert visible(symbols) == "".join(f"⟨U+{ord(c):04X}⟩" for c in symbols)
    assert visible("⟨ψ|φ⟩") == "⟨ψ|φ⟩"  # not what a shown character looks like
