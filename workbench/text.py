"""Makes text from a model safe to show: no character is hidden, reorders others, or runs as code.

Every Python view, `repr` and error message uses this module for text from a model or a file, and for numbers and sizes.
The browser and the figures get text that this module has made visible.
"""

import re
import unicodedata
from collections.abc import Callable, Collection, Sequence
from html import escape


def _code_points(ranges: str) -> frozenset[int]:
    """The code points of ranges in hexadecimal: "AD 115F-1160"."""
    ends = [[int(end, 16) for end in each.split("-")] for each in ranges.split()]
    return frozenset(code for each in ends for code in range(each[0], each[-1] + 1))


# Characters that draw nothing and can carry hidden text, from Unicode 17.0: Default_Ignorable_Code_Point
# (DerivedCoreProperties.txt), then those that are blank in fonts although Unicode does not say so: a joiner of numbers,
# blanks of Braille, hieroglyphs and Khitan, an empty notehead, modifiers of SignWriting, and the placeholder U+FFFC.
_BLANKS = (
    "AD 34F 61C 115F-1160 17B4-17B5 180B-180F 200B-200F 202A-202E 2060-206F 3164 FE00-FE0F FEFF FFA0 FFF0-FFF8 "
    "1BCA0-1BCA3 1D173-1D17A E0000-E0FFF "
    "2800 FFFC 1107F 13440-13442 16FE4 1BC9D 1D159 1DA9B-1DA9F 1DAA1-1DAAF"
)
_PICTURES_OF_CONTROLS = "21B5 2400-243F"  # line feeds and controls are shown as these, so these are shown by number
_BLANK, _PICTURED = _code_points(_BLANKS), _code_points(_PICTURES_OF_CONTROLS)
_SPACES = frozenset(" \u00a0")  # all other spaces look like one of these two, so they are shown by their number
# What `str.isprintable` accepts and must be looked at. As ranges: a search for single characters is much slower.
_SPECIAL = re.compile(
    "["
    + re.sub(r"([0-9A-F]+)", lambda m: f"\\U{m[1]:0>8}", _BLANKS + " " + _PICTURES_OF_CONTROLS).replace(" ", "")
    + r"]|⟨U\+"
)

# From Unicode 17.0. _JOINING: blocks of scripts with connected letters, such as Persian and Mongolian, where a joiner
# changes how a word is written (the scripts in ArabicShaping.txt, and Khmer). _PICTURES: the characters that joiners
# combine into one emoji (Extended_Pictographic in emoji-data.txt).
_JOINING = (
    range(0x0600, 0x0780), range(0x07C0, 0x0800), range(0x0840, 0x0900), range(0x1780, 0x18B0), range(0xA840, 0xA880),
    range(0xFB50, 0xFE00), range(0xFE70, 0xFEFF), range(0x10AC0, 0x10B00), range(0x10B80, 0x10BB0),
    range(0x10D00, 0x10D40), range(0x10EC0, 0x10FE0), range(0x1E900, 0x1E960),
)  # fmt: skip
_PICTURES = (
    range(0x2194, 0x21AB), range(0x231A, 0x2400), range(0x25AA, 0x25FF), range(0x2600, 0x27C0), range(0x2934, 0x2936),
    range(0x2B05, 0x2B56), range(0x1F000, 0x1F1E6), range(0x1F200, 0x1F3FB), range(0x1F400, 0x1FC00),
)  # fmt: skip
# The characters with two forms, text and emoji, of which U+FE0F selects the emoji (emoji-data.txt: Emoji, and either in
# the first plane or shown as text by default). Digits have an emoji form too, but only as keycaps.
_TWO_FORMS = _code_points(
    "A9 AE 203C 2049 2122 2139 2194-2199 21A9-21AA 231A-231B 2328 23CF 23E9-23F3 23F8-23FA 24C2 25AA-25AB 25B6 25C0 "
    "25FB-25FE 2600-2604 260E 2611 2614-2615 2618 261D 2620 2622-2623 2626 262A 262E-262F 2638-263A 2640 2642 "
    "2648-2653 265F-2660 2663 2665-2666 2668 267B 267E-267F 2692-2697 2699 269B-269C 26A0-26A1 26A7 26AA-26AB "
    "26B0-26B1 26BD-26BE 26C4-26C5 26C8 26CE-26CF 26D1 26D3-26D4 26E9-26EA 26F0-26F5 26F7-26FA 26FD 2702 2705 "
    "2708-270D 270F 2712 2714 2716 271D 2721 2728 2733-2734 2744 2747 274C 274E 2753-2755 2757 2763-2764 2795-2797 "
    "27A1 27B0 27BF 2934-2935 2B05-2B07 2B1B-2B1C 2B50 2B55 3030 303D 3297 3299 1F170-1F171 1F17E-1F17F 1F202 1F237 "
    "1F321 1F324-1F32C 1F336 1F37D 1F396-1F397 1F399-1F39B 1F39E-1F39F 1F3CB-1F3CE 1F3D4-1F3DF 1F3F3 1F3F5 1F3F7 "
    "1F43F 1F441 1F4FD 1F549-1F54A 1F56F-1F570 1F573-1F579 1F587 1F58A-1F58D 1F590 1F5A5 1F5A8 1F5B1-1F5B2 1F5BC "
    "1F5C2-1F5C4 1F5D1-1F5D3 1F5DC-1F5DE 1F5E1 1F5E3 1F5E8 1F5EF 1F5F3 1F5FA 1F6CB 1F6CD-1F6CF 1F6E0-1F6E5 1F6E9 "
    "1F6F0 1F6F3"
)
_AS_EMOJI, _KEYCAP = "\ufe0f", "\u20e3"
_SKIN_TONES = frozenset(range(0x1F3FB, 0x1F400))
# The three flags that are encoded as a black flag followed by tags: England, Scotland, Wales (emoji-sequences.txt).
_FLAGS = tuple(
    "\U0001f3f4" + "".join(chr(0xE0000 + ord(c)) for c in name + "\x7f") for name in ("gbeng", "gbsct", "gbwls")
)
_NON_JOINER, _JOINER = "\u200c", "\u200d"
_VIRAMA = 9  # the combining class of the sign that removes the vowel of an Indic letter


def visible(text: str, newline: str = "␊") -> str:
    r"""The text with every control, bidi, zero-width and unusual space character replaced by visible characters.

    Controls become the symbols that Unicode has for them (tab ␉, escape ␛), all others their code point. These symbols,
    and what looks like a shown code point, are shown by code point themselves, so that the text can be read back.
    `newline` replaces each line feed ("␊" or "↵"); pass "\n" to keep the lines. A joiner stays where it shapes letters
    or emoji, and a selector of the emoji form after a character that has one; elsewhere they are made visible.

    >>> visible("a\tb\n\u202ecod.exe\u200b")
    'a␉b␊⟨U+202E⟩cod.exe⟨U+200B⟩'
    >>> visible("␛ ⟨U+202E⟩")
    '⟨U+241B⟩ ⟨U+27E8⟩U+202E⟩'
    >>> visible("a\u200db") == "a⟨U+200D⟩b", visible("می\u200cخواهم") == "می\u200cخواهم"
    (True, True)
    """
    return newline.join(line if _is_plain(line) else _shown(line, _visible) for line in text.split("\n"))


def printable(text: str, newline: str = "␊") -> str:
    """Text whose parts may have been made visible already, such as an error message: hidden characters made visible.

    Like `visible`, but the symbols that stand for hidden characters stay, so a second application changes nothing.

    >>> printable("file " + visible("a\\x1b") + " of \\u202eb")
    'file a␛ of ⟨U+202E⟩b'
    """
    return newline.join(line if _is_plain(line) else _shown(line, _printable) for line in text.split("\n"))


def shown(value: object, length: int = 80) -> str:
    """A value of the caller for an error message: its `repr`, cut, without hidden characters; or its type.

    >>> shown("a"), shown([1, 2]), shown(10**400)
    ("'a'", '[1, 2]', 'an int of more than 30 digits')
    """
    if isinstance(value, int) and abs(value) >= 10**30:  # Python refuses to write more than 4,300 digits
        return "an int of more than 30 digits"
    try:
        text = visible(repr(value)[: length + 1])  # cut first: a text of megabytes is not looked at
    except Exception:  # a repr of the caller that fails would hide what is wrong
        return f"an object of type {type(value).__name__}"
    return text if len(text) <= length else f"{text[: length - 1]}…"


def brief(value: object, n_characters: int = 100) -> str:
    """A text that a stranger wrote, or the `repr` of another value, for an error: visible and cut; never in quotes.

    >>> brief("a\\x1bb"), brief("abc" * 100, 5)
    ('a␛b', 'abca…')
    """
    try:
        text = value if isinstance(value, str) else repr(value)
    except ValueError:  # an integer of more than 4,300 digits
        text = "a number of thousands of digits"
    text = visible(text[: n_characters + 1])  # cut first: a text of megabytes is not looked at
    return text if len(text) <= n_characters else f"{text[: n_characters - 1]}…"


def visible_pieces(pieces: Sequence[str], newline: str = "␊") -> list[str]:
    """`visible` of each token of a text. Whether a joiner at the start of a token stays depends on the token before it.

    >>> visible_pieces(["می", "\u200cخواهم"]) == ["می", "\u200cخواهم"]
    True
    """
    text, at, visible_tokens = "".join(pieces), 0, []
    for piece in pieces:
        if (piece.isascii() and piece.isprintable()) or (_is_plain(piece) and "⟨" not in piece):
            visible_tokens.append(piece)
        else:
            places = range(at, at + len(piece))
            visible_tokens.append("".join(newline if text[i] == "\n" else _visible(text, i) for i in places))
        at += len(piece)
    return visible_tokens


def html(text: str, newline: str = "␊") -> str:
    """`visible(text)`, escaped for HTML: safe between tags and inside quoted attributes.

    >>> html('<img src=x onerror="alert(1)">')
    '&lt;img src=x onerror=&quot;alert(1)&quot;&gt;'
    """
    return escape(visible(text, newline), quote=True)


def html_of_shown(text: str, newline: str = "␊") -> str:
    """`printable(text)`, escaped for HTML: for text whose parts were made visible already.

    >>> html_of_shown("<" + visible("\\x1b") + ">")
    '&lt;␛&gt;'
    """
    return escape(printable(text, newline), quote=True)


def number_text(value: float, digits: int = 6) -> str:
    """A number for display: at most `digits` significant digits, no trailing zeros, a true minus sign.

    >>> number_text(0.30000000000000004), number_text(-2.0), number_text(1200.0), number_text(-0.12345, 3)
    ('0.3', '−2', '1200', '−0.123')
    """
    return f"{value + 0.0:.{digits}g}".replace("-", "−")


def range_text(low: float, high: float) -> str:
    """The two ends of a scale, with three digits.

    >>> range_text(-0.5, 12.3456)
    '−0.5 to 12.3'
    """
    return f"{number_text(low, 3)} to {number_text(high, 3)}"


def size_text(n: float) -> str:
    """A number of bytes for display, with a unit.

    >>> size_text(12), size_text(1_500), size_text(3_221_225_472)
    ('12 B', '1.5 kB', '3.2 GB')
    """
    for unit in ("B", "kB", "MB"):
        if n < 1000:
            return f"{n:.0f} {unit}" if unit == "B" or n >= 100 else f"{n:.1f} {unit}"
        n /= 1000
    return f"{n:.1f} GB"


def _is_plain(line: str) -> bool:
    """Whether no character of the line needs to be replaced. Quick; it may be False although none does."""
    return line.isprintable() and (line.isascii() or not _SPECIAL.search(line))


def _shown(line: str, show: Callable[[str, int], str]) -> str:
    return "".join(show(line, at) for at in range(len(line)))


def _visible(text: str, at: int) -> str:
    if ord(text[at]) in _PICTURED or text.startswith("⟨U+", at):
        return _by_number(text[at])
    return _printable(text, at)


def _printable(text: str, at: int) -> str:
    char = text[at]
    code = ord(char)
    if code < 0x20:
        return chr(0x2400 + code)
    if code == 0x7F:
        return "␡"
    if code not in _BLANK and (char.isprintable() or char in _SPACES):
        return char
    if char in (_NON_JOINER, _JOINER) and _shapes(text, at):
        return char
    if char == _AS_EMOJI and _selects_emoji(text, at):
        return char
    flag = text.rfind(_FLAGS[0][0], max(0, at - len(_FLAGS[0]) + 1), at)
    if flag >= 0 and text.startswith(_FLAGS, flag):
        return char
    return _by_number(char)


def _by_number(char: str) -> str:
    return f"⟨U+{ord(char):04X}⟩"


def _selects_emoji(text: str, at: int) -> bool:
    """Whether the selector at `at` follows a character that it shows as an emoji."""
    before = text[at - 1] if at else ""
    return bool(before) and (
        ord(before) in _TWO_FORMS or (before in "0123456789#*" and text.startswith(_KEYCAP, at + 1))
    )


def _shapes(text: str, at: int) -> bool:
    """Whether the joiner at `at` changes the shape of its neighbors, so that it is not hidden."""
    before, after = text[at - 1 : at] if at else "", text[at + 1 : at + 2]
    if after in (_NON_JOINER, _JOINER) and after:
        return False
    if before and unicodedata.combining(before) == _VIRAMA:
        return True
    if after and unicodedata.combining(after) == _VIRAMA:
        return before.isalpha() and ord(before) not in _BLANK
    if text[at] == _JOINER and _is_picture(after) and _is_picture(_base(text, at, _SKIN_TONES)):
        return True
    sides = [_joins(_base(text, at, ())), _joins(after)]
    return all(sides) if text[at] == _NON_JOINER else any(sides)


def _base(text: str, at: int, skipped: Collection[int]) -> str:
    """The last character before index `at` that is neither a mark, a selector that stays, nor in `skipped`."""
    at -= 1
    while at >= 0 and (_is_mark(text[at], skipped) or (text[at] == _AS_EMOJI and _selects_emoji(text, at))):
        at -= 1
    return text[at] if at >= 0 else ""


def _is_mark(char: str, skipped: Collection[int]) -> bool:
    return ord(char) not in _BLANK and (unicodedata.category(char) == "Mn" or ord(char) in skipped)


def _joins(char: str) -> bool:
    if not char or ord(char) in _BLANK or unicodedata.category(char)[0] not in "LM":
        return False
    return any(ord(char) in block for block in _JOINING)


def _is_picture(char: str) -> bool:
    return bool(char) and any(ord(char) in block for block in _PICTURES)
