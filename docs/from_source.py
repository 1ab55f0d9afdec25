"""Generates the reference pages from the package: docstrings, hook points and commands.

There are three directives. `{api} workbench.attention` writes an entry for every public name of that topic; `{hooks}`
the tables of hook points, summaries and presets; `{commands}` the shell commands. Docstrings are Markdown with doctest
examples. In all pages and notebooks, `wb.name` in code type links to its entry.
"""

import argparse
import inspect
import re
import textwrap
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

from docutils import nodes
from docutils.statemachine import StringList
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective
from sphinx.util.inspect import signature, stringify_signature

import workbench as wb
from workbench import hooks, topics

_CODE = re.compile(r"(?:wb|workbench)\.([A-Za-z_][\w.]*)(?:\(.*)?", re.DOTALL)

_NOTEBOOK = re.compile(r"\[([^\]]+)\]\((?:\.\./)*notebooks/(\w+)\.ipynb\)")


def public() -> Iterator[tuple[str, Any]]:
    """Every public name ("workbench.views.tokens") and its object."""
    for name in topics.TOP:
        yield f"workbench.{name}", getattr(wb, name)
    for topic, names in topics.TOPICS.items():
        for name in names:
            yield f"workbench.{topic}.{name}", getattr(getattr(wb, topic), name)
    for space in topics.MODULES:
        module = getattr(wb, space)
        if space == "interop":
            for part in dir(module):
                yield from _of(f"workbench.interop.{part}", import_module(f"workbench.interop.{part}"))
        else:
            yield from _of(f"workbench.{space}", module)
    for name, value in _of("workbench.traces", import_module("workbench.traces")):
        if name.rpartition(".")[2] not in wb.__all__:
            yield name, value


def _of(prefix: str, module: Any) -> Iterator[tuple[str, Any]]:
    listed = getattr(module, "__all__", None)
    for name, value in vars(module).items():
        here = inspect.isroutine(value) or inspect.isclass(value)
        if name in listed if listed else here and not name.startswith("_") and value.__module__ == module.__name__:
            yield f"{prefix}.{name}", value


def markdown(docstring: str) -> list[str]:
    """A docstring as lines of Markdown: examples are fenced, and markup characters outside code are escaped.

    >>> markdown("Adds *args.\\n\\n>>> 1 + 1\\n2\\n\\nRaises ValueError.")
    ['Adds \\\\*args.', '', '```pycon', '>>> 1 + 1', '2', '```', '', 'Raises ValueError.']
    """
    lines: list[str] = []
    for paragraph in re.split(r"\n\s*\n", inspect.cleandoc(docstring)):
        code = paragraph.startswith("    ")
        if paragraph.lstrip().startswith(">>>"):
            shown = re.sub(r"[ ]*# doctest:.*", "", paragraph)
            paragraph = f"```pycon\n{shown}\n```"
        elif re.match(r"(Args|Returns|Yields|Raises):\n", paragraph):
            paragraph = _section(paragraph)
        elif not code:
            paragraph = _plain(paragraph)
        lines += [*paragraph.split("\n"), ""]
    return lines[:-1]


def _section(paragraph: str) -> str:
    """A Google-style section of a docstring: a heading, and a list of names or the text below it."""
    heading, _, body = paragraph.partition("\n")
    items = re.split(r"\n(?! )", textwrap.dedent(body))
    if heading in ("Args:", "Raises:"):
        named = [re.fullmatch(r"([\w*, ]+)(: .*)?", " ".join(item.split())) for item in items]
        if all(named):
            items = [f"* `{item[1]}`{_plain(item[2] or '')}" for item in named if item]
            return "\n".join([f"**{heading}**", "", *items])
    return f"**{heading}** " + _plain(" ".join(body.split()))


def _plain(text: str) -> str:
    """Text with all Markdown escaped except backticks and list items (`* `)."""
    parts = text.split("`")
    return "`".join(re.sub(r"([<\[\]]|\*(?! ))", r"\\\1", part) if i % 2 == 0 else part for i, part in enumerate(parts))


def entry(name: str, value: Any) -> list[str]:
    """The reference entry of one name, in MyST; of a class also its public methods and properties."""
    lines = markdown(value.__doc__ or "") if hasattr(value, "__qualname__") else []
    if not lines:
        return _directive("data", name, [f":value: {value!r}"], 5)
    origin = f"{value.__module__}.{value.__qualname__}"
    head = [] if origin == name else [f":canonical: {origin}"]
    if inspect.isroutine(value):
        return _directive("function", f"{name}{_signature(value)}", [*head, "", *lines], 5)
    for member, kind, what in _members(value):
        shown = member if kind == "property" else f"{member}{_signature(what, kind != 'staticmethod')}"
        lines += ["", *_directive(kind, shown, ["", *markdown(what.__doc__ or "")], 4)]
    if issubclass(value, Warning | Exception):  # users do not construct them, so their arguments are not shown
        return _directive("exception", name, [*head, "", *lines], 5)
    return _directive("class", f"{name}{_signature(value)}", [*head, "", *lines], 5)


def _directive(kind: str, title: str, content: list[str], colons: int) -> list[str]:
    return [f"{':' * colons}{{py:{kind}}} {title}", *content, ":" * colons, ""]


def _members(kind: type) -> Iterator[tuple[str, str, Any]]:
    for name, raw in vars(kind).items():
        if name.startswith("_"):
            continue
        if isinstance(raw, property):
            yield name, "property", raw.fget
        elif isinstance(raw, classmethod | staticmethod):
            yield name, type(raw).__name__, raw.__func__
        elif inspect.isfunction(raw):
            yield name, "method", raw


def _signature(value: Any, bound: bool = False) -> str:
    try:
        return stringify_signature(signature(value, bound_method=bound), unqualified_typehints=True)
    except ValueError:  # some exceptions have no signature
        return "()"


class _Written(SphinxDirective):
    """A directive whose content is the Markdown from `lines`."""

    def lines(self) -> list[str]:
        raise NotImplementedError

    def run(self) -> list[nodes.Node]:
        source = f"{Path(__file__).name}, {self.name} {' '.join(self.arguments)}"
        parent = nodes.Element()
        self.state.nested_parse(StringList(self.lines(), source), 0, parent)
        return parent.children


class Api(_Written):
    required_arguments = 1
    optional_arguments = 9

    def lines(self) -> list[str]:
        homes = tuple(self.arguments)
        entries = [(name, value) for name, value in public() if _home(name, value) in homes]
        if not entries:
            raise self.error(f"no public name is defined in {homes}")
        return [line for name, value in entries for line in entry(name, value)]


def _home(name: str, value: Any) -> str:
    """The module whose page has the entry: the topic of a name, or the package that defines it."""
    parts = name.split(".")
    if len(parts) > 2:
        return ".".join(parts[:-1])
    return ".".join(value.__module__.split(".")[:2])


class Hooks(_Written):
    required_arguments = 1  # points, summaries or presets

    def lines(self) -> list[str]:
        notes = dict(re.findall(r'^ +"([^"]+)": [^#\n]*# (.+)$', inspect.getsource(hooks), re.MULTILINE))
        head, rows = [], []
        if self.arguments[0] == "points":
            head = ["hook point", "short", "axes", "recorded by", "is"]
            for point, axes in hooks.POINTS.items():
                by = [
                    f"`{preset}`"
                    for preset, names in hooks.PRESETS.items()
                    if point in names and preset != "everything"
                ]
                by = ["always"] if point in hooks.ALWAYS_RECORDED else by or ["`everything`"]
                rows.append(
                    [
                        f"`{point}`",
                        f"`{hooks.short_name(point)}`",
                        f"`{' '.join(axes)}`",
                        ", ".join(by),
                        notes.get(point, ""),
                    ]
                )
        elif self.arguments[0] == "summaries":
            head = ["summary", "axes", "recorded by", "is"]
            for summary, axes in hooks.SUMMARIES.items():
                by = [f"`{preset}`" for preset, names in hooks.PRESETS.items() if summary in names]
                by = ["always"] if summary in hooks.ALWAYS_RECORDED else by or ["its name"]
                rows.append([f"`{summary}`", f"`{' '.join(axes)}`", ", ".join(by), notes.get(summary, "")])
        else:
            head = ["preset", "records"]
            for preset, names in hooks.PRESETS.items():
                what = "every hook point" if preset == "everything" else ", ".join(f"`{name}`" for name in names)
                rows.append([f"`{preset}`", what])
        return [
            _row(head),
            _row(["---"] * len(head)),
            *(_row([cell.replace("|", "\\|") for cell in row]) for row in rows),
        ]


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


class Commands(_Written):
    def lines(self) -> list[str]:
        from workbench.cli import parser

        lines: list[str] = []
        [choices] = [action for action in parser()._actions if isinstance(action, argparse._SubParsersAction)]
        for name, command in choices.choices.items():
            usage = re.sub(r"\s+", " ", command.format_usage().removeprefix("usage: ")).strip()
            lines += [f"**workbench {name}**: {_plain(command.description or '')}", "", "```text", usage, "```", ""]
            for action in command._actions:
                if action.dest != "help":
                    shown = ", ".join(action.option_strings) or action.metavar or action.dest
                    lines.append(f"* `{shown}`: {_plain(action.help or '')}")
            lines.append("")
        return lines


def _link(app: Sphinx, tree: nodes.document, page: str) -> None:
    """Makes `wb.attention.pattern` in code type a link to its entry."""
    known = app.env.domains["py"].objects  # pyright: ignore[reportAttributeAccessIssue]
    for literal in list(tree.findall(nodes.literal)):
        match = _CODE.fullmatch(literal.astext())
        target = known.get(f"workbench.{match[1].rstrip('.')}") if match else None
        if target and not isinstance(literal.parent, nodes.reference) and not target.aliased:
            where = app.builder.get_relative_uri(page, target.docname) + f"#{target.node_id}"
            literal.replace_self(nodes.reference("", "", literal.deepcopy(), internal=True, refuri=where))


def _notebook_links(app: Sphinx, page: str, source: list[str]) -> None:
    """Makes links to notebooks references by document name: docs/notebooks is a symbolic link, which MyST resolves."""
    source[0] = _NOTEBOOK.sub(r"{doc}`\1 </notebooks/\2>`", source[0])


def _without_live(app: Sphinx, tree: nodes.document) -> None:
    """Removes the placeholder of the live view; the snapshot, a view's other output, stays."""
    for block in list(tree.findall(nodes.literal_block)):
        if block.astext().strip() == "(the live view: run this cell)":
            block.parent.remove(block)


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_directive("api", Api)
    app.add_directive("hooks", Hooks)
    app.add_directive("commands", Commands)
    app.connect("source-read", _notebook_links)
    app.connect("doctree-read", _without_live)
    app.connect("doctree-resolved", _link)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
