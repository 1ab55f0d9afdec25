"""Makes text from a model safe to show: no character is hidden, reorders others, or runs as code.

Every Python view, `repr` and error message uses this module for text from a model or a file, and for numbers and sizes.
"""

import unicodedata
from collections.abc import Collection, Sequence
from html import escape

# Code points that are invisible, although Unicode does not class them as controls. They can carry hidden text.
_BLANK = {0x034F, 0x115F, 0x1160, 0x17B4, 0x17B5, 0x2800, 0x3164, 0xFFA0}
_BLANK |= {*range(0x180B, 0x1810), *range(0xE0100, 0xE01F0)}  # variation selectors; not U+FE0F, which emoji need


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
_AFTER_PICTURE = {0xFE0F, *range(0x1F3FB, 0x1F400)}  # shown as emoji, skin tones
# The three flags that are encoded as a black flag followed by tags: England, Scotland, Wales (emoji-sequences.txt).
_FLAGS = tuple(
    "\U0001f3f4" + "".join(chr(0xE0000 + ord(c)) for c in name + "\x7f") for name in ("gbeng", "gbsct", "gbwls")
)
_NON_JOINER, _JOINER = "\u200c", "\u200d"
_VIRAMA = 9  # the combining class of the sign that removes the vowel of an Indic letter


def visible(text: str, newline: str = "␊") -> str:
    r"""The text with every control, bidi and zero-width character replaced by visible characters.

    Controls become the symbols that Unicode has for them (tab ␉, escape ␛), all others their code point. `newline`
    replaces each line feed; pass "\n" to keep the lines. A joiner stays where it shapes letters or emoji, and is made
    visible elsewhere.

    >>> visible("a\tb\n\u202ecod.exe\u200b")
    'a␉b␊⟨U+202E⟩cod.exe⟨U+200B⟩'
    >>> visible("a\u200db") == "a⟨U+200D⟩b", visible("می\u200cخواهم") == "می\u200cخواهم"
    (True, True)
    """
    return newline.join(
        line if line.isascii() and line.isprintable() else "".join(_visible(line, at) for at in range(len(line)))
        for line in text.split("\n")
    )


def shown(value: object, length: int = 80) -> str:
    """A value of the caller for an error message: its `repr`, cut, without hidden characters; or its type.

    >>> shown("a"), shown([1, 2]), shown(10**400)
    ("'a'", '[1, 2]', 'an int of more than 30 digits')
    """
    if isinstance(value, int) and abs(value) >= 10**30:  # Python refuses to write more than 4,300 digits
        return "an int of more than 30 digits"
    try:
        text = visible(repr(value))
    except Exception:  # a repr of the caller that fails would hide what is wrong
        return f"an object of type {type(value).__name__}"
    return text if len(text) <= length else f"{text[: length - 1]}…"


def visible_pieces(pieces: Sequence[str], newline: str = "␊") -> list[str]:
    """`visible` of each token of a text. Whether a joiner at the start of a token stays depends on the token before it.

    >>> visible_pieces(["می", "\u200cخواهم"]) == ["می", "\u200cخواهم"]
    True
    """
    text, at, visible_tokens = "".join(pieces), 0, []
    for piece in pieces:
        if piece.isascii() and piece.isprintable():
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


def _visible(text: str, at: int) -> str:
    char = text[at]
    code = ord(char)
    if code < 0x20:
        return chr(0x2400 + code)
    if code == 0x7F:
        return "␡"
    if code not in _BLANK and (char.isprintable() or unicodedata.category(char) == "Zs"):
        return char
    if char in (_NON_JOINER, _JOINER) and _shapes(text, at):
        return char
    flag = text.rfind(_FLAGS[0][0], max(0, at - len(_FLAGS[0]) + 1), at)
    if flag >= 0 and text.startswith(_FLAGS, flag):
        return char
    return f"⟨U+{code:04X}⟩"


def _shapes(text: str, at: int) -> bool:
    """Whether the joiner at `at` changes the shape of its neighbors, so that it is not hidden."""
    before, after = text[at - 1 : at] if at else "", text[at + 1 : at + 2]
    if after in (_NON_JOINER, _JOINER) and after:
        return False
    if before and unicodedata.combining(before) == _VIRAMA:
        return True
    if after and unicodedata.combining(after) == _VIRAMA:
        return before.isalpha() and ord(before) not in _BLANK
    if text[at] == _JOINER and _is_picture(_base(text, at, _AFTER_PICTURE)) and _is_picture(after):
        return True
    sides = [_joins(_base(text, at, ())), _joins(after)]
    return all(sides) if text[at] == _NON_JOINER else any(sides)


def _base(text: str, at: int, skipped: Collection[int]) -> str:
    """The last character before index `at` that is neither a mark nor in `skipped`."""
    at -= 1
    while at >= 0 and _is_mark(text[at], skipped):
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
