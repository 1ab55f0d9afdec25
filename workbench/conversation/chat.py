"""Makes a Chat from a question, its history and its tools, and validates them.

Independent of tokenizers and chat templates.
"""

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import fields, replace
from typing import Any, Literal

from workbench.checks import check_flag, check_items
from workbench.conversation.messages import Chat, Message, Tool
from workbench.conversation.parse import CONSTRAIN
from workbench.conversation.token_ids import token_id
from workbench.conversation.tokenizer import valid_unicode
from workbench.errors import PromptError
from workbench.text import shown, visible
from workbench.traces.spans import NO_TOOL
from workbench.untrusted import parse_json

Effort = Literal["low", "medium", "high"]
EFFORTS = ("low", "medium", "high")
BUILTIN = ("browser", "python")
HISTORY_ROLES = ("user", "assistant", "tool")
EXTRA_KEYS = {  # optional keys of a message in `history`, besides role, content and ids
    "user": (),
    "assistant": ("channel", "recipient", "content_type", "thinking"),
    "tool": ("channel", "recipient", "content_type", "name"),
}
NAME = re.compile(r"[\w.\-]+")  # name of a tool in `tools`
WORD = re.compile(r"[^\s<|>=]+")  # channel, recipient or content type in a header
GENERATED_WORD = re.compile(r"\S+")  # the same in a message with ids, which a model may have generated


def chat(
    user: str | None,
    *,
    system: str | None = None,
    developer: str | None = None,
    tools: Sequence[Mapping[str, Any] | str] | None = None,
    reasoning: Effort | None = None,
    history: Iterable[Mapping[str, Any]] | None = None,
    date: str | None = None,
    keep_thoughts: bool = False,
) -> Chat:
    """A prompt for any gpt-oss model: a question with its system and developer messages, tools, and history.

    Args:
        user: the question. None: the model continues `history`, for example after a tool's result.
        system: replaces "You are ChatGPT, …" in the system message; instructions belong in `developer`.
        developer: instructions.
        tools: functions in OpenAI's format, `{"name": …, "description": …, "parameters": …}`, and the built-in tools
            "python" and "browser".
        reasoning: the effort, "low", "medium" or "high". None: the default, which is medium for gpt-oss. For a model
            with a chat template of its own, the template sets it.
        history: the earlier messages, each a dict with `role` ("user", "assistant" or "tool") and `content`, and
            optionally `channel`, `recipient` (of a tool call), `name` (of the tool that wrote the message),
            `content_type` and `thinking`. `wb.history(trace)` returns those of a trace. A missing key gets the value
            that gpt-oss would write; None leaves it out of the header. A tool name without a dot means a function:
            "f" becomes "functions.f".
        date: the date in the prompt, as text. None: no date, so that a chat renders the same on every day.
        keep_thoughts: whether to include the analysis of earlier turns. gpt-oss was trained without it: analysis
            messages before the last final message are left out. Only an unfinished turn (tool calls and their results)
            keeps its analysis.

    Raises:
        PromptError: the question is empty, the role or effort is unknown, or a tool or message has a wrong format.

    >>> ask = chat("And 3+4?", reasoning="high", history=[{"role": "user", "content": "What is 1+1?"},
    ...                                                   {"role": "assistant", "content": "It is 2."}])
    >>> [(m.role, m.channel) for m in ask.messages]
    [('user', None), ('assistant', 'final'), ('user', None)]
    """
    keep_thoughts = check_flag("keep_thoughts", keep_thoughts)
    parsed_tools = _tools(() if tools is None else tools)
    functions = {tool.name for tool in parsed_tools if not tool.builtin}
    if isinstance(history, str | Mapping):
        raise PromptError(f"history must be a list of messages, got {shown(history)}")
    history = () if history is None else check_items("history", history, low=0)
    messages = [_message(raw, number, functions) for number, raw in enumerate(history)]
    if user is not None:
        messages.append(Message("user", _text(user, "the question")))
    elif not messages:
        raise PromptError("the chat is empty: give a question or a history")
    return Chat(
        tuple(messages),
        None if system is None else _text(system, "system"),
        None if developer is None else _text(developer, "developer"),
        parsed_tools,
        _effort(reasoning),
        None if date is None else _text(date, "date"),
        keep_thoughts,
    )


def with_reasoning(prompt: Any, reasoning: Effort | None) -> Any:
    """The question or Chat with this effort; for None, the prompt itself.

    Raises PromptError if the effort could have no effect: for a Chat with another effort, and for token ids.
    """
    if reasoning is None:
        return prompt
    if isinstance(prompt, str):
        return chat(prompt, reasoning=reasoning)
    if not isinstance(prompt, Chat):
        raise PromptError(
            f"reasoning={reasoning!r} is for a question or a wb.chat(…), but this prompt is {type(prompt).__name__}: "
            "its tokens already contain the effort. Leave reasoning out."
        )
    if prompt.reasoning not in (None, reasoning):
        raise PromptError(
            f"this chat already has reasoning={prompt.reasoning!r}, got reasoning={reasoning!r}. Leave one of them out."
        )
    return replace(prompt, reasoning=_effort(reasoning))


def _effort(reasoning: Any) -> str | None:
    if reasoning is not None and not (isinstance(reasoning, str) and reasoning in EFFORTS):
        raise PromptError(f"reasoning must be {_one_of(EFFORTS)}, got {shown(reasoning)}")
    return reasoning


def as_chat(prompt: "str | Chat") -> Chat:
    """The Chat itself; a str becomes a Chat with this question."""
    return prompt if isinstance(prompt, Chat) else chat(prompt)


def _text(value: Any, what: str) -> str:
    if not isinstance(value, str):
        raise PromptError(f"{what} must be text, got {type(value).__name__}")
    if not value.strip():
        raise PromptError(f"{what} is empty; leave it out, or give some text")
    return valid_unicode(value)


def _name(value: Any, what: str) -> str:
    if not isinstance(value, str) or not NAME.fullmatch(value):
        raise PromptError(f"{what} must be one word of letters, digits, '_', '-' and '.', got {shown(value)}")
    return value


def _word(value: Any, what: str, pattern: re.Pattern[str] = WORD) -> str:
    if not isinstance(value, str) or not pattern.fullmatch(value):
        raise PromptError(f"{what} must be one word without spaces, '=', '<', '|' or '>', got {shown(value)}")
    return valid_unicode(value)


def _message(raw: Any, number: int, functions: set[str]) -> Message:
    """One message of `history`; missing parts of its header get the values that gpt-oss would write."""
    what = f"history[{number}]"
    known = [f.name for f in fields(Message)]
    if not isinstance(raw, Mapping):
        raise PromptError(f"{what} must be a dict with 'role' and 'content', got {type(raw).__name__}")
    if unknown := sorted(map(shown, raw.keys() - set(known))):
        raise PromptError(f"{what} has unknown keys {', '.join(unknown[:5])}; a message may have: {', '.join(known)}")
    role = raw.get("role")
    if role not in HISTORY_ROLES:
        hint = "; pass system and developer text as arguments of chat" if role in ("system", "developer") else ""
        raise PromptError(f"{what} has role {shown(role)}, must be {_one_of(HISTORY_ROLES)}{hint}")
    ids = None if raw.get("ids") is None else _ids(raw["ids"], f"the ids of {what}")
    content = raw.get("content")
    if isinstance(content, str) and (role == "tool" or ids is not None):
        content = valid_unicode(content)  # the result of a tool may be empty, and so may a generated message
    else:
        content = _text(content, f"the content of {what}")
    for key in set(known) - {"role", "content", "ids"} - set(EXTRA_KEYS[role]):
        if raw.get(key) is not None:
            hint = "; the tool of a call is its 'recipient'" if (role, key) == ("assistant", "name") else ""
            raise PromptError(f"{what} has {key!r}, which a message of role {role!r} cannot have{hint}")
    if role == "user":
        return Message(role, content, ids=ids)
    pattern = WORD if ids is None else GENERATED_WORD
    channel, recipient = (
        None if raw.get(key) is None else _word(raw[key], f"the {key} of {what}", pattern)
        for key in ("channel", "recipient")
    )
    content_type = (
        None if raw.get("content_type") is None else _type(raw["content_type"], f"the content_type of {what}", pattern)
    )
    name = _word(raw.get("name"), f"the name of {what} (the tool that wrote it)", pattern) if role == "tool" else None
    if ids is None:  # a message with ids keeps its names; otherwise a function may lack its namespace
        recipient, name = _full_name(recipient, functions), _full_name(name, functions)
    if role == "tool":
        if "recipient" not in raw:
            recipient = "assistant"
        if "channel" not in raw:
            channel = _channel_of(name or "")
        return Message(role, content, channel, recipient, name, content_type, ids=ids)
    is_call = recipient not in NO_TOOL
    if "channel" not in raw:
        channel = _channel_of(recipient or "") if is_call else "final"
    if "content_type" not in raw and is_call:
        content_type = "code" if _is_builtin(recipient or "") else f"{CONSTRAIN}json"
    thinking = None if raw.get("thinking") is None else _text(raw["thinking"], f"the thinking of {what}")
    return Message(role, content, channel, recipient, None, content_type, thinking, ids)


def _ids(value: Any, what: str) -> tuple[int, ...]:
    if isinstance(value, str | bytes | bytearray | Mapping | Set) or not isinstance(value, Iterable):
        raise PromptError(f"{what} must be token ids (a list of whole numbers), got {shown(value)}")
    ids = []
    for number, entry in enumerate(value):
        token = token_id(entry)
        if token is None:
            raise PromptError(f"{what} must be token ids (whole numbers), but entry {number} is {shown(entry)}")
        ids.append(token)
    return tuple(ids)


def _type(value: Any, what: str, pattern: re.Pattern[str]) -> str:
    """A content type as in a header: one word, or `<|constrain|>` and one word."""
    text = str(value)
    word = _word(text.removeprefix(CONSTRAIN).strip(), what, pattern)
    return CONSTRAIN + word if text.startswith(CONSTRAIN) else word


def _full_name(name: str | None, functions: set[str]) -> str | None:
    """A function's name with its namespace; built-in tools and names with a namespace stay unchanged."""
    if name is None or (name not in functions and ("." in name or name in (*BUILTIN, *NO_TOOL))):
        return name
    return f"functions.{name}"


def _is_builtin(tool: str) -> bool:
    return tool.partition(".")[0] in BUILTIN


def _channel_of(tool: str) -> str:
    """The channel of a tool: built-in tools are called on analysis, functions on commentary."""
    return "analysis" if _is_builtin(tool) else "commentary"


def _tools(raw_tools: Any) -> tuple[Tool, ...]:
    if isinstance(raw_tools, str | Mapping):
        raise PromptError(f"tools must be a list, even for a single tool, got {shown(raw_tools)}")
    listed = check_items("tools", raw_tools, low=0)
    tools = tuple(_tool(raw, f"tools[{number}]") for number, raw in enumerate(listed))
    counts = Counter(tool.name for tool in tools)
    if repeated := sorted(name for name, count in counts.items() if count > 1):
        raise PromptError(f"tools contains {repeated[0]!r} twice; names must be unique")
    return tools


def _tool(raw: Any, what: str) -> Tool:
    if isinstance(raw, str):
        if raw not in BUILTIN:
            raise PromptError(
                f"{what} is {shown(raw)}, which is not a built-in tool ({' and '.join(BUILTIN)} are). "
                'Describe a function as {"name": …, "description": …, "parameters": …}.'
            )
        return Tool(raw, builtin=True)
    if isinstance(raw, Mapping) and raw.get("type") == "function" and "function" in raw:
        raw = raw["function"]
    if not isinstance(raw, Mapping) or "name" not in raw:
        raise PromptError(f"{what} must be 'python', 'browser' or a dict with 'name', got {shown(raw)}")
    description, parameters = raw.get("description") or "", raw.get("parameters")
    if not isinstance(description, str):
        raise PromptError(f"the description of {what} must be text, got {type(description).__name__}")
    if parameters is not None and not isinstance(parameters, Mapping):
        raise PromptError(f"the parameters of {what} must be a JSON schema (a dict), got {type(parameters).__name__}")
    schema = None if parameters is None else _schema(parameters, what)
    name = _name(raw["name"], f"the name of {what}").removeprefix("functions.")
    return Tool(name, valid_unicode(description), schema)


def _schema(parameters: Mapping[str, Any], what: str) -> str:
    """The JSON schema as text. It must be small enough to be read again, by both renderers."""
    try:
        schema = valid_unicode(json.dumps(parameters, ensure_ascii=False, allow_nan=False))
    except PromptError:
        raise
    except (TypeError, ValueError, RecursionError) as error:
        reason = "they are nested too deep" if isinstance(error, RecursionError) else str(error)
        raise PromptError(f"the parameters of {what} are not JSON: {visible(reason)[:200]}") from None
    parse_json(schema, f"the schema in the parameters of {what}", PromptError)
    return schema


def _one_of(words: Sequence[str]) -> str:
    return f"{', '.join(map(repr, words[:-1]))} or {words[-1]!r}"
