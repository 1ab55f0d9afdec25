"""Messages as ranges of token positions, and the turns of a conversation. Independent of tokenizers and models."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from difflib import get_close_matches
from itertools import islice
from typing import Literal

from workbench.checks import check_whole
from workbench.errors import ArgumentError, NotRecorded
from workbench.text import shown, visible

ROLES = ("system", "developer", "user", "assistant", "tool")
CHANNELS = ("analysis", "commentary", "final")
NO_TOOL = (None, "assistant", "all")  # recipients of a message that is not a tool call


@dataclass(frozen=True, slots=True)
class Span:
    """One message: its header, its content and its end marker are the positions `start:stop`.

    The spans of a sequence are contiguous and cover every position. Tokens that cannot be parsed are in a span whose
    `role` is "unparsed".

    >>> Span(3, 9, 5, 8, "user").content
    slice(5, 8, None)
    """

    start: int
    stop: int
    content_start: int
    content_stop: int
    role: str  # "system" | "developer" | "user" | "assistant" | "tool" | "unparsed"
    channel: str | None = None  # "analysis" | "commentary" | "final" | whatever the model wrote
    recipient: str | None = None  # "functions.get_weather", "assistant", …
    author: str | None = None  # a tool's name, when role is "tool"
    content_type: str | None = None  # "<|constrain|>json", "json", "code", … as the model wrote it
    complete: bool = True  # False: generation stopped inside this message

    @property
    def content(self) -> slice:
        return slice(self.content_start, self.content_stop)


@dataclass(frozen=True, slots=True)
class Turn:
    """One turn: a message of the user, and everything up to the user's next message, in order.

    `answer` is the last final message of the assistant, None if there is none. `thoughts` are the analysis messages of
    the assistant, `calls` its messages to tools, and `results` the messages of tools. All three contain only messages
    before the answer, or all of the turn's if it has no answer yet.
    """

    messages: tuple[Span, ...]

    @property
    def answer(self) -> Span | None:
        finals = self._on_channel("final")
        return finals[-1] if finals else None

    @property
    def thoughts(self) -> tuple[Span, ...]:
        return self._before_answer(self._on_channel("analysis"))

    @property
    def calls(self) -> tuple[Span, ...]:
        return self._before_answer(tuple(span for span in self.messages if is_call(span)))

    @property
    def results(self) -> tuple[Span, ...]:
        return self._before_answer(tuple(span for span in self.messages if span.role == "tool"))

    def on(self, channel: str) -> tuple[Span, ...]:
        """The assistant's messages on a channel: the thoughts, the answer, or others; tool calls are left out."""
        if channel == "analysis":
            return self.thoughts
        if channel == "final":
            return () if self.answer is None else (self.answer,)
        return self._on_channel(channel)

    def _on_channel(self, channel: str) -> tuple[Span, ...]:
        return tuple(
            span for span in self.messages if span.role == "assistant" and span.channel == channel and not is_call(span)
        )

    def _before_answer(self, spans: tuple[Span, ...]) -> tuple[Span, ...]:
        answer = self.answer
        return spans if answer is None else tuple(span for span in spans if span.stop <= answer.start)


def is_call(span: Span) -> bool:
    """Whether the assistant calls a tool with this message."""
    return span.role == "assistant" and span.recipient not in NO_TOOL


def turns(spans: Sequence[Span]) -> list[Turn]:
    """The turns of a conversation. A turn begins with a user's message that follows one of the assistant or a tool.

    Messages before the first question (system, developer) belong to the first turn. Every span is in exactly one turn.

    >>> question, thought, answer = Span(0, 4, 2, 3, "user"), Span(4, 9, 6, 8, "assistant", "analysis"), \
Span(9, 14, 11, 13, "assistant", "final")
    >>> follow_up = Span(14, 18, 16, 17, "user")
    >>> [(len(turn.messages), turn.answer == answer) for turn in turns([question, thought, answer, follow_up])]
    [(3, True), (1, False)]
    """
    messages: list[list[Span]] = [[]]
    answered = False  # whether the assistant or a tool has written in this turn
    for span in spans:
        if span.role == "user" and answered:
            messages.append([])
            answered = False
        answered = answered or span.role in ("assistant", "tool")
        messages[-1].append(span)
    return [Turn(tuple(of_turn)) for of_turn in messages]


def selected_turns(spans: Sequence[Span], which: int | Literal["all"] = -1) -> list[Turn]:
    """One turn (0 is the first, -1 the last: the one that led to the answer of a run), or "all" of them.

    Raises NotRecorded if there is no such turn.
    """
    all_turns = turns(spans)
    if isinstance(which, str) and which == "all":
        return all_turns
    number = -1 - len(all_turns)  # out of range: for a `which` that is not an index
    with suppress(ArgumentError):
        number = check_whole("turn", which)
    if not -len(all_turns) <= number < len(all_turns):
        raise NotRecorded(
            f"turn must be 'all' or between {-len(all_turns)} and {len(all_turns) - 1}, got {shown(which)}: "
            f"this text has {len(all_turns)} turn{'s' * (len(all_turns) > 1)}"
        )
    return [all_turns[number]]


def last_turn(spans: Sequence[Span]) -> Turn:
    """The turn that led to the answer of a run, with the thoughts, calls and results that led to it."""
    return turns(spans)[-1]


def check_message_name(what: Literal["channel", "role"], name: str, spans: Sequence[Span]) -> None:
    """Raises ArgumentError unless `name` is a channel or role of harmony, or of one of the messages.

    >>> check_message_name("channel", "final", [])
    >>> check_message_name("channel", "thinking", [])
    Traceback (most recent call last):
    workbench.errors.ArgumentError: channel must be one of analysis, commentary, final, got 'thinking'.
    """
    of_messages = (getattr(span, what) for span in spans)
    names = dict.fromkeys((*(CHANNELS if what == "channel" else ROLES), *filter(None, of_messages)))
    if not isinstance(name, str) or name not in names:
        listed = ", ".join(map(visible, islice(names, 20)))
        near = get_close_matches(name[:100], names, 1) if isinstance(name, str) else []
        hint = f" Did you mean {visible(repr(near[0]))}?" if near else ""
        raise ArgumentError(f"{what} must be one of {listed}, got {shown(name)}.{hint}")
