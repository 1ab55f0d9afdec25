"""The jinja environment that transformers gives to chat templates: its filters, functions, tags and sandbox."""

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
    """A sandbox for a chat template. `date`: what `strftime_now` gives instead of the clock's. `plain`: characters that
    `tojson` writes as they are, even where it is asked for ASCII.

    >>> environment().from_string("{{ ['é', 1] | tojson }}{% generation %}!{% endgeneration %}").render()
    '["é", 1]!'
    """
    made = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, "jinja2.ext.loopcontrols"]
    )
    made.filters["tojson"] = _tojson(plain)
    made.globals["raise_exception"] = _raise_exception
    made.globals["strftime_now"] = lambda form: date or datetime.now().strftime(form)
    made.globals["dict"] = _Dict()
    made.globals["namespace"] = _Namespace
    return made


class Generation(Extension):
    """`{% generation %}` marks what an assistant wrote, for training; here it changes nothing.

    Like in transformers it is a block with a scope of its own: a variable that is set inside ends there.
    """

    tags = {"generation"}  # noqa: RUF012  jinja declares it of instances

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_unchanged"), [], [], body).set_lineno(line)

    def _unchanged(self, caller: Any) -> str:
        return caller()


class _Dict:
    """`dict(…)` and `dict.fromkeys(…)`, and no other way into Python's type."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict:
        return dict(*args, **kwargs)

    def fromkeys(self, *args: Any) -> dict:
        return dict.fromkeys(*args)


class _Namespace(Namespace):
    """jinja's namespace, without names that begin with an underscore: they lead into Python."""

    def __init__(self, /, *args: Any, **kwargs: Any) -> None:  # `self=…` may be one of the names
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
            raise SecurityError(f"a namespace has no name {name!r}: no name may begin with an underscore")


def _raise_exception(message: str) -> None:
    raise TemplateError(message)


def _tojson(plain: str) -> Callable[..., str]:
    """The filter with transformers' options: jinja's own would escape HTML."""

    def escaped(found: re.Match[str]) -> str:
        return found[0] if found[0] in plain else json.dumps(found[0])[1:-1]

    def tojson(value: Any, ensure_ascii=False, indent=None, separators=None, sort_keys=False) -> str:
        text = json.dumps(value, ensure_ascii=False, indent=indent, separators=separators, sort_keys=sort_keys)
        return re.sub(r"[^\x00-~]", escaped, text) if ensure_ascii else text

    return tojson
