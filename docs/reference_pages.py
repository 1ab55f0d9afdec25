"""Writes the tables of the pages in docs/reference, so that they can be read without building the site.

    python docs/reference_pages.py

`<!-- names: workbench.attention -->` in a page is followed by a table of the public names of that topic, and in the
site, where from_source.py reads the same line, also by their entries. The other tables (hook points, summaries,
presets, commands) stand between `<!-- begin: … -->` and `<!-- end: … -->`. A test compares the pages.
"""

import argparse
import inspect
import re
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import workbench as wb
from workbench import hooks, topics

HERE = Path(__file__).parent
NAMES = re.compile(r"<!-- names: ([\w. ]+) -->\n(?:.*?<!-- end: names -->\n)?", re.DOTALL)
TABLE = re.compile(r"<!-- begin: (hook points|summaries|presets|commands) -->\n.*?<!-- end: \1 -->", re.DOTALL)

WIDEST = 80  # characters of a constant


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


def home(name: str, value: Any) -> str:
    """The module whose page has the entry: the topic of a name, or the package that defines it."""
    parts = name.split(".")
    if len(parts) > 2:
        return ".".join(parts[:-1])
    return ".".join(value.__module__.split(".")[:2])


def members(kind: type) -> Iterator[tuple[str, str, Any]]:
    """The public methods and properties of a class: name, kind of member, function."""
    for name, raw in vars(kind).items():
        if name.startswith("_"):
            continue
        if isinstance(raw, property):
            yield name, "property", raw.fget
        elif isinstance(raw, classmethod | staticmethod):
            yield name, type(raw).__name__, raw.__func__
        elif inspect.isfunction(raw):
            yield name, "method", raw


def escaped(text: str) -> str:
    """Text with all Markdown escaped except backticks and list items (`* `)."""
    parts = text.split("`")
    return "`".join(re.sub(r"([<\[\]]|\*(?! ))", r"\\\1", part) if i % 2 == 0 else part for i, part in enumerate(parts))


def _first_paragraph(value: Any) -> str:
    """The first paragraph of a docstring, as the cell of a table; "" if it has none of its own."""
    text = inspect.cleandoc(value.__doc__ or "") if hasattr(value, "__qualname__") else ""
    return escaped(" ".join(re.split(r"\n\s*\n|:\n", text)[0].split())).replace("|", "\\|")


def _value(value: Any) -> str:
    """A constant, as the cell of a table: its beginning, if it is long."""
    text = repr(value)
    return f"`{text if len(text) <= WIDEST else text[: WIDEST - 2] + ' …'}`".replace("|", "\\|")


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _table(head: list[str], rows: list[list[str]]) -> list[str]:
    return [_row(head), _row(["---"] * len(head)), *map(_row, rows)]


def names(homes: str) -> list[str]:
    """The table of the public names whose entries are on the pages of these modules.

    >>> names("workbench.probes")[2][:60]
    '| `wb.probes.linear_probe` | The accuracy of linear probes by '
    """
    rows = []
    for name, value in public():
        if home(name, value) not in homes.split():
            continue
        short = name if name.startswith("workbench.traces.") else name.replace("workbench.", "wb.", 1)
        rows.append([f"`{short}`", _first_paragraph(value) or _value(value)])
        if inspect.isclass(value) and not issubclass(value, BaseException):
            described = [(member, _first_paragraph(what)) for member, _, what in members(value)]
            rows += [[f"`{short}.{member}`", text] for member, text in described if text]
    if not rows:
        raise ValueError(f"no public name is defined in {homes}")
    return _table(["name", "what you get"], rows)


def _recorded_by(point: str) -> str:
    by = [f"`{preset}`" for preset, names in hooks.PRESETS.items() if point in names and preset != "everything"]
    if point in hooks.ALWAYS_RECORDED:
        return "always"
    return ", ".join(by) or ("`everything`" if point in hooks.POINTS else "its name")


def _notes() -> dict[str, str]:
    """The comment beside each hook point and summary in workbench/hooks.py."""
    return dict(re.findall(r'^ +"([^"]+)": [^#\n]*# (.+)$', inspect.getsource(hooks), re.MULTILINE))


def hook_points() -> list[str]:
    notes, rows = _notes(), []
    for point, axes in hooks.POINTS.items():
        cells = [f"`{point}`", f"`{hooks.short_name(point)}`", f"`{' '.join(axes)}`", _recorded_by(point)]
        rows.append([*cells, notes.get(point, "").replace("|", "\\|")])
    return _table(["hook point", "short", "axes", "recorded by", "is"], rows)


def summaries() -> list[str]:
    notes, rows = _notes(), []
    for summary, axes in hooks.SUMMARIES.items():
        cells = [f"`{summary}`", f"`{' '.join(axes)}`", _recorded_by(summary)]
        rows.append([*cells, notes.get(summary, "").replace("|", "\\|")])
    return _table(["summary", "axes", "recorded by", "is"], rows)


def presets() -> list[str]:
    rows = []
    for preset, names in hooks.PRESETS.items():
        what = "every hook point" if preset == "everything" else ", ".join(f"`{name}`" for name in names)
        rows.append([f"`{preset}`", what])
    return _table(["preset", "records"], rows)


def all_commands(parser: argparse.ArgumentParser, before: str = "") -> Iterator[tuple[str, argparse.ArgumentParser]]:
    """The name and the parser of every command that does something: "ls", "store find"."""
    groups = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    if not groups:
        yield before.strip(), parser
    for group in groups:
        for name, command in group.choices.items():
            yield from all_commands(command, f"{before} {name}")


def commands() -> list[str]:
    from workbench.cli import parser

    lines: list[str] = []
    for name, command in all_commands(parser()):
        usage = re.sub(r"\s+", " ", command.format_usage().removeprefix("usage: ")).strip()
        lines += [f"**workbench {name}**: {escaped(command.description or '')}", "", "```text", usage, "```", ""]
        for action in command._actions:
            if action.dest != "help":
                shown = ", ".join(action.option_strings) or action.metavar or action.dest
                lines.append(f"* `{shown}`: {escaped(action.help or '')}")
        lines.append("")
    return lines[:-1]


TABLES: dict[str, Callable[[], list[str]]] = {
    "hook points": hook_points,
    "summaries": summaries,
    "presets": presets,
    "commands": commands,
}


def generated(page: str) -> str:
    """A page of docs/reference with its tables as they should be."""

    def with_names(match: re.Match[str]) -> str:
        return "\n".join([f"<!-- names: {match[1]} -->", "", *names(match[1]), "", "<!-- end: names -->", ""])

    def with_table(match: re.Match[str]) -> str:
        return "\n".join([f"<!-- begin: {match[1]} -->", "", *TABLES[match[1]](), "", f"<!-- end: {match[1]} -->"])

    return TABLE.sub(with_table, NAMES.sub(with_names, page))


def pages() -> dict[Path, str]:
    """The path and the text, as it should be, of every page of docs/reference."""
    return {path: generated(path.read_text("utf-8")) for path in sorted((HERE / "reference").glob("*.md"))}


def main() -> None:
    for path, text in pages().items():
        if path.read_text("utf-8") != text:
            path.write_text(text, "utf-8")
            print(path.relative_to(HERE.parent))


if __name__ == "__main__":
    main()
