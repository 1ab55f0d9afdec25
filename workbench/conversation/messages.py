"""What is said to a model, as data: a Chat, its messages and tools, and the token ids it renders to."""

from dataclasses import dataclass

from workbench.traces.spans import Span


@dataclass(frozen=True, slots=True)
class Message:
    """One earlier message. `thinking` is what an assistant thought before it: an analysis message of its own.

    `ids` are its tokens, if it has been written before: they are rendered as they are, where they say the same.
    """

    role: str
    content: str
    channel: str | None = None
    recipient: str | None = None
    name: str | None = None  # of the tool that answers
    content_type: str | None = None  # "<|constrain|>json", "json", "code", … as it stands in the header
    thinking: str | None = None
    ids: tuple[int, ...] | None = None


@dataclass(frozen=True, slots=True)
class Tool:
    """A function that the model may call, or one of harmony's own tools (`builtin`)."""

    name: str
    description: str = ""
    parameters: str | None = None  # a JSON schema, as canonical JSON: the object stays hashable
    builtin: bool = False


@dataclass(frozen=True, slots=True)
class Rendered:
    """Token ids, the messages in them, and who wrote them: "openai-harmony" or "template"."""

    ids: tuple[int, ...]
    spans: tuple[Span, ...]
    how: str


@dataclass(frozen=True, slots=True)
class Chat:
    """What is said to a model. Made by `chat`; equal chats render to equal ids."""

    messages: tuple[Message, ...]
    system: str | None = None
    developer: str | None = None
    tools: tuple[Tool, ...] = ()
    reasoning: str | None = None
    date: str | None = None
    keep_thoughts: bool = False
