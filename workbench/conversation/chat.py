"""A Chat: what is said to a model, free of any tokenizer until harmony or the model's template renders it."""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from workbench.conversation import harmony
from workbench.conversation import template as jinja
from workbench.conversation.parse import parse
from workbench.conversation.tokenizer import Tokenizer, valid
from workbench.conversation.vocabulary import harmony_encoding
from workbench.errors import PromptError
from workbench.spans import Span

EFFORTS = ("low", "medium", "high")
BUILTIN = ("browser", "python")
HISTORY_ROLES = ("user", "assistant", "tool")
NAME = re.compile(r"[\w.\-]+")  # channels, recipients, tool names: one word of a header


@dataclass(frozen=True, slots=True)
class Message:
    """One earlier message. `thinking` is what an assistant thought before it: an analysis message of its own."""

    role: str
    content: str
    channel: str | None = None
    recipient: str | None = None
    name: str | None = None  # of the tool that answers
    content_type: str | None = None
    thinking: str | None = None


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
    reasoning: str = "medium"
    date: str | None = None

    def render(self, tokenizer: Tokenizer, template: jinja.Template | None = None) -> Rendered:
        """The ids that ask for the assistant's answer; they end with `<|start|>assistant`.

        For gpt-oss's own vocabulary openai-harmony writes them, otherwise `template`, the model's chat template (of
        several by name "tool_use" where there are tools, else "default").
        Both treat what was said as plain text: a user who writes `<|end|>` ends nothing.

        >>> tokenizer = Tokenizer.from_folder("data/pocket")
        >>> from pathlib import Path
        >>> template = Path("data/pocket/chat_template.jinja").read_text()
        >>> rendered = chat("What is 7+8?", reasoning="low").render(tokenizer, template)
        >>> tokenizer.decode(rendered.ids)
        '<|start|>system<|message|>Reasoning: low<|end|><|start|>user<|message|>What is 7+8?<|end|><|start|>assistant'
        >>> rendered.how, [span.role for span in rendered.spans]
        ('template', ['system', 'user', 'assistant'])

        Raises PromptError if the template has no place for something that was said, or if there is no template.
        """
        if encoding := harmony_encoding(tokenizer):
            ids, how = tokenizer.respelled(harmony.render(self, encoding)), "openai-harmony"
        elif template is not None:
            ids, how = jinja.render(self, tokenizer, template), "template"
        else:
            raise PromptError(
                "this model has no chat template, and its vocabulary is not gpt-oss's, so a chat cannot be rendered. "
                "Put chat_template.jinja into its folder, or give token ids."
            )
        return Rendered(tuple(ids), tuple(parse(ids, tokenizer)), how)


def chat(
    user: str | None,
    *,
    system: str | None = None,
    developer: str | None = None,
    tools: Sequence[Mapping[str, Any] | str] | None = None,
    reasoning: str = "medium",
    history: Iterable[Mapping[str, Any]] | None = None,
    date: str | None = None,
) -> Chat:
    """A question, with all that stands around it; any gpt-oss model can be asked it.

    `system` replaces "You are ChatGPT, …" in the system message; instructions belong into `developer`.
    `tools`: functions in OpenAI's form, `{"name": …, "description": …, "parameters": …}`, and "python" or "browser".
    `history`: the messages before this one, each a dict with `role` ("user", "assistant" or "tool") and `content`,
    and where they apply `channel`, `recipient` (a tool call), `name` (the tool that answers), `content_type` and
    `thinking`. Thoughts before a final answer are dropped when rendered by harmony, as gpt-oss expects.
    `date` is shown to the model as written; without it no date is shown, so that a chat renders the same tomorrow.
    `user=None` asks for the next answer to `history`, say after a tool's result.

    >>> ask = chat("And 3+4?", reasoning="high", history=[{"role": "user", "content": "What is 1+1?"},
    ...                                                   {"role": "assistant", "content": "It is 2."}])
    >>> [(m.role, m.channel) for m in ask.messages]
    [('user', None), ('assistant', 'final'), ('user', None)]

    Raises PromptError for an empty question, an unknown role or effort, and tools or messages of another form.
    """
    if reasoning not in EFFORTS:
        raise PromptError(f"reasoning={reasoning!r} is not an effort of gpt-oss: choose {_one_of(EFFORTS)}")
    messages = [_message(raw, number) for number, raw in enumerate(history or ())]
    if user is not None:
        messages.append(Message("user", _text(user, "the question")))
    elif not messages:
        raise PromptError("there is nothing to answer: give a question, or a history")
    return Chat(
        tuple(messages),
        None if system is None else _text(system, "system"),
        None if developer is None else _text(developer, "developer"),
        _tools(tools or ()),
        reasoning,
        None if date is None else _text(date, "date"),
    )


def as_chat(prompt: "str | Chat") -> Chat:
    """A Chat as it is, a str as the question of one."""
    return prompt if isinstance(prompt, Chat) else chat(prompt)


def _text(value: Any, what: str) -> str:
    if not isinstance(value, str):
        raise PromptError(f"{what} must be text, got {type(value).__name__}")
    if not value.strip():
        raise PromptError(f"{what} is empty; leave it out, or write something")
    return valid(value)


def _name(value: Any, what: str) -> str:
    if not isinstance(value, str) or not NAME.fullmatch(value):
        raise PromptError(f"{what} must be one word of letters, digits, '_', '-' and '.', got {value!r}")
    return value


def _message(raw: Any, number: int) -> Message:
    """One entry of `history`, its header completed by what harmony would have written."""
    what = f"history[{number}]"
    known = [f.name for f in fields(Message)]
    if not isinstance(raw, Mapping):
        raise PromptError(f"{what} must be a dict with 'role' and 'content', got {type(raw).__name__}")
    if unknown := sorted(map(str, raw.keys() - set(known))):
        raise PromptError(f"{what} has {', '.join(map(repr, unknown))}; a message may have: {', '.join(known)}")
    role = raw.get("role")
    if role not in HISTORY_ROLES:
        hint = "; system and developer text are arguments of chat" if role in ("system", "developer") else ""
        raise PromptError(f"{what} has role {role!r}: choose {_one_of(HISTORY_ROLES)}{hint}")
    content = raw.get("content")
    if role == "tool" and isinstance(content, str):
        content = valid(content)  # a tool may well have nothing to say
    else:
        content = _text(content, f"the content of {what}")
    for key in ("recipient", "name", "channel", "content_type", "thinking"):
        if raw.get(key) is not None and role != "assistant" and not (role == "tool" and key in ("name", "channel")):
            raise PromptError(f"{what} has {key!r}, which a message of role {role!r} has not")
    recipient = None if raw.get("recipient") is None else _name(raw["recipient"], f"the recipient of {what}")
    channel = None if raw.get("channel") is None else _name(raw["channel"], f"the channel of {what}")
    thinking = None if raw.get("thinking") is None else _text(raw["thinking"], f"the thinking of {what}")
    if role == "user":
        return Message(role, content)
    if role == "tool":
        name = _name(raw.get("name"), f"the name of {what} (which tool answers?)")
        return Message(role, content, channel or _channel_of(name), "assistant", name)
    if raw.get("name") is not None:
        raise PromptError(f"{what} has 'name', which only tools have; a call names its tool as 'recipient'")
    content_type = (
        None
        if raw.get("content_type") is None
        else _name(str(raw["content_type"]).removeprefix("<|constrain|>").strip(), f"the content_type of {what}")
    )
    if recipient:
        content_type = content_type or ("code" if recipient == "python" else "json")
        return Message(role, content, channel or _channel_of(recipient), recipient, None, content_type, thinking)
    return Message(role, content, channel or "final", None, None, content_type, thinking)


def _channel_of(tool: str) -> str:
    """Harmony's own tools are called while thinking, functions in the commentary."""
    return "analysis" if tool.partition(".")[0] in BUILTIN else "commentary"


def _tools(given: Any) -> tuple[Tool, ...]:
    if isinstance(given, str | Mapping):
        raise PromptError("tools must be a list, even for one tool")
    tools = tuple(_tool(raw, f"tools[{number}]") for number, raw in enumerate(given))
    names = [tool.name for tool in tools]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise PromptError(f"the tool {twice[0]!r} is given twice")
    return tools


def _tool(raw: Any, what: str) -> Tool:
    if isinstance(raw, str):
        if raw not in BUILTIN:
            raise PromptError(
                f"{what} is {raw!r}, which is not built in ({' and '.join(BUILTIN)} are). "
                'Describe a function as {"name": …, "description": …, "parameters": …}.'
            )
        return Tool(raw, builtin=True)
    if isinstance(raw, Mapping) and raw.get("type") == "function" and "function" in raw:
        raw = raw["function"]
    if not isinstance(raw, Mapping) or "name" not in raw:
        raise PromptError(f"{what} must be 'python', 'browser' or a dict with 'name', got {raw!r}")
    description, parameters = raw.get("description") or "", raw.get("parameters")
    if not isinstance(description, str):
        raise PromptError(f"the description of {what} must be text, got {type(description).__name__}")
    if parameters is not None and not isinstance(parameters, Mapping):
        raise PromptError(f"the parameters of {what} must be a JSON schema (a dict), got {type(parameters).__name__}")
    try:
        schema = None if parameters is None else valid(json.dumps(parameters, ensure_ascii=False))
    except (TypeError, ValueError) as error:
        raise PromptError(f"the parameters of {what} are not JSON: {error}") from None
    return Tool(_name(raw["name"], f"the name of {what}"), valid(description), schema)


def _one_of(words: Sequence[str]) -> str:
    return f"{', '.join(map(repr, words[:-1]))} or {words[-1]!r}"
