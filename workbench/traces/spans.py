"""Messages as stretches of token positions, and the turns of a conversation. Knows nothing of tokenizers or models."""

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from workbench.errors import NotRecorded

NO_TOOL = (None, "assistant", "all")  # recipients of a message that calls no tool


@dataclass(frozen=True, slots=True)
class Span:
    """One message: its header, its content and its end marker are the positions `start:stop`.

    The spans of a sequence are contiguous and cover every position, so no token is ever lost:
    what cannot be parsed is a span whose `role` is "unparsed".

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
    content_type: str | None = None  # "<|constrain|>json", "json", "code", … as it was written
    complete: bool = True  # False: generation stopped inside this message

    @property
    def content(self) -> slice:
        return slice(self.content_start, self.content_stop)


@dataclass(frozen=True, slots=True)
class Turn:
    """What the user asks, and everything that follows up to the user's next question, in order.

    `answer` is the last final message of the assistant, None if there is none. `thoughts` (analysis messages of the
    assistant), `calls` (messages of the assistant to a tool) and `results` (messages of tools) are those that led to
    it: the ones before the answer, or all of them if the turn has no answer yet.
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
        """What the assistant says on a channel: the thoughts, the answer, or its messages there that are no calls."""
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

    What stands before the first question (system, developer) belongs to the first turn. Every span is in exactly one.

    >>> asked, thought, answer = Span(0, 4, 2, 3, "user"), Span(4, 9, 6, 8, "assistant", "analysis"), \
Span(9, 14, 11, 13, "assistant", "final")
    >>> again = Span(14, 18, 16, 17, "user")
    >>> [(len(turn.messages), turn.answer == answer) for turn in turns([asked, thought, answer, again])]
    [(3, True), (1, False)]
    """
    found: list[list[Span]] = [[]]
    answered = False  # whether the assistant or a tool has written in this turn
    for span in spans:
        if span.role == "user" and answered:
            found.append([])
            answered = False
        answered = answered or span.role in ("assistant", "tool")
        found[-1].append(span)
    return [Turn(tuple(messages)) for messages in found]


def selected_turns(spans: Sequence[Span], which: int | Literal["all"] = -1) -> list[Turn]:
    """One turn (0 is the first, -1 the last: the one that led to the answer of a run), or "all" of them.

    Raises NotRecorded if there are not so many turns.
    """
    found = turns(spans)
    if which == "all":
        return found
    number = -1 - len(found)  # of no turn
    if not isinstance(which, bool) and hasattr(which, "__index__"):  # of numpy too
        number = operator.index(which)
    if not -len(found) <= number < len(found):
        raise NotRecorded(
            f"turn must be 'all' or between {-len(found)} and {len(found) - 1}, got {which!r}: "
            f"this text has {len(found)} turn{'s' * (len(found) > 1)}"
        )
    return [found[number]]


def last_turn(spans: Sequence[Span]) -> Turn:
    """The turn that led to the answer of a run: its thoughts, calls and results are those behind this answer."""
    return turns(spans)[-1]
