"""Token ids of a question, a chat or a text for a model of another library, and the text of each token."""

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from workbench.conversation.chat import Chat, as_chat
from workbench.conversation.render import render
from workbench.conversation.template import Template
from workbench.conversation.tokenizer import Tokenizer
from workbench.errors import PromptError
from workbench.model.prompts import parse
from workbench.paths import expanded
from workbench.recording.source import Reader
from workbench.traces import Trace


class Foreign:
    """A tokenizer of transformers as a Reader."""

    def __init__(self, tokenizer: Any):
        self.tokenizer = tokenizer
        rust = getattr(tokenizer, "backend_tokenizer", None)
        definition = rust.to_str() if rust is not None else repr(sorted(tokenizer.get_vocab().items()))
        self.digest: str = hashlib.sha256(definition.encode()).hexdigest()

    def encode(self, text: str) -> list[int]:
        """The ids that the tokenizer gives a model, including a first token of its own if it adds one."""
        return list(self.tokenizer(text)["input_ids"])

    def str_tokens(self, ids: Iterable[int]) -> list[str]:
        """The text of each token; joined, they are the whole text. A character is on the last of its tokens."""
        ids = [int(i) for i in ids]
        pieces: list[str] = []
        start, decoded = 0, ""  # a window that begins at a character boundary, and its text so far
        for end in range(1, len(ids) + 1):
            text = self.tokenizer.decode(ids[start:end], skip_special_tokens=False, clean_up_tokenization_spaces=False)
            complete = not text.endswith("�") or end == len(ids)
            pieces.append(text[len(decoded) :] if complete and text.startswith(decoded) else "")
            if complete:
                decoded = text
                if end - start > 16:
                    start = end - 1
                    last_ids = ids[start:end]
                    decoded = self.tokenizer.decode(
                        last_ids, skip_special_tokens=False, clean_up_tokenization_spaces=False
                    )
        return pieces


def reader_of(tokenizer: Any, folder: Path | None, is_gpt_oss: bool) -> Reader | None:
    """A Reader of what a caller may pass: a folder, workbench's Tokenizer, a tokenizer of transformers, or None."""
    if isinstance(tokenizer, Tokenizer | Foreign):
        return tokenizer
    if tokenizer is None or isinstance(tokenizer, str | Path):
        path = folder if tokenizer is None else expanded(tokenizer)
        if path is None or not any((path / name).is_file() for name in ("tokenizer.json", "tokenizer_config.json")):
            return None
        if is_gpt_oss and (path / "tokenizer.json").is_file():
            return Tokenizer.from_folder(path)
        from transformers import AutoTokenizer

        return Foreign(AutoTokenizer.from_pretrained(path, local_files_only=True))
    rust = getattr(tokenizer, "backend_tokenizer", None)
    if is_gpt_oss and rust is not None and '"ByteLevel"' in (definition := rust.to_str()):
        return Tokenizer(definition.encode(), "this tokenizer")
    return Foreign(tokenizer)


def ids_of(
    prompt: Any, reader: Reader | None, template: Template | None, is_gpt_oss: bool
) -> tuple[list[int], list[str]]:
    """The token ids of `prompt`, and a note on how they were made.

    A Trace or ids (also a tensor of one row) are taken unchanged. For gpt-oss, a question becomes a chat, which the
    tokenizer's template renders. For another model a text is tokenized without a chat; a Chat raises PromptError.
    """
    if isinstance(prompt, Trace):
        return list(prompt.tokens), []
    if not isinstance(prompt, str | Chat):
        parsed = parse(prompt)
        if isinstance(parsed, list):
            return parsed, []
        prompt = parsed
    if reader is None:
        raise PromptError("this model has no tokenizer: give token ids, or pass tokenizer=…")
    if is_gpt_oss and isinstance(reader, Tokenizer):
        rendered = render(as_chat(prompt), reader, template)
        return list(rendered.ids), [f"the prompt was rendered by {rendered.how}"]
    if isinstance(prompt, Chat):
        raise PromptError("wb.chat(…) is for gpt-oss; give another model a text, or token ids of its own template")
    return reader.encode(prompt), ["the text was tokenized as it is, without a chat around it"]
