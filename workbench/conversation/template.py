"""Renders a Chat with the model's chat template (jinja), in a sandbox. Text of messages never becomes a control token.

All control tokens of gpt-oss contain a `|`. Before the template runs, each `|` in the chat is replaced by a private-use
character that occurs nowhere else. Every control token in the rendered text therefore comes from the template. The text
is split at the control tokens; in each piece between them the `|` is restored, and the piece is encoded as plain text.

A template may only place the texts of a chat, not change them: `text_markers.py` compares the rendered text with them.
"""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

from workbench.conversation import jinja_environment, template_process
from workbench.conversation.messages import Chat, Message, Tool
from workbench.conversation.text_markers import TextMarkers, no_place_for
from workbench.conversation.tokenizer import Tokenizer, read_settings, refuse_lfs_pointer
from workbench.errors import CheckpointError, PromptError
from workbench.text import size_text
from workbench.untrusted import parse_json, read_text

Template = str | Mapping[str, str]  # one template, or several by name
BAR = "|"
MAX_BYTES = 1 << 20  # of a template
MAX_TEMPLATES = 100
MAX_NAMES_SEARCHED = 50  # tools whose name is no word of the rendered text, and is searched in its words
# sha256 of templates that are known to take linear time and memory, and are rendered in this process: pocket's.
KNOWN = frozenset(("7fb18746c3fdeb1d28bdd1cae49f339769527fc850babe36b77c0eaadd34c0a4",))
# Characters without a meaning, and more of them than a text is likely to use up.
PRIVATE = (range(0xE000, 0xF900), range(0xF0000, 0xFFFFE), range(0x100000, 0x10FFFE))


def read_template(folder: Path) -> Template | None:
    """The chat template of a checkpoint: a str, a dict by name if there are several, or None.

    The sources are those of transformers: chat_template.jinja and additional_chat_templates/*.jinja, and without these
    files `chat_template` in tokenizer_config.json. Raises CheckpointError for a file that cannot be read.

    >>> read_template(Path("data/pocket"))[:8]
    '{%- set '
    """
    files = {"default": folder / "chat_template.jinja"}
    more = sorted(islice((folder / "additional_chat_templates").glob("*.jinja"), MAX_TEMPLATES + 1))
    if len(more) > MAX_TEMPLATES:
        raise CheckpointError(f"{more[0].parent} has more than {MAX_TEMPLATES} chat templates. Remove what is not one.")
    files |= {path.stem: path for path in more}
    templates = {name: _text_of(path) for name, path in files.items() if path.exists() or path.is_symlink()}
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

    The template renders the chat twice: once as it is, and once with a marker before and after each of its texts, which
    shows where the template places them.

    Raises PromptError if the template fails, takes too long, or leaves out or changes a part of the chat.
    """
    template = chosen_template(template, tools=any(not tool.builtin for tool in chat.tools))
    if len(template) > MAX_BYTES:
        raise PromptError(
            f"the model's chat template has {size_text(len(template))}, the limit is {size_text(MAX_BYTES)}. "
            "Set model.template to another template, or pass token ids."
        )
    if not template.isascii() and template.encode("utf-8", "replace").decode() != template:
        raise PromptError("the model's chat template is not valid Unicode: it has a lone surrogate. Pass token ids.")
    inputs = _inputs(chat, template)
    private = _private(template + json.dumps([inputs, tokenizer.roles], ensure_ascii=False))
    escapes, unescapes = _escapes(tokenizer, private)
    markers = TextMarkers(private)
    marked = _inputs(_marked(chat, markers), template)
    versions = [{**tokenizer.roles, **_escaped(each, escapes)} for each in (inputs, marked)]
    plain = "".join([*map(chr, unescapes), *markers.characters])
    text, with_markers = _run(template, versions, plain)
    markers.locate(text, with_markers, lambda part: _translated(part, escapes), unescapes)
    _check_names(chat, template, text)
    ids: list[int] = []
    end = 0
    for token, start, stop in tokenizer.control_spans(text):
        markers.check_free(start, stop)
        ids += [*tokenizer.encode(text[end:start].translate(unescapes)), token]
        end = stop
    return ids + tokenizer.encode(text[end:].translate(unescapes))


def _text_of(path: Path) -> str:
    text = read_text(path, CheckpointError, MAX_BYTES)
    refuse_lfs_pointer(text.encode(), str(path))
    return text.replace("\r\n", "\n").replace("\r", "\n")  # as Python does for a text file


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


def _private(text: str) -> Iterator[str]:
    """Private-use characters that do not occur in `text`, each once."""
    used = set(text)
    yield from (character for block in PRIVATE for character in map(chr, block) if character not in used)
    raise PromptError(
        "this chat contains every private-use character of Unicode, and a chat template can be rendered only if some "
        "of them are free. Remove some, or pass token ids."
    )


def _escapes(tokenizer: Tokenizer, private: Iterator[str]) -> tuple[dict[str, str], dict[int, str | None]]:
    """Replacements that hide control tokens in a chat while the template runs, and the translation table to undo them.

    A bar is replaced by a private-use character. A control token without a bar (`[MASK]`, `</s>`) gets another
    private-use character after its first character. A control token of a single character is replaced like the bar.
    """
    separator = next(private)
    unescapes: dict[int, str | None] = {ord(separator): None}
    escapes = {}
    for name in tokenizer.special:
        if BAR not in name and len(name) > 1:
            escapes[name] = name[0] + separator + name[1:]
    for character in (BAR, *(name for name in tokenizer.special if len(name) == 1 and name != BAR)):
        hidden = next(private)
        escapes[character], unescapes[ord(hidden)] = hidden, character
    return escapes, unescapes


def _translated(text: str, escapes: Mapping[str, str]) -> str:
    for part, replacement in escapes.items():
        text = text.replace(part, replacement)
    return text


def _escaped(value: Any, escapes: Mapping[str, str]) -> Any:
    """The same value with the replacements `escapes` in every string."""
    if isinstance(value, str):
        return _translated(value, escapes)
    if isinstance(value, list):
        return [_escaped(item, escapes) for item in value]
    if isinstance(value, dict):
        return {_escaped(key, escapes): _escaped(item, escapes) for key, item in value.items()}
    return value


def _run(template: str, versions: Sequence[Mapping[str, Any]], plain: str) -> list[str]:
    """The texts rendered by the template, with the variables that transformers passes to chat templates."""
    variables = [{"tools": None, "documents": None, **inputs, "add_generation_prompt": True} for inputs in versions]
    if hashlib.sha256(template.encode("utf-8", "replace")).hexdigest() not in KNOWN:
        return template_process.strangers.rendered(template, variables, plain)
    try:
        return jinja_environment.rendered(template, variables, plain)
    except Exception as error:  # as the process of the others
        raise template_process.template_error(str(error)) from error


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
            arguments = parse_json(message.content, "a call", PromptError)
        except PromptError:  # not JSON, as the code that python is called with
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
    parameters = (
        {}
        if tool.parameters is None
        else {"parameters": parse_json(tool.parameters, f"the tool {tool.name!r}", PromptError)}
    )
    return {"type": "function", "function": {"name": tool.name, "description": tool.description, **parameters}}


def _marked(chat: Chat, markers: TextMarkers) -> Chat:
    """The chat with a marker before and after each text."""

    def marked(message: Message, number: int) -> Message:
        what = f"message {number} ({message.role})"
        if message.role == "assistant" and message.recipient is not None:
            return replace(
                message, content=json.dumps(markers.call(message.content, f"the call to {message.recipient}"))
            )
        # a template may drop analysis, as the format does
        optional = message.channel == "analysis" and not chat.keep_thoughts
        return replace(message, content=markers.message(message.content, what, optional=optional))

    return replace(
        chat,
        system=markers.text(chat.system, "system text"),
        developer=markers.text(chat.developer, "developer text"),
        date=markers.date(chat.date, "a date"),
        messages=tuple(marked(m, n) for n, m in enumerate(chat.messages)),
    )


def _check_names(chat: Chat, template: str, text: str) -> None:
    """Raises PromptError for names of tools, and for an effort, that the rendered text does not contain."""
    words = {word for run in re.findall(r"[\w.\-]+", text) for word in (run, run.partition(".")[2], run.strip(".-"))}
    searches = iter(range(MAX_NAMES_SEARCHED))

    def stands(name: str) -> bool:
        return name in words or (next(searches, None) is not None and name in text)

    dropped = [f"the tool {tool.name!r}" for tool in chat.tools if not stands(tool.name)]
    responding = {m.name for m in chat.messages if m.role == "tool" and m.name}
    if chat.reasoning is not None and "reasoning_effort" not in template:
        dropped.append("a reasoning effort")
    missing = [name for name in sorted(responding) if not stands(name.removeprefix("functions."))]
    dropped += [f"a result of the tool {name!r}" for name in missing]
    if dropped:
        raise no_place_for(dropped)
