"""A Chat by the model's own chat template (jinja), in a sandbox. What was said cannot become a control token.

All control tokens of gpt-oss hold a `|`. While the template runs, each `|` in what was said is a private-use
character that occurs nowhere else, so a control token in the result was written by the template. The result is split
there; each piece in between gets its `|` back and is encoded as plain text.
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
    """The chat template of a checkpoint; several by their names, and None if there is none.

    Looked for as transformers looks: chat_template.jinja and additional_chat_templates/*.jinja, and only if there are
    none `chat_template` in tokenizer_config.json. Raises CheckpointError for a file that cannot be read.

    >>> read_template(Path("data/pocket"))[:8]
    '{%- set '
    """
    files = {"default": folder / "chat_template.jinja"}
    files |= {path.stem: path for path in sorted((folder / "additional_chat_templates").glob("*.jinja"))}
    found = {name: _text_of(path) for name, path in files.items() if path.is_file()}
    if not found:
        found = _in_settings(folder / "tokenizer_config.json")
    return found["default"] if found.keys() == {"default"} else found or None


def chosen_template(template: Template, *, tools: bool) -> str:
    """Of several templates the one that transformers would take: "tool_use" where there are tools, else "default"."""
    if isinstance(template, str):
        return template
    for name in ("tool_use", "default") if tools else ("default",):
        if name in template:
            return template[name]
    raise PromptError(
        f"this model has the chat templates {', '.join(map(repr, sorted(template)))}, and none is named 'default'. "
        "Set model.template to the text of one of them, or give token ids."
    )


def render(chat: Chat, tokenizer: Tokenizer, template: Template) -> list[int]:
    """The ids that the template gives, up to the assistant's answer.

    Raises PromptError if the template fails, or leaves out something that was said.
    """
    template = chosen_template(template, tools=any(not tool.builtin for tool in chat.tools))
    _refuse_what_it_drops(chat, tokenizer, template)
    inputs = _inputs(chat, template)
    away, back = _seams(tokenizer, template + json.dumps([inputs, tokenizer.roles], ensure_ascii=False))
    plain = "".join(map(chr, back))
    text = _run(template, _put_away(inputs, away), tokenizer.roles, plain)
    ids: list[int] = []
    for part in tokenizer.split(text):
        ids += tokenizer.encode(part.translate(back)) if isinstance(part, str) else [part]
    return ids


def _text_of(path: Path) -> str:
    try:
        data = path.read_bytes()
        refuse_lfs_pointer(data, str(path))
        return data.decode("utf-8").replace("\r\n", "\n").replace("\r", "\n")  # as Python reads a text file
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}. Copy it again from the checkpoint.") from None


def _in_settings(path: Path) -> dict[str, str]:
    """`chat_template` of a tokenizer_config.json: a text, or a list of named ones."""
    value = read_settings(path).get("chat_template")
    if value is None:
        return {}
    if isinstance(value, str):
        return {"default": value}
    try:
        found = {entry["name"]: entry["template"] for entry in value}
    except (TypeError, KeyError, IndexError):
        found = {}
    if not found or not all(isinstance(text, str) for pair in found.items() for text in pair):
        raise CheckpointError(
            f"{path}: chat_template must be a text, or a list of objects with 'name' and 'template'. "
            f"Copy the file again from the checkpoint, or put the template beside it as chat_template.jinja."
        )
    return found


def _seams(tokenizer: Tokenizer, text: str) -> tuple[dict[str, str], dict[int, str | None]]:
    """What stands for the parts of control tokens while the template runs, and how to undo it.

    A bar becomes a private-use character that `text` does not hold. A control token without one (`[MASK]`, `</s>`) is
    pulled apart by another where it stands as a whole; one of a single character is put away like the bar.
    """
    free = (code for code in range(0xE000, 0xF8FF) if chr(code) not in text)
    seam = next(free)
    back: dict[int, str | None] = {seam: None}
    away = {}
    for name in tokenizer.special:
        if BAR not in name and len(name) > 1:
            away[name] = name[0] + chr(seam) + name[1:]
    for character in (BAR, *(name for name in tokenizer.special if len(name) == 1 and name != BAR)):
        private = next(free)
        away[character], back[private] = chr(private), character
    return away, back


def _put_away(value: Any, away: Mapping[str, str]) -> Any:
    """The same value with every string's parts replaced as `away` says."""
    if isinstance(value, str):
        for part, instead in away.items():
            value = value.replace(part, instead)
        return value
    if isinstance(value, list):
        return [_put_away(item, away) for item in value]
    if isinstance(value, dict):
        return {_put_away(key, away): _put_away(item, away) for key, item in value.items()}
    return value


def _run(template: str, inputs: Mapping[str, Any], roles: Mapping[str, str], plain: str = "") -> str:
    """The template's text, from the variables that transformers gives to chat templates."""
    variables = {"tools": None, "documents": None, **roles, **inputs, "add_generation_prompt": True}
    try:
        return environment(inputs.get("date"), plain).from_string(template).render(variables)
    except (TemplateError, ArithmeticError, LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise PromptError(f"the model's chat template cannot render this chat: {error}") from error


def _inputs(chat: Chat, template: str) -> dict[str, Any]:
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


def _message(message: Message) -> dict[str, Any]:
    """A message as transformers has it: no channels, and a call is a `tool_calls`."""
    if message.role == "user":
        return {"role": "user", "content": message.content}
    if message.role == "tool":
        return {"role": "tool", "name": (message.name or "").removeprefix("functions."), "content": message.content}
    if message.recipient is None:
        if message.channel != "final":
            raise PromptError(f"the model's chat template has no place for a message on channel {message.channel!r}")
        made = {"role": "assistant", "content": message.content}
    else:
        try:
            arguments = json.loads(message.content)
        except ValueError:
            arguments = message.content
        call = {"name": message.recipient.removeprefix("functions."), "arguments": arguments}
        made = {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": call}]}
    if message.thinking is None:
        return made
    return {"thinking": message.thinking, **made, "reasoning_content": message.thinking}  # templates read either


def _function(tool: Tool) -> dict[str, Any]:
    parameters = {} if tool.parameters is None else {"parameters": json.loads(tool.parameters)}
    return {"type": "function", "function": {"name": tool.name, "description": tool.description, **parameters}}


def _refuse_what_it_drops(chat: Chat, tokenizer: Tokenizer, template: str) -> None:
    """Raises PromptError for what the template would silently leave out.

    Texts are replaced by words that occur nowhere else, and looked for; tools must be there by name.
    """
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
    text = _run(template, _inputs(probe, template), tokenizer.roles)
    dropped = [what for word, what in marks.items() if word not in text]
    dropped += [f"the tool {tool.name!r}" for tool in chat.tools if not re.search(rf"\b{re.escape(tool.name)}\b", text)]
    answering = {m.name for m in chat.messages if m.role == "tool" and m.name}
    if chat.reasoning is not None and "reasoning_effort" not in template:
        dropped.append("an effort of reasoning")
    silent = [name for name in sorted(answering) if name.removeprefix("functions.") not in text]
    dropped += [f"an answer of the tool {name!r}" for name in silent]
    if dropped:
        raise PromptError(
            f"the model's chat template has no place for {', '.join(dropped)}. Leave it out, or give token ids."
        )
