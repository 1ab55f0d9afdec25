"""Makes a Chat of a question, its history and its tools, and checks each of them. Knows no tokenizer or template."""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields, replace
from typing import Any

from workbench.conversation.messages import Chat, Message, Tool
from workbench.conversation.parse import CONSTRAIN
from workbench.conversation.tokenizer import valid
from workbench.errors import PromptError
from workbench.traces.spans import NO_TOOL

EFFORTS = ("low", "medium", "high")
BUILTIN = ("browser", "python")
HISTORY_ROLES = ("user", "assistant", "tool")
EXTRA_KEYS = {  # what a message of history may say besides role, content and ids
    "user": (),
    "assistant": ("channel", "recipient", "content_type", "thinking"),
    "tool": ("channel", "recipient", "content_type", "name"),
}
NAME = re.compile(r"[\w.\-]+")  # of a tool that is described
WORD = re.compile(r"[^\s<|>=]+")  # of a header: channel, recipient, content type
WRITTEN = re.compile(r"\S+")  # the same in a message that a model wrote


def chat(
    user: str | None,
    *,
    system: str | None = None,
    developer: str | None = None,
    tools: Sequence[Mapping[str, Any] | str] | None = None,
    reasoning: str | None = None,
    history: Iterable[Mapping[str, Any]] | None = None,
    date: str | None = None,
    keep_thoughts: bool = False,
) -> Chat:
    """A question, with all that stands around it; any gpt-oss model can be asked it.

    Args:
        user: the question; None asks for the next answer to `history`, say after a tool's result.
        system: replaces "You are ChatGPT, …" in the system message; instructions belong into `developer`.
        developer: instructions.
        tools: functions in OpenAI's form, `{"name": …, "description": …, "parameters": …}`, and "python" or "browser".
        reasoning: the effort, "low", "medium" or "high". None: the model's own default, which is medium for gpt-oss,
            and what the chat template says for a model with one.
        history: the messages before this one, each a dict with `role` ("user", "assistant" or "tool") and `content`,
            and where they apply `channel`, `recipient` (a tool call), `name` (the tool that answers), `content_type`
            and `thinking`; `wb.history(trace)` gives those of a run. A key that is left out is what gpt-oss writes,
            None says that the header has none. A tool's name without a dot is a function's: "f" is "functions.f".
        date: shown to the model as written; without it none is shown, so that a chat renders the same tomorrow.
        keep_thoughts: also show the thoughts of earlier turns. gpt-oss was trained without them: what is on the
            analysis channel before the last final message is left out, and only a turn that is under way (calls of
            tools and their results) keeps its own.

    >>> ask = chat("And 3+4?", reasoning="high", history=[{"role": "user", "content": "What is 1+1?"},
    ...                                                   {"role": "assistant", "content": "It is 2."}])
    >>> [(m.role, m.channel) for m in ask.messages]
    [('user', None), ('assistant', 'final'), ('user', None)]

    Raises PromptError for an empty question, an unknown role or effort, and tools or messages of another form.
    """
    described = _tools(tools or ())
    functions = {tool.name for tool in described if not tool.builtin}
    messages = [_message(raw, number, functions) for number, raw in enumerate(history or ())]
    if user is not None:
        messages.append(Message("user", _text(user, "the question")))
    elif not messages:
        raise PromptError("there is nothing to answer: give a question, or a history")
    return Chat(
        tuple(messages),
        None if system is None else _text(system, "system"),
        None if developer is None else _text(developer, "developer"),
        described,
        _effort(reasoning),
        None if date is None else _text(date, "date"),
        keep_thoughts,
    )


def with_reasoning(prompt: Any, reasoning: str | None) -> Any:
    """A question or a Chat with that effort; None leaves a prompt as it is.

    Raises PromptError if the effort could have no effect: for a Chat that says another one, and for token ids.
    """
    if reasoning is None:
        return prompt
    if isinstance(prompt, str):
        return chat(prompt, reasoning=reasoning)
    if not isinstance(prompt, Chat):
        raise PromptError(
            f"reasoning={reasoning!r} is for a question or a wb.chat(…); this prompt is {type(prompt).__name__}, and "
            "its system message says its effort already. Leave reasoning out."
        )
    if prompt.reasoning not in (None, reasoning):
        raise PromptError(
            f"this chat has reasoning={prompt.reasoning!r}, and reasoning={reasoning!r} is asked for as well"
        )
    return replace(prompt, reasoning=_effort(reasoning))


def _effort(reasoning: Any) -> str | None:
    if reasoning is not None and reasoning not in EFFORTS:
        raise PromptError(f"reasoning={reasoning!r} is not an effort of gpt-oss: choose {_one_of(EFFORTS)}")
    return reasoning


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


def _word(value: Any, what: str, form: re.Pattern[str] = WORD) -> str:
    if not isinstance(value, str) or not form.fullmatch(value):
        raise PromptError(f"{what} must be one word without white space, '=', '<', '|' and '>', got {value!r}")
    return valid(value)


def _message(raw: Any, number: int, functions: set[str]) -> Message:
    """One entry of `history`, its header completed by what gpt-oss would have written."""
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
    ids = None if raw.get("ids") is None else _ids(raw["ids"], f"the ids of {what}")
    content = raw.get("content")
    if isinstance(content, str) and (role == "tool" or ids is not None):
        content = valid(content)  # a tool may well have nothing to say, and a model write nothing
    else:
        content = _text(content, f"the content of {what}")
    for key in set(known) - {"role", "content", "ids"} - set(EXTRA_KEYS[role]):
        if raw.get(key) is not None:
            hint = "; a call names its tool as 'recipient'" if (role, key) == ("assistant", "name") else ""
            raise PromptError(f"{what} has {key!r}, which a message of role {role!r} has not{hint}")
    if role == "user":
        return Message(role, content, ids=ids)
    form = WORD if ids is None else WRITTEN
    channel, recipient = (
        None if raw.get(key) is None else _word(raw[key], f"the {key} of {what}", form)
        for key in ("channel", "recipient")
    )
    content_type = (
        None if raw.get("content_type") is None else _type(raw["content_type"], f"the content_type of {what}", form)
    )
    name = _word(raw.get("name"), f"the name of {what} (which tool answers?)", form) if role == "tool" else None
    if ids is None:  # what has been written keeps its names; elsewhere a function may be named without its namespace
        recipient, name = _full_name(recipient, functions), _full_name(name, functions)
    if role == "tool":
        if "recipient" not in raw:
            recipient = "assistant"
        if "channel" not in raw:
            channel = _channel_of(name or "")
        return Message(role, content, channel, recipient, name, content_type, ids=ids)
    called = recipient not in NO_TOOL
    if "channel" not in raw:
        channel = _channel_of(recipient or "") if called else "final"
    if "content_type" not in raw and called:
        content_type = "code" if _is_builtin(recipient or "") else f"{CONSTRAIN}json"
    thinking = None if raw.get("thinking") is None else _text(raw["thinking"], f"the thinking of {what}")
    return Message(role, content, channel, recipient, None, content_type, thinking, ids)


def _ids(value: Any, what: str) -> tuple[int, ...]:
    try:
        return tuple(int(token) for token in value)
    except (TypeError, ValueError):
        raise PromptError(f"{what} must be token ids, got {value!r}") from None


def _type(value: Any, what: str, form: re.Pattern[str]) -> str:
    """A content type as it stands in a header: one word, or one after `<|constrain|>`."""
    text = str(value)
    word = _word(text.removeprefix(CONSTRAIN).strip(), what, form)
    return CONSTRAIN + word if text.startswith(CONSTRAIN) else word


def _full_name(name: str | None, functions: set[str]) -> str | None:
    """A function's name with its namespace; built-in tools, and names that have one, as they are."""
    if name is None or (name not in functions and ("." in name or name in (*BUILTIN, *NO_TOOL))):
        return name
    return f"functions.{name}"


def _is_builtin(tool: str) -> bool:
    return tool.partition(".")[0] in BUILTIN


def _channel_of(tool: str) -> str:
    """Harmony's own tools are called while thinking, functions in the commentary."""
    return "analysis" if _is_builtin(tool) else "commentary"


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
    name = _name(raw["name"], f"the name of {what}").removeprefix("functions.")
    return Tool(name, valid(description), schema)


def _one_of(words: Sequence[str]) -> str:
    return f"{', '.join(map(repr, words[:-1]))} or {words[-1]!r}"
