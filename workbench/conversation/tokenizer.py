"""Encodes text to token ids and back, for the byte-level tokenizers of gpt-oss and pocket. Independent of messages."""

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

CONTROL = re.compile(
    r"<\|.*\|>", re.DOTALL
)  # the pattern of gpt-oss's control tokens, also if the file does not mark them as special
ROLES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
LFS_POINTER = b"version https://git-lfs"


class Tokenizer:
    """The tokenizer of a checkpoint's `tokenizer.json`. Encoding a text never gives a control token, whatever the text.

    Control tokens are the added tokens that the file marks as special, and those of the form `<|…|>`. Other added
    tokens are ordinary words of a text, and are matched as in the package tokenizers.

    >>> t = Tokenizer.from_folder("data/pocket")
    >>> t.encode("What is 7+8?")
    [286, 289, 220, 22, 10, 23, 30]
    >>> t.str_tokens([423, 258, 425, 286, 289, 30, 424])
    ['<|start|>', 'user', '<|message|>', 'What', ' is', '?', '<|end|>']

    `special` maps the text of each control token to its id. `digest` is the sha256 of `tokenizer.json`. `roles` maps
    bos_token, eos_token and so on to their text in tokenizer_config.json, for chat templates.
    """

    def __init__(
        self, tokenizer_json: bytes, origin: str = "tokenizer.json", *, roles: Mapping[str, str] | None = None
    ):
        """Raises CheckpointError, with `origin` as the file's name, if the bytes are not a tokenizer."""
        refuse_lfs_pointer(tokenizer_json, origin)
        try:
            self._rust = _Rust.from_buffer(tokenizer_json)
        except Exception as error:  # the Rust side raises bare Exception
            raise CheckpointError(
                f"{origin} cannot be read as a tokenizer ({error}). Copy it again from the checkpoint."
            ) from error
        self.digest: str = hashlib.sha256(tokenizer_json).hexdigest()
        self._rust.no_truncation()  # a file may enable either; both would change the text
        self._rust.no_padding()
        self.roles: Mapping[str, str] = dict(roles or {})
        added = dict(sorted(self._rust.get_added_tokens_decoder().items()))
        control = {i: token for i, token in added.items() if token.special or CONTROL.fullmatch(token.content)}
        unmarked = [token.content for token in control.values() if not token.special]
        if unmarked:
            self._rust.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in unmarked])
        self._rust.encode_special_tokens = True  # as plain text: special tokens are not matched
        self.special: dict[str, int] = {token.content: i for i, token in control.items()}
        self._control: dict[int, str] = {i: text for text, i in self.special.items()}
        self._added: dict[int, str] = {i: token.content for i, token in added.items() if i not in control}

    @classmethod
    def from_folder(cls, folder: str | Path) -> "Tokenizer":
        """The tokenizer of the checkpoint in `folder`; nothing is downloaded.

        Raises CheckpointError if `tokenizer.json` is missing or a file cannot be read.
        """
        path = expanded(folder) / "tokenizer.json"
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            raise CheckpointError(
                f"there is no tokenizer.json in {str(folder)!r}. Copy it from the checkpoint: it is beside config.json."
            ) from None
        except OSError as error:
            raise CheckpointError(f"{path} cannot be read: {error}") from error
        return cls(data, str(path), roles=token_roles(Path(folder)))

    def encode(self, text: str) -> list[int]:
        """The ids of `text` as plain text: `decode(encode(text)) == text`, and none of them is a control token.

        (A file may add tokens that include the spaces beside them, or normalize the text before matching tokens. Then
        the ids are those of the package tokenizers, and decoding them gives a different text.)

        Raises PromptError for text that is not valid Unicode (a lone surrogate).
        """
        return self._rust.encode(valid_unicode(text), add_special_tokens=False).ids

    def split(self, text: str) -> list[str | int]:
        """The control tokens in `text`, as ids, and the pieces of text around them.

        For text rendered by a chat template, in which `<|end|>` is the control token. A control token includes the
        spaces beside it if tokenizer.json says so.

        >>> Tokenizer.from_folder("data/pocket").split("<|start|>user")
        [423, 'user']
        """
        encoded = self._marking.encode(valid_unicode(text), add_special_tokens=False)
        parts: list[str | int] = []
        end = 0
        for token, (start, stop) in zip(encoded.ids, encoded.offsets, strict=True):
            if token in self._control:
                parts += [text[end:start], token]
                end = stop
        return [part for part in (*parts, text[end:]) if part != ""]

    def reencoded(self, ids: Iterable[int]) -> list[int]:
        """`ids` of another tokenizer with the text between control tokens encoded by this one.

        openai-harmony does not have the tokens that a fine-tune has added to gpt-oss's own.
        """
        ids = list(ids)
        if not self._added:
            return ids
        encoded: list[int] = []
        text_ids: list[int] = []
        for token in ids:
            if token in self._control:
                encoded += [*self.encode(self.decode(text_ids)), token]
                text_ids = []
            else:
                text_ids.append(token)
        return encoded + self.encode(self.decode(text_ids))

    def decode(self, ids: Iterable[int]) -> str:
        """The text of `ids`, including that of control tokens; bytes that are not UTF-8 become U+FFFD."""
        return "".join(self.str_tokens(ids))

    def str_tokens(self, ids: Iterable[int]) -> list[str]:
        """The text of each token; joined, they equal `decode(ids)`.

        If the bytes of a character are spread over several tokens, the last of them has the character and the others
        are "". Bytes that are not UTF-8 become U+FFFD, at the token that makes them invalid. An id without an entry in
        the vocabulary (gpt-oss has 201,088 rows and 200,019 entries) is `<|reserved_ID|>`.
        """
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        pieces: list[str] = []
        for token in ids:
            raw = self._bytes(token)
            if raw is None:  # not an ordinary token: pending bytes before it will never become a character
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
        """One more than the largest id with an entry."""
        return 1 + max([*self._control, *self._added, *self._table])

    def __repr__(self) -> str:
        return f"Tokenizer({len(self):,} ids, {self.digest[:8]})"

    @cached_property
    def _table(self) -> dict[int, str]:
        return {i: symbol for symbol, i in self.symbols.items()}

    @cached_property
    def _marking(self) -> _Rust:
        """A copy of the tokenizer that matches control tokens in a text."""
        marking = deepcopy(self._rust)
        marking.encode_special_tokens = False
        return marking

    def _bytes(self, token: int) -> bytes | None:
        """The bytes of an ordinary token; None for control tokens and ids without an entry."""
        if token in self._added:
            return self._added[token].encode()
        symbol = None if token in self._control else self._table.get(token)
        return None if symbol is None else symbol_bytes(symbol)


def token_roles(folder: Path) -> dict[str, str]:
    """The text of bos_token, eos_token and so on, from tokenizer_config.json and special_tokens_map.json.

    As in transformers, the second file is read only if the first does not list the added tokens.

    >>> token_roles(Path("data/pocket"))["bos_token"]
    '<|startoftext|>'
    """
    config = read_settings(folder / "tokenizer_config.json")
    if "added_tokens_decoder" not in config:
        config |= read_settings(folder / "special_tokens_map.json")
    roles = {}
    for role in ROLES:
        value = config.get(role)
        text = value.get("content") if isinstance(value, dict) else value  # an object with settings, or only the text
        if text is not None and not isinstance(text, str):
            raise CheckpointError(f"{folder / 'tokenizer_config.json'}: {role} must be text, got {value!r}.")
        if text is not None:
            roles[role] = text
    return roles


def read_settings(path: Path) -> dict[str, Any]:
    """The JSON object in a settings file; {} if there is no such file."""
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
        raise CheckpointError(
            f"{path} must contain a JSON object, got {type(value).__name__}. Copy it again from the checkpoint."
        )
    return value


def refuse_lfs_pointer(data: bytes, origin: str) -> None:
    """Raises CheckpointError if the data is a git-lfs pointer instead of the file's content."""
    if data.startswith(LFS_POINTER):
        raise CheckpointError(f"{origin} is git-lfs's pointer to the file, not the file itself. Run: git lfs pull")


def valid_unicode(text: str) -> str:
    """`text` itself. Raises PromptError if it contains a lone surrogate, which cannot be encoded."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise PromptError(
            f"the text is not valid Unicode: {error.reason} at character {error.start}. "
            'Read it with errors="replace", or remove that character.'
        ) from None
    return text
