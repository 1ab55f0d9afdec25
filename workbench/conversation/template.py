"""Renders a Chat with the model's chat template (jinja), in a sandbox. Text of messages never becomes a control token.

All control tokens of gpt-oss contain a `|`. Before the template runs, each `|` in the chat is replaced by a private-use
character that occurs nowhere else. Every control token in the rendered text therefore comes from the template. The text
is split at the control tokens; in each piece between them the `|` is restored, and the piece is encoded as plain text.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from jinja2 import TemplateError

from workbench.conversation.jinja_environment import environment
from workbench.conversation.messages import Chat, Message, Tool
from workbench.conversation.tokenizer import Tokenizer, read_settings, refuse_lfs_pointer
from workbench.errors import CheckpointError, PromptError

Template = str | Mapping[str, str]  # one template, or several by name
BAR = "|"


def read_template(folder: Path) -> Template | None:
    """The chat template of a checkpoint: a str, a dict by name if there are several, or None.

    The sources are those of transformers: chat_template.jinja and additional_chat_templates/*.jinja, and without these
    files `chat_template` in tokenizer_config.json. Raises CheckpointError for a file that cannot be read.

    >>> read_template(Path("data/pocket"))[:8]
    '{%- set '
    """
    files = {"default": folder / "chat_template.jinja"}
    files |= {path.stem: path for path in sorted((folder / "additional_chat_templates").glob("*.jinja"))}
    templates = {name: _text_of(path) for name, path in files.items() if path.is_file()}
    if not templates:
        templates = _in_settings(folder / "tokenizer_config.json")
    return templates["default"] if templates.keys() == {"default"} else templates or None


def chosen_template(template: Template, *, tools: bool) -> str:
    """The template that transformers would choose: "tool_use" if there are tools and it exists, else "default"."""
    if isinstance(template, str):
        return template
    for name in ("tool_use", "default") if tools else ("default",):
        if name in template:
            return template[name]
    raise PromptError(
        f"this model has the chat templates {', '.join(map(repr, sorted(template)))}, but none named 'default'. "
        "Set model.template to the text of one of them, or pass token ids."
    )


def render(chat: Chat, tokenizer: Tokenizer, template: Template) -> list[int]:
    """The ids of the chat rendered by the template, up to the assistant's answer.

    Raises PromptError if the template fails, or leaves out a part of the chat.
    """
    template = chosen_template(template, tools=any(not tool.builtin for tool in chat.tools))
    _refuse_dropped_parts(chat, tokenizer, template)
    inputs = _inputs(chat, template)
    escapes, unescapes = _escapes(tokenizer, template + json.dumps([inputs, tokenizer.roles], ensure_ascii=False))
    plain = "".join(map(chr, unescapes))
    text = _run(template, _escaped(inputs, escapes), tokenizer.roles, plain)
    ids: list[int] = []
    for part in tokenizer.split(text):
        ids += tokenizer.encode(part.translate(unescapes)) if isinstance(part, str) else [part]
    return ids


def _text_of(path: Path) -> str:
    try:
        data = path.read_bytes()
        refuse_lfs_pointer(data, str(path))
        return data.decode("utf-8").replace("\r\n", "\n").replace("\r", "\n")  # as Python does for a text file
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}. Copy it again from the checkpoint.") from None


def _in_settings(path: Path) -> dict[str, str]:
    """The templates by name in `chat_template` of a tokenizer_config.json: a str, or a list of named templates."""
    value = read_settings(path).get("chat_template")
    if value is None:
        return {}
    if isinstance(value, str):
        return {"default": value}
    try:
        templates = {entry["name"]: entry["template"] for entry in value}
    except (TypeError, KeyError, IndexError):
        templates = {}
    if not templates or not all(isinstance(text, str) for pair in templates.items() for text in pair):
        raise CheckpointError(
            f"{path}: chat_template must be a text, or a list of objects with 'name' and 'template'. "
            f"Copy the file again from the checkpoint, or put the template beside it as chat_template.jinja."
        )
    return templates


def _escapes(tokenizer: Tokenizer, text: str) -> tuple[dict[str, str], dict[int, str | None]]:
    """Replacements that hide control tokens in a chat while the template runs, and the translation table to undo them.

    A bar is replaced by a private-use character that does not occur in `text`. A control token without a bar (`[MASK]`,
    `</s>`) gets another private-use character after its first character. A control token of a single character is
    replaced like the bar.
    """
    free = (code for code in range(0xE000, 0xF8FF) if chr(code) not in text)
    separator = next(free)
    unescapes: dict[int, str | None] = {separator: None}
    escapes = {}
    for name in tokenizer.special:
        if BAR not in name and len(name) > 1:
            escapes[name] = name[0] + chr(separator) + name[1:]
    for character in (BAR, *(name for name in tokenizer.special if len(name) == 1 and name != BAR)):
        private = next(free)
        escapes[character], unescapes[private] = chr(private), character
    return escapes, unescapes


def _escaped(value: Any, escapes: Mapping[str, str]) -> Any:
    """The same value with the replacements `escapes` in every string."""
    if isinstance(value, str):
        for part, replacement in escapes.items():
            value = value.replace(part, replacement)
        return value
    if isinstance(value, list):
        return [_escaped(item, escapes) for item in value]
    if isinstance(value, dict):
        return {_escaped(key, escapes): _escaped(item, escapes) for key, item in value.items()}
    return value


def _run(template: str, inputs: Mapping[str, Any], roles: Mapping[str, str], plain: str = "") -> str:
    """The text rendered by the template, with the variables that transformers passes to chat templates."""
    variables = {"tools": None, "documents": None, **roles, **inputs, "add_generation_prompt": True}
    try:
        return environment(inputs.get("date"), plain).from_string(template).render(variables)
    except (TemplateError, ArithmeticError, LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise PromptError(f"the model's chat template cannot render this chat: {error}") from error


def _inputs(chat: Chat, template: str) -> dict[str, Any]:
    """The variables that transformers would pass to the template."""
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
                raise PromptError(
                    "the model's chat template allows only one analysis message before an answer, got two"
                )
            thought = message.content
            continue
        if thought is not None and (message.role != "assistant" or message.thinking is not None):
            raise PromptError(
                "the model's chat template needs an analysis message right before the answer or tool call that "
                "it led to"
            )
        messages.append(_message(message if thought is None else replace(message, thinking=thought)))
        thought = None
    if thought is not None:
        raise PromptError(
            "the model's chat template cannot end with an analysis message: add the answer or tool call after it"
        )
    if functions := [_function(tool) for tool in chat.tools if not tool.builtin]:
        inputs["tools"] = functions
    if builtin := [tool.name for tool in chat.tools if tool.builtin]:
        inputs["builtin_tools"] = builtin
    if chat.date is not None:
        inputs["date"] = chat.date
    return inputs


def _message(message: Message) -> dict[str, Any]:
    """A message in transformers' format: without channels, and with a tool call as `tool_calls`."""
    if message.role == "user":
        return {"role": "user", "content": message.content}
    if message.role == "tool":
        return {"role": "tool", "name": (message.name or "").removeprefix("functions."), "content": message.content}
    if message.recipient is None:
        if message.channel != "final":
            raise PromptError(f"the model's chat template has no place for a message on channel {message.channel!r}")
        converted = {"role": "assistant", "content": message.content}
    else:
        try:
            arguments = json.loads(message.content)
        except ValueError:
            arguments = message.content
        call = {"name": message.recipient.removeprefix("functions."), "arguments": arguments}
        converted = {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": call}]}
    if message.thinking is None:
        return converted
    return {
        "thinking": message.thinking,
        **converted,
        "reasoning_content": message.thinking,
    }  # templates use either


def _function(tool: Tool) -> dict[str, Any]:
    parameters = {} if tool.parameters is None else {"parameters": json.loads(tool.parameters)}
    return {"type": "function", "function": {"name": tool.name, "description": tool.description, **parameters}}


def _refuse_dropped_parts(chat: Chat, tokenizer: Tokenizer, template: str) -> None:
    """Raises PromptError for parts of the chat that the template would silently leave out.

    Each text is replaced by a unique marker, and the rendered text must contain all markers and the names of all tools.
    """
    marks: dict[str, str] = {}  # marker -> the part of the chat that it replaces

    def mark(text: str | None, what: str) -> str | None:
        if not text:
            return text
        marker = f"qx{len(marks)}xq"
        marks[marker] = what
        return marker

    def marked(message: Message, number: int) -> Message:
        what = f"message {number} ({message.role})"
        if message.recipient:
            content = json.dumps(mark("call", f"the call to {message.recipient}"))
            return replace(message, content=content)
        if message.channel == "analysis" and not chat.keep_thoughts:
            return message  # the template may drop analysis, as the format does
        return replace(message, content=mark(message.content, what) or "")

    probe = replace(
        chat,
        system=mark(chat.system, "system text"),
        developer=mark(chat.developer, "developer text"),
        date=mark(chat.date, "a date"),
        messages=tuple(marked(m, n) for n, m in enumerate(chat.messages)),
    )
    text = _run(template, _inputs(probe, template), tokenizer.roles)
    dropped = [what for marker, what in marks.items() if marker not in text]
    dropped += [f"the tool {tool.name!r}" for tool in chat.tools if not re.search(rf"\b{re.escape(tool.name)}\b", text)]
    responding = {m.name for m in chat.messages if m.role == "tool" and m.name}
    if chat.reasoning is not None and "reasoning_effort" not in template:
        dropped.append("a reasoning effort")
    missing = [name for name in sorted(responding) if name.removeprefix("functions.") not in text]
    dropped += [f"a result of the tool {name!r}" for name in missing]
    if dropped:
        raise PromptError(
            f"the model's chat template has no place for {', '.join(dropped)}. Leave it out, or pass token ids."
        )
