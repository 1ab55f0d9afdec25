"""Data classes: a Chat, its messages and tools, and its rendered token ids."""

from dataclasses import dataclass

from workbench.traces.spans import Span


@dataclass(frozen=True, slots=True)
class Message:
    """One earlier message.

    `thinking` is the analysis of an assistant before this message; it is rendered as an analysis message of its own.
    `ids` are the original tokens of a message from an earlier trace. They are rendered unchanged if they still have the
    same header and content.
    """

    role: str
    content: str
    channel: str | None = None
    recipient: str | None = None
    name: str | None = None  # of the tool that wrote this message
    content_type: str | None = None  # "<|constrain|>json", "json", "code", … as in the header
    thinking: str | None = None
    ids: tuple[int, ...] | None = None


@dataclass(frozen=True, slots=True)
class Tool:
    """A function that the model may call, or one of harmony's own tools (`builtin`)."""

    name: str
    description: str = ""
    parameters: str | None = None  # a JSON schema, as text: a Tool must be hashable
    builtin: bool = False


@dataclass(frozen=True, slots=True)
class Rendered:
    """The token ids of a chat, their spans, and the renderer (`how`): "openai-harmony" or "template"."""

    ids: tuple[int, ...]
    spans: tuple[Span, ...]
    how: str


@dataclass(frozen=True, slots=True)
class Chat:
    """A prompt for the assistant's next message. Made by `wb.chat`; equal chats render to equal ids."""

    messages: tuple[Message, ...]
    system: str | None = None
    developer: str | None = None
    tools: tuple[Tool, ...] = ()
    reasoning: str | None = None
    date: str | None = None
    keep_thoughts: bool = False
