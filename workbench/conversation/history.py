"""Earlier messages: extracts them from a trace, and puts them into the next prompt token for token."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Protocol

from workbench.checks import check_attributes
from workbench.conversation.json_text import same_json
from workbench.conversation.messages import Message
from workbench.conversation.parse import parse
from workbench.conversation.tokenizer import Tokenizer
from workbench.errors import PromptError
from workbench.traces.spans import Span, is_call


class ParsedTokens(Protocol):
    """The part of a Trace that its messages are read from."""

    @property
    def tokens(self) -> Sequence[int]: ...

    @property
    def str_tokens(self) -> Sequence[str]: ...

    @property
    def spans(self) -> Sequence[Span]: ...


def history(trace: ParsedTokens) -> list[dict[str, Any]]:
    """The messages of user, assistant and tools in a trace, for `wb.chat(history=…)`.

    Each message has `ids`, its original tokens. The next prompt contains exactly these tokens, including the header;
    only `<|return|>` becomes `<|end|>`, as in the training of gpt-oss. If you change the header or content of a
    message, the changed text is rendered instead. System and developer texts are not included: they are arguments of
    `wb.chat`. A message without a readable header counts as the assistant's.

    Raises PromptError for system or developer text after the first message, which a chat cannot contain.

    >>> trace = wb.trace("What is 12+30?")
    >>> ask = wb.chat("And 3+4?", history=wb.history(trace))
    >>> [(message.role, message.channel, message.content) for message in ask.messages]
    [('user', None, 'What is 12+30?'), ('assistant', 'analysis', '2+0=2, 1+3=4.'), ('assistant', 'final', \
'It is 42.'), ('user', None, 'And 3+4?')]
    """
    check_attributes("history", trace, "tokens", "str_tokens", "spans")
    tokens, pieces, spans = trace.tokens, trace.str_tokens, list(trace.spans)
    if spans and "".join(pieces[spans[-1].start :]) == "<|start|>assistant":
        spans.pop()  # the end of a prompt: the header of the next answer
    messages = []
    for span in spans:
        if span.role in ("system", "developer"):
            if messages:
                raise PromptError(
                    f"message {len(messages)} of the conversation is followed by {span.role} text, but `wb.chat` takes "
                    f"that only before the first message. Use the tokens of the trace itself, or leave the text out."
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


def visible_messages(messages: Sequence[Message], *, keep_thoughts: bool) -> list[Message]:
    """The messages to render, with each `thinking` as an analysis message of its own.

    As in the training of gpt-oss, messages on the analysis channel before the last final message are left out. The
    analysis of an unfinished turn, between tool calls, stays. With `keep_thoughts` all of it stays.
    """
    expanded: list[Message] = []
    for message in messages:
        if message.thinking is not None:
            thought = replace(
                message, content=message.thinking, channel="analysis", recipient=None, content_type=None, thinking=None,
                ids=None,
            )  # fmt: skip
            expanded.append(thought)
        expanded.append(replace(message, thinking=None))
    finals = [n for n, m in enumerate(expanded) if m.role == "assistant" and m.channel == "final"]
    if keep_thoughts or not finals:
        return expanded
    return [m for n, m in enumerate(expanded) if n > finals[-1] or m.channel != "analysis"]


def original_ids(message: Message, tokenizer: Tokenizer, *, last: bool) -> list[int] | None:
    """The original tokens of a message; None if it has none, or if its header has changed since.

    Content that has changed is encoded anew. `last`: whether no message of the same trace follows; then an end marker
    is added if there is none.
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
    """Whether a message has the same header as a span."""
    role = "assistant" if span.role == "unparsed" else span.role
    if role != message.role or role == "user":
        return role == message.role
    header = (message.channel, _bare(message.recipient), message.content_type, _bare(message.name))
    return header == (span.channel, _bare(span.recipient), span.content_type, _bare(span.author))


def _bare(name: str | None) -> str | None:
    return None if name is None else name.removeprefix("functions.")


def restore_original_ids(ids: list[int], messages: Sequence[Message], tokenizer: Tokenizer) -> list[int]:
    """The ids that a template rendered, with the original tokens of every message that has not changed."""
    spans = [span for span in parse(ids, tokenizer) if span.role not in ("system", "developer")][:-1]
    if len(spans) != len(messages):
        return ids
    restored, at = [], 0
    for number, (span, message) in enumerate(zip(spans, messages, strict=True)):
        last = number + 1 == len(messages) or messages[number + 1].ids is None
        original = original_ids(message, tokenizer, last=last)
        same = (
            original and _same_header(span, message) and same_json(tokenizer.decode(ids[span.content]), message.content)
        )
        restored += [*ids[at : span.start], *(original if original and same else ids[span.start : span.stop])]
        at = span.stop
    return restored + ids[at:]
