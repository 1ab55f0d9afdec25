"""Earlier messages: out of a text as it was written, and into the next prompt, token for token."""

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Protocol

from workbench.conversation.messages import Message
from workbench.conversation.parse import parse
from workbench.conversation.tokenizer import Tokenizer
from workbench.errors import PromptError
from workbench.traces.spans import Span, is_call


class Written(Protocol):
    """A Trace, as far as its messages are concerned."""

    @property
    def tokens(self) -> Sequence[int]: ...

    @property
    def str_tokens(self) -> Sequence[str]: ...

    @property
    def spans(self) -> Sequence[Span]: ...


def history(trace: Written) -> list[dict[str, Any]]:
    """The messages of a conversation, for `wb.chat(history=…)`: those of the user, the assistant and its tools.

    Each has `ids`, its tokens as they were written, so that it comes back exactly so in the next prompt, its header
    too; only `<|return|>` becomes `<|end|>`, as gpt-oss was trained. Change a message, and the change is what is
    rendered. System and developer texts are arguments of `wb.chat`. A message that cannot be read counts as the
    assistant's. Raises PromptError for system or developer text after the first message, which a chat cannot hold.

    >>> trace = wb.trace("What is 12+30?")
    >>> ask = wb.chat("And 3+4?", history=wb.history(trace))
    >>> [(message.role, message.channel, message.content) for message in ask.messages]
    [('user', None, 'What is 12+30?'), ('assistant', 'analysis', '2+0=2, 1+3=4.'), ('assistant', 'final', \
'It is 42.'), ('user', None, 'And 3+4?')]
    """
    tokens, pieces, spans = trace.tokens, trace.str_tokens, list(trace.spans)
    if spans and "".join(pieces[spans[-1].start :]) == "<|start|>assistant":
        spans.pop()  # a prompt ends so, for the answer that is asked for
    messages = []
    for span in spans:
        if span.role in ("system", "developer"):
            if messages:
                raise PromptError(
                    f"message {len(messages)} of the conversation is followed by {span.role} text, and `wb.chat` takes "
                    f"that only before the first message. Render the tokens of the trace itself, or leave the text out."
                )
            continue
        message: dict[str, Any] = {"role": span.role, "content": "".join(pieces[span.content])}
        if span.role != "user":
            message |= {"channel": span.channel, "recipient": span.recipient, "content_type": span.content_type}
        if span.role == "tool":
            message["name"] = span.author
        elif span.role == "unparsed":
            message["role"] = "assistant"
        messages.append(message | {"ids": tuple(tokens[span.start : span.stop])})
    return messages


def shown(messages: Sequence[Message], *, keep_thoughts: bool) -> list[Message]:
    """The messages that the model is shown, each thought as a message of its own.

    As gpt-oss was trained, what was on the analysis channel before the last final message is left out; the analysis of
    a turn that is still under way, between calls of tools, stays. With `keep_thoughts` all of it stays.
    """
    whole: list[Message] = []
    for message in messages:
        if message.thinking is not None:
            thought = replace(
                message, content=message.thinking, channel="analysis", recipient=None, content_type=None, thinking=None,
                ids=None,
            )  # fmt: skip
            whole.append(thought)
        whole.append(replace(message, thinking=None))
    finals = [n for n, m in enumerate(whole) if m.role == "assistant" and m.channel == "final"]
    if keep_thoughts or not finals:
        return whole
    return [m for n, m in enumerate(whole) if n > finals[-1] or m.channel != "analysis"]


def as_written(message: Message, tokenizer: Tokenizer, *, last: bool) -> list[int] | None:
    """The tokens of a message as they were written; None if there are none, or if they are of another message.

    A header that says the same is taken as it is, and so is content. `last`: no tokens of the same text follow, so the
    message gets an end marker if it has none.
    """
    if message.ids is None:
        return None
    ids = list(message.ids)
    spans = parse(ids, tokenizer)
    if len(spans) != 1 or not _same_header(spans[0], message):
        return None
    (span,) = spans
    header, content, end = ids[: span.content_start], ids[span.content], ids[span.content_stop :]
    if tokenizer.decode(content) != message.content:
        content, end = tokenizer.encode(message.content), end or [_end(span, tokenizer)]
    if end == [tokenizer.special.get("<|return|>")] or (last and not end):
        end = [_end(span, tokenizer)]
    return [*header, *content, *end]


def _end(span: Span, tokenizer: Tokenizer) -> int:
    return tokenizer.special["<|call|>" if is_call(span) else "<|end|>"]


def _same_header(span: Span, message: Message) -> bool:
    """Whether the header of a message is that of a span."""
    role = "assistant" if span.role == "unparsed" else span.role
    if role != message.role or role == "user":
        return role == message.role
    mine = (message.channel, _bare(message.recipient), message.content_type, _bare(message.name))
    return mine == (span.channel, _bare(span.recipient), span.content_type, _bare(span.author))


def _bare(name: str | None) -> str | None:
    return None if name is None else name.removeprefix("functions.")


def put_back(ids: list[int], messages: Sequence[Message], tokenizer: Tokenizer) -> list[int]:
    """What a template made of messages, with those in it that say the same as they were written."""
    spans = [span for span in parse(ids, tokenizer) if span.role not in ("system", "developer")][:-1]
    if len(spans) != len(messages):
        return ids
    out, at = [], 0
    for number, (span, message) in enumerate(zip(spans, messages, strict=True)):
        last = number + 1 == len(messages) or messages[number + 1].ids is None
        written = as_written(message, tokenizer, last=last)
        same = (
            written and _same_header(span, message) and _same_text(tokenizer.decode(ids[span.content]), message.content)
        )
        out += [*ids[at : span.start], *(written if written and same else ids[span.start : span.stop])]
        at = span.stop
    return out + ids[at:]


def _same_text(text: str, other: str) -> bool:
    """Whether two texts are equal, or the same JSON with other spaces."""
    try:
        return text == other or json.loads(text) == json.loads(other)
    except ValueError:
        return False
