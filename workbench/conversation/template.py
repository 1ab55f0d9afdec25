"""A Chat by the model's own chat template (jinja), in a sandbox. What was said cannot become a control token.

Control tokens are made of `<`, `|` and `>`. While the template runs, these three characters in everything that was said
are private-use characters that occur nowhere else, so a control token in the result was written by the template. The
result is split there; each piece in between gets its characters back and is encoded as plain text.
"""

import json
import re
from dataclasses import replace
from datetime import date
from typing import TYPE_CHECKING, Any

from jinja2 import TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from workbench.conversation.tokenizer import Tokenizer
from workbench.errors import PromptError

if TYPE_CHECKING:
    from workbench.conversation.chat import Chat, Message

MARKUP = "<|>"


def render(chat: "Chat", tokenizer: Tokenizer, template: str) -> list[int]:
    """The ids that the template gives, up to the assistant's answer.

    Raises PromptError if the template fails, or leaves out something that was said.
    """
    _refuse_what_it_drops(chat, template)
    inputs = _inputs(chat, template)
    away, back = _private(template + json.dumps(inputs, ensure_ascii=False))
    text = _run(template, _translated(inputs, away))
    names = sorted(tokenizer.special, key=len, reverse=True)
    parts = re.split(f"({'|'.join(map(re.escape, names))})", text) if names else [text]
    ids: list[int] = []
    for number, part in enumerate(parts):
        ids += [tokenizer.special[part]] if number % 2 else tokenizer.encode(part.translate(back))
    return ids


def _private(text: str) -> tuple[dict[int, int], dict[int, int]]:
    """Private-use characters that `text` does not hold, to put `<|>` away, and the way back."""
    free = (c for c in range(0xE000, 0xF8FF) if chr(c) not in text)
    away = {ord(c): next(free) for c in MARKUP}
    return away, {private: c for c, private in away.items()}


def _translated(value: Any, table: dict[int, int]) -> Any:
    if isinstance(value, str):
        return value.translate(table)
    if isinstance(value, list):
        return [_translated(item, table) for item in value]
    if isinstance(value, dict):
        return {_translated(key, table): _translated(item, table) for key, item in value.items()}
    return value


def _run(template: str, inputs: dict[str, Any]) -> str:
    """The template's text, with the environment that transformers gives to chat templates."""

    def refuse(message: str) -> None:
        raise TemplateError(message)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = refuse
    environment.globals["strftime_now"] = lambda form: inputs.get("date") or date.today().strftime(form)
    try:
        return environment.from_string(template).render(**inputs, add_generation_prompt=True)
    except (TemplateError, ArithmeticError, LookupError, TypeError, ValueError, AttributeError) as error:
        raise PromptError(f"the model's chat template cannot render this chat: {error}") from error


def _tojson(value: Any, ensure_ascii=False, indent=None, separators=None, sort_keys=False) -> str:
    """As transformers has it: jinja's own filter would escape HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _inputs(chat: "Chat", template: str) -> dict[str, Any]:
    """What transformers would pass to the template."""
    messages: list[dict[str, Any]] = []
    inputs: dict[str, Any] = {"messages": messages}
    if chat.reasoning is not None:
        inputs["reasoning_effort"] = chat.reasoning
    if chat.system is not None and "model_identity" in template:
        inputs["model_identity"] = chat.system
    elif chat.system is not None:
        messages.append({"role": "system", "content": chat.system})
    if chat.developer is not None:
        messages.append({"role": "developer", "content": chat.developer})
    thought: str | None = None
    for message in chat.messages:
        if message.role == "assistant" and message.channel == "analysis" and message.recipient is None:
            if thought is not None or message.thinking is not None:
                raise PromptError("the model's chat template takes one analysis message before an answer, not two")
            thought = message.content
            continue
        if thought is not None and (message.role != "assistant" or message.thinking is not None):
            raise PromptError("the model's chat template needs an analysis message right before the answer it led to")
        messages.append(_message(message if thought is None else replace(message, thinking=thought)))
        thought = None
    if thought is not None:
        raise PromptError("the model's chat template cannot end with an analysis message: give its answer or tool call")
    if functions := [_function(tool) for tool in chat.tools if not tool.builtin]:
        inputs["tools"] = functions
    if builtin := [tool.name for tool in chat.tools if tool.builtin]:
        inputs["builtin_tools"] = builtin
    if chat.date is not None:
        inputs["date"] = chat.date
    return inputs


def _message(message: "Message") -> dict[str, Any]:
    """A message as transformers has it: no channels, and a call is a `tool_calls`."""
    if message.role == "user":
        return {"role": "user", "content": message.content}
    if message.role == "tool":
        return {"role": "tool", "name": (message.name or "").removeprefix("functions."), "content": message.content}
    thinking = {} if message.thinking is None else {"thinking": message.thinking}
    if message.recipient is None:
        if message.channel != "final":
            raise PromptError(f"the model's chat template has no place for a message on channel {message.channel!r}")
        return {"role": "assistant", "content": message.content, **thinking}
    try:
        arguments = json.loads(message.content)
    except ValueError:
        arguments = message.content
    call = {"name": message.recipient.removeprefix("functions."), "arguments": arguments}
    return {"role": "assistant", "content": "", **thinking, "tool_calls": [{"type": "function", "function": call}]}


def _function(tool) -> dict[str, Any]:
    parameters = {} if tool.parameters is None else {"parameters": json.loads(tool.parameters)}
    return {"type": "function", "function": {"name": tool.name, "description": tool.description, **parameters}}


def _refuse_what_it_drops(chat: "Chat", template: str) -> None:
    """Raises PromptError for what the template would silently leave out.

    Texts are replaced by words that occur nowhere else, and looked for; tools must be there by name.
    """
    from workbench.conversation.chat import Message

    marks: dict[str, str] = {}  # word -> what it stands for

    def mark(text: str | None, what: str) -> str | None:
        if not text:
            return text
        word = f"qx{len(marks)}xq"
        marks[word] = what
        return word

    def marked(message: Message, number: int) -> Message:
        what = f"message {number} ({message.role})"
        if message.recipient:
            content = json.dumps(mark("call", f"the call to {message.recipient}"))
            return replace(message, content=content)
        if message.channel == "analysis" and not chat.keep_thoughts:
            return message  # thoughts may be dropped: the format says when
        return replace(message, content=mark(message.content, what) or "")

    probe = replace(
        chat,
        system=mark(chat.system, "system text"),
        developer=mark(chat.developer, "developer text"),
        date=mark(chat.date, "a date"),
        messages=tuple(marked(m, n) for n, m in enumerate(chat.messages)),
    )
    text = _run(template, _inputs(probe, template))
    dropped = [what for word, what in marks.items() if word not in text]
    dropped += [f"the tool {tool.name!r}" for tool in chat.tools if not re.search(rf"\b{re.escape(tool.name)}\b", text)]
    answering = {m.name for m in chat.messages if m.role == "tool" and m.name}
    if chat.reasoning is not None and "reasoning_effort" not in template:
        dropped.append("an effort of reasoning")
    dropped += [f"an answer of the tool {name!r}" for name in sorted(answering) if name not in text]
    if dropped:
        raise PromptError(
            f"the model's chat template has no place for {', '.join(dropped)}. Leave it out, or give token ids."
        )
