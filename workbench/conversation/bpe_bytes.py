"""The bytes of the symbols of a byte-level BPE vocabulary (GPT-2's table). Independent of any tokenizer."""

from collections.abc import Sequence


def symbol_bytes(symbol: str) -> bytes:
    """The bytes of a symbol of a byte-level BPE vocabulary.

    >>> symbol_bytes("Ġcarry"), symbol_bytes("ðŁĺ")
    (b' carry', b'\\xf0\\x9f\\x98')
    """
    try:
        return bytes([_BYTE[c] for c in symbol])
    except KeyError:  # not a byte-level symbol: its bytes are its text in UTF-8
        return symbol.encode("utf-8", "replace")


def _byte_symbols(printable: Sequence[range]) -> dict[str, int]:
    """GPT-2's table: a printable byte is its own symbol; the others are, in order, the characters from U+0100 up."""
    unchanged = [b for r in printable for b in r]
    shifted = [b for b in range(256) if b not in unchanged]
    return {chr(b): b for b in unchanged} | {chr(256 + n): b for n, b in enumerate(shifted)}


_BYTE = _byte_symbols([range(0x21, 0x7F), range(0xA1, 0xAD), range(0xAE, 0x100)])
