"""Encodes text to token ids and back, for the byte-level tokenizers of gpt-oss and pocket. Independent of messages."""

import codecs
import hashlib
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from functools import cached_property
from pathlib import Path
from typing import Any

from tokenizers import AddedToken
from tokenizers import Tokenizer as _Rust

from workbench.conversation.bpe_bytes import symbol_bytes
from workbench.errors import CheckpointError, PromptError, WorkbenchError
from workbench.paths import expanded
from workbench.text import visible
from workbench.untrusted import parse_json, read_bytes, read_text

CONTROL = re.compile(
    r"<\|.*\|>", re.DOTALL
)  # the pattern of gpt-oss's control tokens, also if the file does not mark them as special
ROLES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
LFS_POINTER = b"version https://git-lfs"
MAX_VALUES = 5_000_000  # in tokenizer.json, about; gpt-oss's has 1.5 million
MAX_ROLE_CHARACTERS = 1000
SHOWN = 30  # characters of a text in an error
# In a regular expression: what is escaped, a class of characters, and a group that may repeat any number of times.
_ESCAPED_OR_CLASS = re.compile(r"\\.|\[\^?\]?(?:\\.|[^\]\\])*\]", re.DOTALL)
_REPEATED_GROUP = re.compile(r"\)(?:[*+]|\{\d*,)")


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
        if sum(map(tokenizer_json.count, (b",", b"[", b"{"))) > MAX_VALUES:
            raise CheckpointError(f"{origin} has more than {MAX_VALUES:,} values, which no tokenizer needs")
        with _typed_panics(
            lambda error: CheckpointError(
                f"{origin} cannot be read as a tokenizer ({error}). Copy it again from the checkpoint."
            )
        ):
            self._rust = _Rust.from_buffer(tokenizer_json)
            _refuse_slow_patterns(self._rust, origin)
            self._rust.no_truncation()  # a file may enable either; both would change the text
            self._rust.no_padding()
            added = dict(sorted(self._rust.get_added_tokens_decoder().items()))
            control = {i: token for i, token in added.items() if token.special or CONTROL.fullmatch(token.content)}
            unmarked = [token.content for token in control.values() if not token.special]
            if unmarked:
                self._rust.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in unmarked])
            self._rust.encode_special_tokens = True  # as plain text: special tokens are not matched
        self.digest: str = hashlib.sha256(tokenizer_json).hexdigest()
        self.roles: Mapping[str, str] = dict(roles or {})
        self.special: dict[str, int] = {token.content: i for i, token in control.items()}
        self._control: dict[int, str] = {i: text for text, i in self.special.items()}
        self._added: dict[int, str] = {i: token.content for i, token in added.items() if i not in control}
        self._known_bytes: dict[int, bytes] = {}  # of tokens that were decoded before

    @classmethod
    def from_folder(cls, folder: str | Path) -> "Tokenizer":
        """The tokenizer of the checkpoint in `folder`; nothing is downloaded.

        Raises CheckpointError if `tokenizer.json` is missing or a file cannot be read.
        """
        path = expanded(folder) / "tokenizer.json"
        if not os.path.lexists(path):
            raise CheckpointError(
                f"there is no tokenizer.json in {str(folder)!r}. Copy it from the checkpoint: it is beside config.json."
            )
        return cls(read_bytes(path, CheckpointError), str(path), roles=token_roles(path.parent))

    def encode(self, text: str) -> list[int]:
        """The ids of `text` as plain text: `decode(encode(text)) == text`, and none of them is a control token.

        Raises PromptError for text that is not valid Unicode (a lone surrogate), and CheckpointError if the tokenizer
        changes the text: tokenizer.json may normalize it, drop what is not in the vocabulary, or add tokens that
        include the spaces beside them.
        """
        ids = self._encoded(self._rust, text).ids
        if b"".join(
            [self._bytes(token) or b"" for token in ids]
        ) != text.encode() or not self._control.keys().isdisjoint(ids):
            raise self._changes(text, self.decode(ids))
        return ids

    def control_spans(self, text: str) -> list[tuple[int, int, int]]:
        """The control tokens in `text`, in order: the id of each, and the characters `start:stop` that it takes.

        A control token takes the spaces beside it if tokenizer.json says so.

        >>> Tokenizer.from_folder("data/pocket").control_spans("<|start|>user")
        [(423, 0, 9)]

        Raises CheckpointError if tokenizer.json finds a control token where its text is not.
        """
        encoded = self._encoded(self._marking, text)
        spans: list[tuple[int, int, int]] = []
        end = 0
        for token, (start, stop) in zip(encoded.ids, encoded.offsets, strict=True):
            if token in self._control:
                if start < end or text[start:stop].strip() != self._control[token].strip():
                    raise self._changes(text[start:stop], self._control[token])
                spans.append((token, start, stop))
                end = stop
        return spans

    def split(self, text: str) -> list[str | int]:
        """The control tokens in `text`, as ids, and the pieces of text around them.

        For text rendered by a chat template, in which `<|end|>` is the control token.

        >>> Tokenizer.from_folder("data/pocket").split("<|start|>user")
        [423, 'user']
        """
        parts: list[str | int] = []
        end = 0
        for token, start, stop in self.control_spans(text):
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
        if (known := self._known_bytes.get(token)) is not None:
            return known
        if token in self._added:
            raw = self._added[token].encode()
        else:
            symbol = None if token in self._control else self._table.get(token)
            if symbol is None:
                return None
            raw = symbol_bytes(symbol)
        self._known_bytes[token] = raw
        return raw

    def _encoded(self, rust: _Rust, text: str) -> Any:
        valid_unicode(text)
        with _typed_panics(lambda error: CheckpointError(f"the tokenizer cannot encode this text: {error}")):
            return rust.encode(text, add_special_tokens=False)

    def _changes(self, text: str, encoded: str) -> CheckpointError:
        """The error for a text that is another one once it is encoded."""
        pairs = enumerate(zip(text, encoded, strict=False))
        at = next((at for at, (one, other) in pairs if one != other), min(len(text), len(encoded)))
        there, instead = (repr(visible(each[at : at + SHOWN])) for each in (text, encoded))
        return CheckpointError(
            f"the tokenizer changes the text: at character {at} it is {there}, and encoded {instead}. "
            "tokenizer.json must encode every text unchanged; copy it again from the checkpoint, or pass token ids."
        )


@contextmanager
def _typed_panics(typed: Callable[[str], WorkbenchError]) -> Iterator[None]:
    """Turns every error of the block into one of ours; a panic of Rust is not even an Exception."""
    try:
        yield
    except (WorkbenchError, KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as error:
        raise typed(visible(str(error))[:200]) from None


def _refuse_slow_patterns(rust: _Rust, origin: str) -> None:
    """Raises CheckpointError for a regular expression with a repeated group, such as `(a+)+`.

    On some texts it takes exponential time, in native code that nothing can stop. Tokenizers of this kind split a text
    by patterns without any.
    """
    for part in (rust.normalizer, rust.pre_tokenizer):
        if part is None:
            continue
        for pattern in _patterns(json.loads(part.__getstate__())):
            if _REPEATED_GROUP.search(_ESCAPED_OR_CLASS.sub("", pattern)):
                raise CheckpointError(
                    f"{origin} splits or replaces text by the pattern {visible(pattern)[:100]!r}, "
                    "whose repeated group may take exponential time. Copy the file again from the checkpoint."
                )


def _patterns(part: Any) -> Iterator[str]:
    """The regular expressions in a part of tokenizer.json."""
    if isinstance(part, dict):
        if isinstance(pattern := part.get("Regex"), str):
            yield pattern
        part = list(part.values())
    if isinstance(part, list):
        for each in part:
            yield from _patterns(each)


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
            raise CheckpointError(f"{folder / 'tokenizer_config.json'}: {role} must be text, got {repr(value)[:200]}.")
        if text is not None and len(text) > MAX_ROLE_CHARACTERS:
            raise CheckpointError(
                f"{folder / 'tokenizer_config.json'}: {role} has {len(text):,} characters, which no token has."
            )
        if text is not None:
            roles[role] = text
    return roles


def read_settings(path: Path) -> dict[str, Any]:
    """The JSON object in a settings file; {} if there is no such file."""
    if not os.path.lexists(path):
        return {}
    text = read_text(path, CheckpointError)
    refuse_lfs_pointer(text.encode(), str(path))
    value = parse_json(text, str(path), CheckpointError)
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
