"""The bytes behind the symbols of a byte-level BPE vocabulary (GPT-2's table). Knows no tokenizer."""

from collections.abc import Sequence


def symbol_bytes(symbol: str) -> bytes:
    """The bytes that a symbol of a byte-level BPE stands for.

    >>> symbol_bytes("Ġcarry"), symbol_bytes("ðŁĺ")
    (b' carry', b'\\xf0\\x9f\\x98')
    """
    try:
        return bytes([_BYTE[c] for c in symbol])
    except KeyError:  # not byte-level: the symbol is its own text
        return symbol.encode("utf-8", "replace")


def _byte_symbols(printable: Sequence[range]) -> dict[str, int]:
    """GPT-2's table: printable bytes are themselves, the others are moved up from U+0100 in order."""
    kept = [b for r in printable for b in r]
    moved = [b for b in range(256) if b not in kept]
    return {chr(b): b for b in kept} | {chr(256 + n): b for n, b in enumerate(moved)}


_BYTE = _byte_symbols([range(0x21, 0x7F), range(0xA1, 0xAD), range(0xAE, 0x100)])
