import html as stdlib
import sys
import unicodedata

from hypothesis import given
from hypothesis import strategies as st

from workbench.visible import html, visible


def test_text_that_hides_nothing_is_shown_as_it_is() -> None:
    for text in ("", "plain", "naïve 日本語 العربية ❤️ a\u00a0b"):
        assert visible(text) == text


def test_what_cannot_be_seen_is_shown() -> None:
    assert visible("a\tb\r\n\x1b[31m\x7f") == "a␉b␍␊␛[31m␡"
    assert visible("\u202ecod.exe\u202c \u200b\ufeff\u2028\u00ad") == (
        "⟨U+202E⟩cod.exe⟨U+202C⟩ ⟨U+200B⟩⟨U+FEFF⟩⟨U+2028⟩⟨U+00AD⟩"
    )
    assert visible("\ud800\U000e0041\U000e0101\u3164") == "⟨U+D800⟩⟨U+E0041⟩⟨U+E0101⟩⟨U+3164⟩"


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


@given(st.text(st.characters()))
def test_showing_twice_is_showing_once_and_html_cannot_be_left(text: str) -> None:
    assert visible(visible(text)) == visible(text)
    safe = html(text)
    assert not set("<>\"'\n") & set(safe)
    assert stdlib.unescape(safe) == visible(text) or "&" in text
