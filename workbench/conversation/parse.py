"""Token ids to messages: whatever a model wrote, every token ends up in exactly one Span. Needs no harmony.

A message is `<|start|>` header `<|message|>` content, closed by `<|end|>`, `<|return|>` or `<|call|>`. A header has a
role, ` to=recipient`, `<|channel|>` channel, `<|constrain|>` content type; a recipient may follow role or channel.
Models do not always keep to that. There is one grammar for all headers, so a completion is read the same alone (with
`start_role`) and after the prompt that it continues:

* A message starts at `<|start|>`, or at the first token after a closed message. It stops at its end marker, or where
  the next one starts, or at the end (`complete=False` for the last two).
* The tokens of `assistant` right after `<|start|>` are the role, whatever is glued to them (`assistantanalysis`).
* Inside content only `<|start|>` and the end markers count; the other control tokens are content.
* Without `<|message|>`, the header is what is marked as such: role, `to=…`, and one word after `<|channel|>` and
  `<|constrain|>`. The rest is content.
* Of several channels the last counts, of several recipients too; a channel's name without its marker counts as one.
* Only an assistant writes `<|channel|>` or calls a tool, so without a role that harmony knows, a message with a channel
  or a tool as its recipient is the assistant's. A name with a dot, of a built-in tool, or of one that writes to the
  assistant is a tool's. Everything else is "unparsed".
"""

import re
from collections.abc import Sequence

from workbench.conversation.tokenizer import Tokenizer
from workbench.traces.spans import NO_TOOL, Span

ROLES = ("system", "developer", "user", "assistant", "tool")
CHANNELS = ("analysis", "commentary", "final")
TOOLS = ("python", "browser")  # built in: their names need no dot
ENDS = ("<|end|>", "<|return|>", "<|call|>")
CHANNEL, CONSTRAIN = "<|channel|>", "<|constrain|>"
HEADER_TOKENS = 64  # a header without <|message|> is looked for in so many tokens

_NAME = re.compile(r"\s*[\w.\-]*")
_RECIPIENT = re.compile(r"\s*to=[^\s<|>{}()\[\]\"',;]+")
_RECIPIENT_BEGINS = re.compile(r"\s*(?:t|to|to=[^\s<|>{}()\[\]\"',;]*)?")
_GLUED = re.compile(r"(assistant)?({0})?({0})?(to=.*)?".format("|".join(CHANNELS)), re.DOTALL)  # run into each other


def parse(ids: Sequence[int], tokenizer: Tokenizer, start_role: str | None = None) -> list[Span]:
    """The messages in `ids`: contiguous spans, the first from 0, the last to `len(ids)`. Never raises on any ids.

    `start_role`: the role of a text that begins inside a header, as completions do after `<|start|>assistant`.

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
        opened = at + 1 if ids[at] == start else at  # where the header's text begins
        body = None  # where the content begins, once <|message|> has been seen
        stop = opened
        while stop < len(ids) and ids[stop] != start and ids[stop] not in ends:
            if body is None and ids[stop] == message:
                body = stop + 1
            stop += 1
        role = start_role if at == 0 and opened == at else None
        named = 0  # tokens that say the role
        if role is None and list(ids[opened : min(stop, opened + len(assistant))]) == assistant:
            named = len(assistant)
        header = tokenizer.str_tokens(
            ids[opened : min(stop, opened + named + HEADER_TOKENS) if body is None else body - 1]
        )
        if named and (body is not None or opened > at or CHANNEL in header):
            role = "assistant"
        elif named:
            named = 0  # text that happens to begin so
        if body is None:
            length = _implied(header, named, started=opened > at, needs_role=role is None)
            header, body = header[:length], opened + length
        closed = stop < len(ids) and ids[stop] in ends
        spans.append(_span(header[named:], at, stop, body, role, closed))
        at = spans[-1].stop
    return spans


def _span(header: Sequence[str], at: int, stop: int, body: int, role: str | None, closed: bool) -> Span:
    """The span `at:stop` (and its end marker, if `closed`), its header read; `role` is None if the header says it."""
    role, author, sections = _author(_sections(header), role)
    channel, recipient, content_type = _address(sections)
    if role is None:
        marked = any(marker == CHANNEL for marker, _ in sections)
        if author is not None and ("." in author or author in TOOLS or recipient in NO_TOOL[1:]):
            role = "tool"
        else:
            author = None
            role = "assistant" if marked or channel or recipient not in NO_TOOL else "unparsed"
    return Span(at, stop + closed, body, stop, role, channel, recipient, author, content_type, closed)


def _sections(header: Sequence[str]) -> list[tuple[str, list[str]]]:
    """The words of a header by the marker that they follow; the first section follows the role and has none.

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
                if words and words[-1] == "to=" and not part.startswith("to="):  # a space after the sign
                    words[-1] += part
                else:
                    words.append(part)
        sections.append((marker, words))
    return sections


def _author(
    sections: list[tuple[str, list[str]]], role: str | None
) -> tuple[str | None, str | None, list[tuple[str, list[str]]]]:
    """Role, name, and the sections without them; the role is None where the header names none that harmony knows."""
    (_, words), *rest = sections
    if not words or words[0].startswith("to=") or words[0] in CHANNELS:
        return role, None, sections
    first = words[0]
    if role is not None:
        return role, None, [("", words[first == role :]), *rest]  # said twice
    known = first.partition(":")[0]  # harmony writes user:name
    if known in ROLES:
        return known, first if known == "tool" else None, [("", words[1:]), *rest]
    return None, first, [("", words[1:]), *rest]


def _address(sections: Sequence[tuple[str, list[str]]]) -> tuple[str | None, str | None, str | None]:
    """Channel, recipient and content type."""
    channel = unmarked = recipient = content_type = constrained = None
    loose: list[str] = []  # words that no sign explains
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
    if recipient is None:  # a tool's name without the sign
        recipient = next((word for word in loose if word in TOOLS or re.fullmatch(r"\w+(?:\.[\w\-]+)+", word)), None)
        content_type = None if content_type == recipient else content_type
    return channel or unmarked, recipient, constrained or content_type


def _implied(pieces: Sequence[str], named: int, *, started: bool, needs_role: bool) -> int:
    """How many tokens are the header of a message without `<|message|>`; `named` of them are the assistant's name.

    >>> _implied(["<|channel|>", "analysis", " I", " must"], 0, started=False, needs_role=False)
    2
    """
    at = named
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
        return 0  # text without a header
    while (marker := _after_space(pieces, at)) < len(pieces) and pieces[marker] in (CHANNEL, CONSTRAIN):
        at = _after_name(pieces, marker + 1, CHANNELS)
        at = _after_recipient(pieces, at)
    return at


def _after_space(pieces: Sequence[str], at: int) -> int:
    while at < len(pieces) and pieces[at].isspace():
        at += 1
    return at


def _after_name(pieces: Sequence[str], at: int, known: Sequence[str]) -> int:
    """Where the word that begins at `at` ends: before white space or punctuation, or where it is one that is known."""
    word = ""
    while at < len(pieces) and word.strip() not in known and _NAME.fullmatch(word + pieces[at]):
        word, at = word + pieces[at], at + 1
    return at


def _after_recipient(pieces: Sequence[str], at: int) -> int:
    """Where ` to=recipient` ends that begins at `at`; `at` itself if there is none."""
    text, found = "", at
    for number in range(at, len(pieces)):
        text += pieces[number]
        if not _RECIPIENT_BEGINS.fullmatch(text):
            break
        if _RECIPIENT.fullmatch(text):
            found = number + 1
    return found
