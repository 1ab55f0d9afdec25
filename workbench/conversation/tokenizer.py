"""Text to token ids and back, for the byte-level tokenizers of gpt-oss and pocket. Knows nothing of messages."""

import codecs
import hashlib
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path

from tokenizers import AddedToken
from tokenizers import Tokenizer as _Rust

from workbench.errors import CheckpointError, PromptError
from workbench.paths import expanded

GPT_OSS_DIGEST = "0614fe83cadab421296e664e1f48f4261fa8fef6e03e63bb75c20f38e37d07d3"  # as published, both sizes


class Tokenizer:
    """A checkpoint's own `tokenizer.json`. Text is always plain text: no text, whatever it says, gives a control token.

    >>> t = Tokenizer.from_folder("data/pocket")
    >>> t.encode("What is 7+8?")
    [286, 289, 220, 22, 10, 23, 30]
    >>> t.pieces([423, 258, 425, 286, 289, 30, 424])
    ['<|start|>', 'user', '<|message|>', 'What', ' is', '?', '<|end|>']

    `special` maps the control tokens' text to their ids, `digest` is the sha256 of `tokenizer.json`.
    """

    def __init__(self, tokenizer_json: bytes, origin: str = "tokenizer.json"):
        """Raises CheckpointError, naming `origin`, if the bytes are no tokenizer."""
        try:
            self._rust = _Rust.from_buffer(tokenizer_json)
        except Exception as error:  # the Rust side raises bare Exception
            raise CheckpointError(
                f"{origin} cannot be read as a tokenizer ({error}). Copy it again from the checkpoint."
            ) from error
        self.digest: str = hashlib.sha256(tokenizer_json).hexdigest()
        self._rust.no_truncation()  # a file may ask for either; both would change what was said
        self._rust.no_padding()
        added = self._rust.get_added_tokens_decoder()
        # Text is matched against added tokens unless they are marked special AND special tokens are to be encoded.
        self._rust.add_special_tokens([AddedToken(t.content, special=True, normalized=False) for t in added.values()])
        self._rust.encode_special_tokens = True
        self.special: dict[str, int] = {token.content: i for i, token in sorted(added.items())}
        self._control: dict[int, str] = {i: name for name, i in self.special.items()}

    @classmethod
    def from_folder(cls, folder: str | Path) -> "Tokenizer":
        """The tokenizer of the checkpoint in `folder`; nothing is downloaded.

        Raises CheckpointError if `tokenizer.json` is missing or cannot be read.
        """
        path = expanded(folder) / "tokenizer.json"
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            raise CheckpointError(
                f"there is no tokenizer.json in {str(folder)!r}. A checkpoint keeps it beside config.json."
            ) from None
        except OSError as error:
            raise CheckpointError(f"{path} cannot be read: {error}") from error
        return cls(data, str(path))

    def encode(self, text: str) -> list[int]:
        """The ids of `text` as plain text: `decode(encode(text)) == text`, and none of them is a control token.

        Raises PromptError for text that is not valid Unicode (a lone surrogate).
        """
        return self._rust.encode(valid(text), add_special_tokens=False).ids

    def decode(self, ids: Iterable[int]) -> str:
        """The text of `ids`, control tokens by their names; bytes that are not UTF-8 are U+FFFD."""
        return "".join(self.pieces(ids))

    def pieces(self, ids: Iterable[int]) -> list[str]:
        """The text of each token; joined they are exactly `decode(ids)`.

        A character whose bytes are spread over several tokens stands on the last of them, the others are "".
        Bytes that are not UTF-8 are U+FFFD, on the token where that shows. An id without an entry in the table
        (gpt-oss has 201,088 rows and 200,019 names) is `<|reserved_ID|>`.
        """
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        pieces: list[str] = []
        for token in ids:
            raw = self._bytes(token)
            if raw is None:  # a control token: whatever is pending before it will never be completed
                if pieces:
                    pieces[-1] += decoder.decode(b"", final=True)
                pieces.append(self._control.get(token) or f"<|reserved_{token}|>")
                decoder.reset()
            else:
                pieces.append(decoder.decode(raw))
        if pieces:
            pieces[-1] += decoder.decode(b"", final=True)
        return pieces

    @cached_property
    def is_o200k(self) -> bool:
        """Whether this is o200k_harmony, gpt-oss's own vocabulary, id for id."""
        if self.digest == GPT_OSS_DIGEST:
            return True
        from workbench.conversation.vocabulary import is_o200k_base  # the same table, saved by another writer

        return self.special.get("<|start|>") == 200006 and is_o200k_base(self.symbols)

    @property
    def symbols(self) -> dict[str, int]:
        """The ordinary vocabulary: byte-level symbols and their ids, without control tokens."""
        return self._rust.get_vocab(with_added_tokens=False)

    def __len__(self) -> int:
        """One more than the largest id that has an entry."""
        return 1 + max([*self._control, *self._table])

    def __repr__(self) -> str:
        return f"Tokenizer({len(self):,} ids, {self.digest[:8]})"

    @cached_property
    def _table(self) -> dict[int, str]:
        return {i: symbol for symbol, i in self.symbols.items()}

    def _bytes(self, token: int) -> bytes | None:
        """The bytes an ordinary token stands for; None for control tokens and ids without an entry."""
        symbol = None if token in self._control else self._table.get(token)
        return None if symbol is None else symbol_bytes(symbol)


def symbol_bytes(symbol: str) -> bytes:
    """The bytes that a symbol of a byte-level BPE stands for.

    >>> symbol_bytes("Ġcarry"), symbol_bytes("ðŁĺ")
    (b' carry', b'\\xf0\\x9f\\x98')
    """
    try:
        return bytes([_BYTE[c] for c in symbol])
    except KeyError:  # not byte-level: the symbol is its own text
        return symbol.encode("utf-8", "replace")


def valid(text: str) -> str:
    """`text` itself. Raises PromptError if it holds a lone surrogate, which no encoding can carry."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise PromptError(
            f"the text is not valid Unicode: {error.reason} at character {error.start}. "
            'Read it with errors="replace", or remove that character.'
        ) from None
    return text


def _byte_symbols(printable: Sequence[range]) -> dict[str, int]:
    """GPT-2's table: printable bytes are themselves, the others are moved up from U+0100 in order."""
    kept = [b for r in printable for b in r]
    moved = [b for b in range(256) if b not in kept]
    return {chr(b): b for b in kept} | {chr(256 + n): b for n, b in enumerate(moved)}


_BYTE = _byte_symbols([range(0x21, 0x7F), range(0xA1, 0xAD), range(0xAE, 0x100)])
