"""A Span: one harmony message as a stretch of token positions. Knows nothing of tokenizers or models."""

from dataclasses import dataclass


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
    content_type: str | None = None  # "json", "code", …
    complete: bool = True  # False: generation stopped inside this message

    @property
    def content(self) -> slice:
        return slice(self.content_start, self.content_stop)
