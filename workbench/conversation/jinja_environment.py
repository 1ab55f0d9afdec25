"""The jinja environment of chat templates in transformers: its filters, functions, tags and sandbox.

The sandbox keeps a template away from Python's internals, and does not bound its time and memory. `template_process.py`
does: it runs this file in a process of its own, so nothing of workbench is imported here.
"""

import json
import re
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import datetime
from functools import lru_cache
from typing import Any

from jinja2 import Template, TemplateError, nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace


def rendered(template: str, inputs: Sequence[dict[str, Any]], plain: str = "") -> list[str]:
    """The texts that the template renders from each of the inputs.

    `strftime_now` returns the date of the inputs, if they have one, else one and the same time.
    """
    now = datetime.now()
    compiled = _compiled(template, plain)
    return [compiled.render(variables | {"strftime_now": _clock(variables.get("date"), now)}) for variables in inputs]


@lru_cache(maxsize=8)
def _compiled(template: str, plain: str) -> Template:
    return environment(plain).from_string(template)


def environment(plain: str = "") -> ImmutableSandboxedEnvironment:
    """A sandbox for a chat template.

    `plain`: characters that `tojson` never escapes, not even with `ensure_ascii`.

    >>> environment().from_string("{{ ['é', 1] | tojson }}{% generation %}!{% endgeneration %}").render()
    '["é", 1]!'
    """
    env = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, "jinja2.ext.loopcontrols"]
    )
    env.filters["tojson"] = _tojson(plain)
    env.globals["raise_exception"] = _raise_exception
    env.globals["dict"] = _Dict()
    env.globals["namespace"] = _Namespace
    return env


class Generation(Extension):
    """`{% generation %}` marks the assistant's text for training; here it has no effect on the text.

    As in transformers, it is a block with its own scope: a variable that is set inside is not visible outside.
    """

    tags = {"generation"}  # noqa: RUF012  jinja declares it as an instance attribute

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_unchanged"), [], [], body).set_lineno(line)

    def _unchanged(self, caller: Any) -> str:
        return caller()


class _Dict:
    """`dict(…)` and `dict.fromkeys(…)`, without access to any other attribute of Python's type."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict:
        return dict(*args, **kwargs)

    def fromkeys(self, *args: Any) -> dict:
        return dict.fromkeys(*args)


class _Namespace(Namespace):
    """jinja's namespace, without names that begin with an underscore: they give access to Python's internals."""

    def __init__(self, /, *args: Any, **kwargs: Any) -> None:  # a template may pass `self=…`
        values = dict(*args, **kwargs)
        for name in values:
            _Namespace._check(name)
        super().__init__(values)

    def __setitem__(self, name: str, value: Any) -> None:
        _Namespace._check(name)
        super().__setitem__(name, value)

    @staticmethod
    def _check(name: Any) -> None:
        if isinstance(name, str) and name.startswith("_"):
            raise SecurityError(f"a name in a namespace must not begin with an underscore, got {name!r}")


def _clock(date: str | None, now: datetime) -> Callable[[str], str]:
    return lambda fmt: date or now.strftime(fmt)


def _raise_exception(message: str) -> None:
    raise TemplateError(message)


def _tojson(plain: str) -> Callable[..., str]:
    """The filter `tojson` with transformers' options; jinja's own would escape HTML."""

    def escaped(match: re.Match[str]) -> str:
        return match[0] if match[0] in plain else json.dumps(match[0])[1:-1]

    def tojson(value: Any, ensure_ascii=False, indent=None, separators=None, sort_keys=False) -> str:
        text = json.dumps(value, ensure_ascii=False, indent=indent, separators=separators, sort_keys=sort_keys)
        return re.sub(r"[^\x00-~]", escaped, text) if ensure_ascii else text

    return tojson


def serve() -> None:
    """Renders chats from standard input to standard output, for `template_process.py`, until the input ends.

    A chat is two messages: the limits, and the arguments of `rendered`. The answer is one: the texts, or an error.
    """
    while (limits := _received()) is not None:
        bounds = json.loads(limits)
        _limit_this_process(bounds["memory"], bounds["seconds"])
        chat = _received()
        if chat is None:
            return
        try:
            answer = _answer(chat, bounds["output"])
        except BaseException as error:  # whatever a template raises, also MemoryError and RecursionError
            answer = json.dumps({"error": _reason(error)}).encode()
        sys.stdout.buffer.write(len(answer).to_bytes(8, "big") + answer)
        sys.stdout.buffer.flush()


def _limit_this_process(memory: int, seconds: int) -> None:
    """The parent measures the time; the limit here is for a process that has lost its parent."""
    import resource

    for limit, value in ((resource.RLIMIT_AS, memory), (resource.RLIMIT_CPU, int(time.process_time()) + 2 * seconds)):
        with suppress(ValueError, OSError):  # macOS does not have the first, and a lower one may be set already
            resource.setrlimit(limit, (value, resource.getrlimit(limit)[1]))


def _answer(chat: bytes, max_output: int) -> bytes:
    texts = rendered(*json.loads(chat))
    if sum(map(len, texts)) > max_output:
        raise MemoryError
    return json.dumps({"texts": texts}).encode()


def _reason(error: BaseException) -> str:
    if isinstance(error, MemoryError):
        return "it needs more memory, or writes more text, than it may"
    try:
        return str(error)[:1000] or type(error).__name__
    except Exception:  # the text of the error is itself too much
        return type(error).__name__


def _received() -> bytes | None:
    length = sys.stdin.buffer.read(8)
    return sys.stdin.buffer.read(int.from_bytes(length, "big")) if len(length) == 8 else None
