"""What a model of another library reads: token ids of a question, a chat or a text, and the text of each token."""

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from workbench.conversation.chat import Chat, as_chat
from workbench.conversation.render import render
from workbench.conversation.tokenizer import Tokenizer
from workbench.errors import PromptError
from workbench.paths import expanded
from workbench.recording.source import Reader
from workbench.traces import Trace


class Foreign:
    """A tokenizer of transformers as a Reader."""

    def __init__(self, tokenizer: Any):
        self.tokenizer = tokenizer
        rust = getattr(tokenizer, "backend_tokenizer", None)
        said = rust.to_str() if rust is not None else repr(sorted(tokenizer.get_vocab().items()))
        self.digest: str = hashlib.sha256(said.encode()).hexdigest()

    def encode(self, text: str) -> list[int]:
        """As the tokenizer does it for a model: with a first token of its own, if it adds one."""
        return list(self.tokenizer(text)["input_ids"])

    def str_tokens(self, ids: Iterable[int]) -> list[str]:
        """The text of each token; joined they are the whole text. A character stands on the last of its tokens."""
        ids = [int(i) for i in ids]
        pieces: list[str] = []
        start, said = 0, ""  # a window that begins where a character does, and its text so far
        for end in range(1, len(ids) + 1):
            text = self.tokenizer.decode(ids[start:end], skip_special_tokens=False, clean_up_tokenization_spaces=False)
            whole = not text.endswith("�") or end == len(ids)
            pieces.append(text[len(said) :] if whole and text.startswith(said) else "")
            if whole:
                said = text
                if end - start > 16:
                    start = end - 1
                    one = ids[start:end]
                    said = self.tokenizer.decode(one, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return pieces


def reader_of(given: Any, folder: Path | None, is_gpt_oss: bool) -> Reader | None:
    """A Reader of whatever a caller gives: a folder, workbench's Tokenizer, a tokenizer of transformers, or nothing."""
    if isinstance(given, Tokenizer | Foreign):
        return given
    if given is None or isinstance(given, str | Path):
        place = folder if given is None else expanded(given)
        if place is None or not any((place / name).is_file() for name in ("tokenizer.json", "tokenizer_config.json")):
            return None
        if is_gpt_oss and (place / "tokenizer.json").is_file():
            return Tokenizer.from_folder(place)
        from transformers import AutoTokenizer

        return Foreign(AutoTokenizer.from_pretrained(place, local_files_only=True))
    rust = getattr(given, "backend_tokenizer", None)
    if is_gpt_oss and rust is not None and '"ByteLevel"' in (said := rust.to_str()):
        return Tokenizer(said.encode(), "this tokenizer")
    return Foreign(given)


def ids_of(ask: Any, reader: Reader | None, template: str | None, is_gpt_oss: bool) -> tuple[list[int], list[str]]:
    """The token ids of `ask`, and a note on who made them.

    A Trace or ids are taken as they are (also a tensor of one row). For gpt-oss a question is put into a chat; for
    another model a text is the text itself, unless it is a chat, which the tokenizer's template writes.
    """
    if isinstance(ask, Trace):
        return list(ask.tokens), []
    if not isinstance(ask, str | Chat):
        ids = ask.tolist() if hasattr(ask, "tolist") else list(ask)
        if ids and isinstance(ids[0], Sequence):
            if len(ids) != 1:
                raise PromptError(f"a trace is one text; this is a batch of {len(ids)}. Record them one by one.")
            ids = ids[0]
        return [int(i) for i in ids], []
    if reader is None:
        raise PromptError("this model came without a tokenizer: give token ids, or tokenizer=…")
    if is_gpt_oss and isinstance(reader, Tokenizer):
        made = render(as_chat(ask), reader, template)
        return list(made.ids), [f"the prompt was rendered by {made.how}"]
    if isinstance(ask, Chat):
        raise PromptError("wb.chat(…) is for gpt-oss; give another model a text, or token ids of its own template")
    return reader.encode(ask), ["the text was read as it is, without a chat around it"]
