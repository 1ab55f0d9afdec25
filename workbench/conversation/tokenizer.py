"""Text to token ids and back, for the byte-level tokenizers of gpt-oss and pocket. Knows nothing of messages."""

import codecs
import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from copy import deepcopy
from functools import cached_property
from pathlib import Path
from typing import Any

from tokenizers import AddedToken
from tokenizers import Tokenizer as _Rust

from workbench.conversation.bpe_bytes import symbol_bytes
from workbench.errors import CheckpointError, PromptError
from workbench.paths import expanded

CONTROL = re.compile(r"<\|.*\|>", re.DOTALL)  # the form of gpt-oss's control tokens, whatever the file marks as special
ROLES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
LFS_POINTER = b"version https://git-lfs"


class Tokenizer:
    """A checkpoint's own `tokenizer.json`. Text is always plain text: no text, whatever it says, gives a control token.

    Control tokens are the added tokens that the file marks as special, and those of the form `<|…|>`. Other added
    tokens are ordinary words that a text may hold, and are found in it as the package tokenizers finds them.

    >>> t = Tokenizer.from_folder("data/pocket")
    >>> t.encode("What is 7+8?")
    [286, 289, 220, 22, 10, 23, 30]
    >>> t.str_tokens([423, 258, 425, 286, 289, 30, 424])
    ['<|start|>', 'user', '<|message|>', 'What', ' is', '?', '<|end|>']

    `special` maps the control tokens' text to their ids, `digest` is the sha256 of `tokenizer.json`. `roles` are the
    texts that tokenizer_config.json gives to bos_token, eos_token and so on, which chat templates may use.
    """

    def __init__(
        self, tokenizer_json: bytes, origin: str = "tokenizer.json", *, roles: Mapping[str, str] | None = None
    ):
        """Raises CheckpointError, naming `origin`, if the bytes are no tokenizer."""
        refuse_lfs_pointer(tokenizer_json, origin)
        try:
            self._rust = _Rust.from_buffer(tokenizer_json)
        except Exception as error:  # the Rust side raises bare Exception
            raise CheckpointError(
                f"{origin} cannot be read as a tokenizer ({error}). Copy it again from the checkpoint."
            ) from error
        self.digest: str = hashlib.sha256(tokenizer_json).hexdigest()
        self._rust.no_truncation()  # a file may ask for either; both would change what was said
        self._rust.no_padding()
        self.roles: Mapping[str, str] = dict(roles or {})
        added = dict(sorted(self._rust.get_added_tokens_decoder().items()))
        control = {i: token for i, token in added.items() if token.special or CONTROL.fullmatch(token.content)}
        unmarked = [token.content for token in control.values() if not token.special]
        if unmarked:
            self._rust.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in unmarked])
        self._rust.encode_special_tokens = True  # as text, that is: text is not searched for special tokens
        self.special: dict[str, int] = {token.content: i for i, token in control.items()}
        self._control: dict[int, str] = {i: text for text, i in self.special.items()}
        self._added: dict[int, str] = {i: token.content for i, token in added.items() if i not in control}

    @classmethod
    def from_folder(cls, folder: str | Path) -> "Tokenizer":
        """The tokenizer of the checkpoint in `folder`; nothing is downloaded.

        Raises CheckpointError if `tokenizer.json` is missing, or a file cannot be read.
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
        return cls(data, str(path), roles=token_roles(Path(folder)))

    def encode(self, text: str) -> list[int]:
        """The ids of `text` as plain text: `decode(encode(text)) == text`, and none of them is a control token.

        (A file may add tokens that take the spaces beside them, or change letters before it looks for tokens. Then the
        ids are those that the package tokenizers gives, and decoding them gives another text.)

        Raises PromptError for text that is not valid Unicode (a lone surrogate).
        """
        return self._rust.encode(valid(text), add_special_tokens=False).ids

    def split(self, text: str) -> list[str | int]:
        """The control tokens that stand in `text`, as ids, and the pieces of text around them.

        For text that a chat template wrote: there `<|end|>` is the control token. A control token takes the spaces
        beside it where tokenizer.json says so.

        >>> Tokenizer.from_folder("data/pocket").split("<|start|>user")
        [423, 'user']
        """
        encoded = self._marking.encode(valid(text), add_special_tokens=False)
        parts: list[str | int] = []
        end = 0
        for token, (start, stop) in zip(encoded.ids, encoded.offsets, strict=True):
            if token in self._control:
                parts += [text[end:start], token]
                end = stop
        return [part for part in (*parts, text[end:]) if part != ""]

    def respelled(self, ids: Iterable[int]) -> list[int]:
        """`ids` with the text between control tokens encoded anew, for ids that another tokenizer made.

        openai-harmony knows none of the tokens that a fine-tune has added to gpt-oss's own.
        """
        ids = list(ids)
        if not self._added:
            return ids
        made: list[int] = []
        text: list[int] = []
        for token in ids:
            if token in self._control:
                made += [*self.encode(self.decode(text)), token]
                text = []
            else:
                text.append(token)
        return made + self.encode(self.decode(text))

    def decode(self, ids: Iterable[int]) -> str:
        """The text of `ids`, control tokens by their names; bytes that are not UTF-8 are U+FFFD."""
        return "".join(self.str_tokens(ids))

    def str_tokens(self, ids: Iterable[int]) -> list[str]:
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

    @property
    def symbols(self) -> dict[str, int]:
        """The ordinary vocabulary: byte-level symbols and their ids, without control tokens."""
        return self._rust.get_vocab(with_added_tokens=False)

    def __len__(self) -> int:
        """One more than the largest id that has an entry."""
        return 1 + max([*self._control, *self._added, *self._table])

    def __repr__(self) -> str:
        return f"Tokenizer({len(self):,} ids, {self.digest[:8]})"

    @cached_property
    def _table(self) -> dict[int, str]:
        return {i: symbol for symbol, i in self.symbols.items()}

    @cached_property
    def _marking(self) -> _Rust:
        """The same tokenizer, but one that finds control tokens in a text."""
        other = deepcopy(self._rust)
        other.encode_special_tokens = False
        return other

    def _bytes(self, token: int) -> bytes | None:
        """The bytes an ordinary token stands for; None for control tokens and ids without an entry."""
        if token in self._added:
            return self._added[token].encode()
        symbol = None if token in self._control else self._table.get(token)
        return None if symbol is None else symbol_bytes(symbol)


def token_roles(folder: Path) -> dict[str, str]:
    """The text of bos_token, eos_token and so on, as tokenizer_config.json and special_tokens_map.json name them.

    The second is read as transformers reads it: only where the first does not list the added tokens.

    >>> token_roles(Path("data/pocket"))["bos_token"]
    '<|startoftext|>'
    """
    config = read_settings(folder / "tokenizer_config.json")
    if "added_tokens_decoder" not in config:
        config |= read_settings(folder / "special_tokens_map.json")
    roles = {}
    for role in ROLES:
        value = config.get(role)
        text = value.get("content") if isinstance(value, dict) else value  # a token with its settings, or its text
        if text is not None and not isinstance(text, str):
            raise CheckpointError(f"{folder / 'tokenizer_config.json'}: {role} must be text, it is {value!r}.")
        if text is not None:
            roles[role] = text
    return roles


def read_settings(path: Path) -> dict[str, Any]:
    """A JSON object beside tokenizer.json; {} if there is no such file."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    refuse_lfs_pointer(data, str(path))
    try:
        value = json.loads(data)
    except ValueError as error:
        raise CheckpointError(f"{path} cannot be read as JSON: {error}. Copy it again from the checkpoint.") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} holds a JSON {type(value).__name__}, not an object.")
    return value


def refuse_lfs_pointer(data: bytes, origin: str) -> None:
    """CheckpointError if git-lfs has left a note in place of the file's content."""
    if data.startswith(LFS_POINTER):
        raise CheckpointError(f"{origin} is git-lfs's pointer to the file, not the file. Run: git lfs pull")


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
