"""Parses token ids into messages; every token is in exactly one Span, also in malformed text.

Independent of openai-harmony. A message is `<|start|>` header `<|message|>` content, closed by `<|end|>`, `<|return|>`
or `<|call|>`. A header has a role, ` to=recipient`, `<|channel|>` channel, `<|constrain|>` content type; the recipient
follows the role or the channel. Models do not always follow this format. All headers have one grammar, so a completion
is parsed the same alone (with `start_role`) and after its prompt:

* A message starts at `<|start|>`, or at the first token after a closed message. It stops at its end marker, at the
  start of the next message, or at the end of the text (`complete=False` for the last two).
* The tokens of `assistant` right after `<|start|>` are the role, also without a space after them (`assistantanalysis`).
* Inside content only `<|start|>` and the end markers are control tokens; all others are part of the content.
* Without `<|message|>`, the header consists of the role, `to=…`, and one word after each `<|channel|>` and
  `<|constrain|>`. The rest is content.
* Of several channels the last is used, and of several recipients too. A channel's name without its marker is a channel.
* A message without a role of harmony is a tool's if its name has a dot or is that of a built-in tool, or if it writes
  to the assistant. Otherwise a channel, or a tool as its recipient, makes it the assistant's: only an assistant writes
  `<|channel|>` or calls a tool. All other messages are "unparsed".
"""

import re
from collections.abc import Sequence

from workbench.conversation.tokenizer import Tokenizer
from workbench.traces.spans import CHANNELS, NO_TOOL, ROLES, Span

TOOLS = ("python", "browser")  # built-in tools, whose names may lack a dot
ENDS = ("<|end|>", "<|return|>", "<|call|>")
CHANNEL, CONSTRAIN = "<|channel|>", "<|constrain|>"
HEADER_TOKENS = 64  # maximal length of a header without <|message|>

_NAME = re.compile(r"\s*[\w.\-]*")
_RECIPIENT = re.compile(r"\s*to=[^\s<|>{}()\[\]\"',;]+")
_RECIPIENT_BEGINS = re.compile(r"\s*(?:t|to|to=[^\s<|>{}()\[\]\"',;]*)?")
_GLUED = re.compile(
    r"(assistant)?({0})?({0})?(to=.*)?".format("|".join(CHANNELS)), re.DOTALL
)  # words without spaces between them


def parse(ids: Sequence[int], tokenizer: Tokenizer, start_role: str | None = None) -> list[Span]:
    """The messages in `ids`: contiguous spans from 0 to `len(ids)`. Does not raise for any ids.

    `start_role`: the role if the text begins inside a header, like a completion after `<|start|>assistant`.

    >>> t = Tokenizer.from_folder("data/pocket")
    >>> ids = [t.special["<|channel|>"], *t.encode("final"), t.special["<|message|>"], *t.encode("It is 5.")]
    >>> parse(ids, t, start_role="assistant")
    [Span(start=0, stop=8, content_start=3, content_stop=8, role='assistant', channel='final', recipient=None, \
author=None, content_type=None, complete=False)]
    """
    start, message = tokenizer.special.get("<|start|>"), tokenizer.special.get("<|message|>")
    ends = {tokenizer.special[name] for name in ENDS if name in tokenizer.special}
    assistant = tokenizer.encode("assistant")
    spans: list[Span] = []
    at = 0
    while at < len(ids):
        header_start = at + 1 if ids[at] == start else at
        content_start = None  # until <|message|> is reached
        stop = header_start
        while stop < len(ids) and ids[stop] != start and ids[stop] not in ends:
            if content_start is None and ids[stop] == message:
                content_start = stop + 1
            stop += 1
        role = start_role if at == 0 and header_start == at else None
        n_role_tokens = 0  # length of the role at the start of the header
        if role is None and list(ids[header_start : min(stop, header_start + len(assistant))]) == assistant:
            n_role_tokens = len(assistant)
        implicit_stop = min(stop, header_start + n_role_tokens + HEADER_TOKENS)
        header_stop = implicit_stop if content_start is None else content_start - 1
        header = tokenizer.str_tokens(ids[header_start:header_stop])
        if n_role_tokens and (content_start is not None or header_start > at or CHANNEL in header):
            role = "assistant"
        elif n_role_tokens:
            n_role_tokens = 0  # content that starts with this word
        if content_start is None:
            length = _implicit_header_length(header, n_role_tokens, started=header_start > at, needs_role=role is None)
            header, content_start = header[:length], header_start + length
        closed = stop < len(ids) and ids[stop] in ends
        spans.append(_span(header[n_role_tokens:], at, stop, content_start, role, closed))
        at = spans[-1].stop
    return spans


def _span(header: Sequence[str], at: int, stop: int, content_start: int, role: str | None, closed: bool) -> Span:
    """The span `at:stop`, plus its end marker if `closed`, with its parsed header.

    `role` None: the role is in the header.
    """
    role, author, sections = _author(_sections(header), role)
    channel, recipient, content_type = _address(sections)
    if role is None:
        marked = any(marker == CHANNEL for marker, _ in sections)
        if author is not None and ("." in author or author in TOOLS or recipient in NO_TOOL[1:]):
            role = "tool"
        else:
            author = None
            role = "assistant" if marked or channel or recipient not in NO_TOOL else "unparsed"
    return Span(at, stop + closed, content_start, stop, role, channel, recipient, author, content_type, closed)


def _sections(header: Sequence[str]) -> list[tuple[str, list[str]]]:
    """The words of a header, grouped by the marker before them; the first group has no marker.

    >>> _sections([" to", "=f", "<|channel|>", "commentary", " ", "<|constrain|>", "json"])
    [('', ['to=f']), ('<|channel|>', ['commentary']), ('<|constrain|>', ['json'])]
    """
    texts: list[tuple[str, list[str]]] = [("", [])]
    for piece in header:
        if piece in (CHANNEL, CONSTRAIN):
            texts.append((piece, []))
        else:
            texts[-1][1].append(piece)
    sections: list[tuple[str, list[str]]] = []
    for marker, pieces in texts:
        words: list[str] = []
        for word in "".join(pieces).split():
            glued = _GLUED.fullmatch(word)
            for part in filter(None, glued.groups()) if glued else (word,):
                if words and words[-1] == "to=" and not part.startswith("to="):  # a space after "to="
                    words[-1] += part
                else:
                    words.append(part)
        sections.append((marker, words))
    return sections


def _author(
    sections: list[tuple[str, list[str]]], role: str | None
) -> tuple[str | None, str | None, list[tuple[str, list[str]]]]:
    """Role, author, and the sections without them; the role is None if the header has no role of harmony."""
    (_, words), *rest = sections
    if not words or words[0].startswith("to=") or words[0] in CHANNELS:
        return role, None, sections
    first = words[0]
    if role is not None:
        return role, None, [("", words[first == role :]), *rest]  # the role is repeated
    known = first.partition(":")[0]  # harmony writes user:name
    if known in ROLES:
        return known, first if known == "tool" else None, [("", words[1:]), *rest]
    return None, first, [("", words[1:]), *rest]


def _address(sections: Sequence[tuple[str, list[str]]]) -> tuple[str | None, str | None, str | None]:
    """Channel, recipient and content type of a header."""
    channel = unmarked = recipient = content_type = constrained = None
    loose: list[str] = []  # words without a marker or "to="
    addressed = False
    for marker, words in sections:
        if marker == CHANNEL and words and not words[0].startswith("to="):
            channel, words = words[0], words[1:]
        for number, word in enumerate(words):
            if word.startswith("to="):
                recipient, addressed = word.removeprefix("to=") or recipient, True
            elif marker == CONSTRAIN and number == 0:
                constrained = marker + word
            elif word in CHANNELS:
                unmarked = word
            else:
                loose.append(word)
                if marker or addressed:
                    content_type = word
    if recipient is None:  # a tool's name without "to="
        recipient = next((word for word in loose if word in TOOLS or re.fullmatch(r"\w+(?:\.[\w\-]+)+", word)), None)
        content_type = None if content_type == recipient else content_type
    return channel or unmarked, recipient, constrained or content_type


def _implicit_header_length(pieces: Sequence[str], n_role_tokens: int, *, started: bool, needs_role: bool) -> int:
    """The number of header tokens of a message without `<|message|>`; the first `n_role_tokens` are the role.

    >>> _implicit_header_length(["<|channel|>", "analysis", " I", " must"], 0, started=False, needs_role=False)
    2
    """
    at = n_role_tokens
    if needs_role:
        at = _after_name(pieces, 0, (*ROLES, *CHANNELS))
        word = "".join(pieces[:at])
        if not started and word not in (*ROLES, *CHANNELS):
            at = 0
    at = _after_recipient(pieces, at)
    filler = _after_name(pieces, at, CHANNELS)
    if "".join(pieces[at:filler]).strip() in CHANNELS and CHANNEL in pieces[filler : filler + 1]:
        at = filler
    if needs_role and not started and pieces[at : at + 1] != [CHANNEL]:
        return 0  # content without a header
    while (marker := _after_space(pieces, at)) < len(pieces) and pieces[marker] in (CHANNEL, CONSTRAIN):
        at = _after_name(pieces, marker + 1, CHANNELS)
        at = _after_recipient(pieces, at)
    return at


def _after_space(pieces: Sequence[str], at: int) -> int:
    while at < len(pieces) and pieces[at].isspace():
        at += 1
    return at


def _after_name(pieces: Sequence[str], at: int, known: Sequence[str]) -> int:
    """The end of the word at `at`: before white space or punctuation, or as soon as it is one of `known`."""
    word = ""
    while at < len(pieces) and word.strip() not in known and _NAME.fullmatch(word + pieces[at]):
        word, at = word + pieces[at], at + 1
    return at


def _after_recipient(pieces: Sequence[str], at: int) -> int:
    """The end of ` to=recipient` at `at`; `at` itself if there is none."""
    text, end = "", at
    for number in range(at, len(pieces)):
        text += pieces[number]
        if not _RECIPIENT_BEGINS.fullmatch(text):
            break
        if _RECIPIENT.fullmatch(text):
            end = number + 1
    return end
