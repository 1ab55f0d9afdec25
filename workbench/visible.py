"""Text from a model, made safe to look at: nothing in it can hide, reorder its neighbours, or run.

Every Python view, `repr` and error message that shows text which a model or a file chose goes through here.
"""

import unicodedata
from html import escape

# Code points that draw nothing although Unicode does not call them controls: they can carry hidden text.
_BLANK = {0x034F, 0x115F, 0x1160, 0x17B4, 0x17B5, 0x2800, 0x3164, 0xFFA0}
_BLANK |= {*range(0x180B, 0x1810), *range(0xE0100, 0xE01F0)}  # variation selectors; U+FE0F stays, emoji need it


def visible(text: str, newline: str = "␊") -> str:
    r"""The same text with every control, bidi and zero-width character replaced by a form that can be seen.

    Controls become their pictures (tab ␉, escape ␛), all others their number. `newline` stands for each line feed;
    give "\n" to keep the lines.

    >>> visible("a\tb\n\u202ecod.exe\u200b")
    'a␉b␊⟨U+202E⟩cod.exe⟨U+200B⟩'
    """
    return newline.join(
        line if line.isascii() and line.isprintable() else "".join(map(_visible, line)) for line in text.split("\n")
    )


def html(text: str, newline: str = "␊") -> str:
    """`visible(text)`, escaped for HTML: safe between tags and inside quoted attributes.

    >>> html('<img src=x onerror="alert(1)">')
    '&lt;img src=x onerror=&quot;alert(1)&quot;&gt;'
    """
    return escape(visible(text, newline), quote=True)


def _visible(char: str) -> str:
    code = ord(char)
    if code < 0x20:
        return chr(0x2400 + code)
    if code == 0x7F:
        return "␡"
    if code not in _BLANK and (char.isprintable() or unicodedata.category(char) == "Zs"):
        return char
    return f"⟨U+{code:04X}⟩"
