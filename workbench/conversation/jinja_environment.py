"""The jinja environment of chat templates in transformers: its filters, functions, tags and sandbox."""

import json
import re
from collections.abc import Callable
from datetime import datetime
from typing import Any

from jinja2 import TemplateError, nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace


def environment(date: str | None = None, plain: str = "") -> ImmutableSandboxedEnvironment:
    """A sandbox for a chat template.

    `date`: the result of `strftime_now`; None for the current time. `plain`: characters that `tojson` never escapes,
    not even with `ensure_ascii`.

    >>> environment().from_string("{{ ['é', 1] | tojson }}{% generation %}!{% endgeneration %}").render()
    '["é", 1]!'
    """
    env = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, "jinja2.ext.loopcontrols"]
    )
    env.filters["tojson"] = _tojson(plain)
    env.globals["raise_exception"] = _raise_exception
    env.globals["strftime_now"] = lambda fmt: date or datetime.now().strftime(fmt)
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
