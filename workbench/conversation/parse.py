"""Token ids to messages: whatever a model wrote, every token ends up in exactly one Span. Needs no harmony.

A message is `<|start|>` header `<|message|>` content, closed by `<|end|>`, `<|return|>` or `<|call|>`. A header says
role, ` to=recipient`, `<|channel|>` channel, `<|constrain|>` content type; a recipient may follow role or channel.
Models do not always keep to that, so these rules decide the rest:

* a message starts at `<|start|>`, or at the first token after a closed message; it stops at its end marker, or where
  the next one starts, or at the end (`complete=False` for the last two);
* inside content only `<|start|>` and the end markers count, the other control tokens are content;
* without `<|message|>`, what follows the role is content, unless a `<|channel|>` shows that it is still header;
* a role that harmony does not know is a tool's name if something says so (a dot, a recipient), else "unparsed";
  with no role at all the role is "unparsed" too; of a channel given twice, the last counts.
"""

from collections.abc import Sequence

from workbench.conversation.tokenizer import Tokenizer
from workbench.spans import Span

ROLES = ("system", "developer", "user", "assistant", "tool")
CHANNELS = ("analysis", "commentary", "final")
TOOLS = ("python", "browser")  # built in: their names need no dot
ENDS = ("<|end|>", "<|return|>", "<|call|>")


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
        closed = stop < len(ids) and ids[stop] in ends
        role = start_role if at == 0 and opened == at else None
        spans.append(_span(ids, tokenizer, at, opened, body, stop, closed, role))
        at = spans[-1].stop
    return spans


def _span(
    ids: Sequence[int],
    tokenizer: Tokenizer,
    at: int,
    opened: int,
    body: int | None,
    stop: int,
    closed: bool,
    role: str | None,
) -> Span:
    """The span `at:stop` (and its end marker, if `closed`), its header read."""
    if body is not None:
        header = ids[opened : body - 1]
    elif tokenizer.special.get("<|channel|>") in ids[opened:stop]:
        header = ids[opened:stop]  # cut off, or closed, before <|message|> came
        body = stop
    else:
        body = opened if opened == at else _after_role(ids, tokenizer, opened, stop)
        header = ids[opened:body]
    said = _header(tokenizer.pieces(header), needs_role=role is None) if header else {}
    said_role = said.pop("role", None) or role or "unparsed"
    return Span(at, stop + closed, body, stop, said_role, complete=closed, **said)


def _after_role(ids: Sequence[int], tokenizer: Tokenizer, opened: int, stop: int) -> int:
    """Where the content begins in a message that has neither channel nor `<|message|>`: after its role."""
    pieces = tokenizer.pieces(ids[opened : min(stop, opened + 64)])
    word = ""
    for number, piece in enumerate(pieces):
        if word in ROLES or (word and piece[:1].isspace()):
            rest = "".join(pieces[number:])
            return stop if _is_recipient(rest) else opened + number
        word += piece
    return stop


def _is_recipient(text: str) -> bool:
    """Whether `text` is no more than ` to=name`."""
    words = text.split()
    return len(words) == 1 and words[0].startswith("to=")


def _header(pieces: Sequence[str], *, needs_role: bool) -> dict[str, str | None]:
    """What a header says: the text between `<|start|>` and `<|message|>`, piece by piece."""
    sections: dict[str, list[str]] = {"role": [], "<|channel|>": [], "<|constrain|>": []}
    section = "role"
    text = ""
    for piece in [*pieces, "<|message|>"]:
        if piece in ("<|channel|>", "<|constrain|>", "<|message|>"):
            words = text.split()
            if section == "<|channel|>" and words and not words[0].startswith("to="):
                sections[section] = []  # of two channels the last counts
            sections[section] += words
            section, text = piece, ""
        else:
            text += piece
    words = sections["role"]
    name = words.pop(0) if needs_role and words and not words[0].startswith("to=") else None
    rest = words + sections["<|channel|>"] + sections["<|constrain|>"]
    channel = next((w for w in sections["<|channel|>"] if not w.startswith("to=")), None)
    if channel is None:  # the marker may be missing, the word is not
        channel = next((w for w in rest if w in CHANNELS), None)
    if channel is not None:
        rest.remove(channel)
    recipients = [w.removeprefix("to=") for w in rest if w.startswith("to=") and w != "to="]
    kinds = [w for w in rest if not w.startswith("to=")]
    said: dict[str, str | None] = {
        "channel": channel,
        "recipient": recipients[-1] if recipients else None,
        "content_type": kinds[-1] if kinds else None,
    }
    if name in ROLES:
        said |= {"role": name, "author": name if name == "tool" else None}
    elif name is not None and ("." in name or name in TOOLS or recipients):
        said |= {"role": "tool", "author": name}
    elif needs_role:
        said |= {"role": "unparsed"}
    return said
