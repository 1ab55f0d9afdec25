"""Writes the entries of the reference from docstrings, while the site is built.

Where a page has `<!-- names: workbench.attention -->`, the directive `{api} workbench.attention` writes an entry for
every public name of that topic, below the table that reference_pages.py wrote. Docstrings are Markdown with doctest
examples. In all pages and notebooks, `wb.name` in code type links to its entry.
"""

import inspect
import re
import textwrap
from pathlib import Path
from typing import Any

from docutils import nodes
from docutils.statemachine import StringList
from reference_pages import escaped, home, members, public
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective
from sphinx.util.inspect import signature, stringify_signature

_CODE = re.compile(r"(?:wb|workbench)\.([A-Za-z_][\w.]*)(?:\(.*)?", re.DOTALL)

_END_OF_NAMES = re.compile(r"<!-- names: ([\w. ]+) -->(.*?)<!-- end: names -->", re.DOTALL)
_NOTEBOOK = re.compile(r"\[([^\]]+)\]\((?:\.\./)*notebooks/(\w+)\.ipynb\)")


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
            paragraph = escaped(paragraph)
        lines += [*paragraph.split("\n"), ""]
    return lines[:-1]


def _section(paragraph: str) -> str:
    """A Google-style section of a docstring: a heading, and a list of names or the text below it."""
    heading, _, body = paragraph.partition("\n")
    items = re.split(r"\n(?! )", textwrap.dedent(body))
    if heading in ("Args:", "Raises:"):
        named = [re.fullmatch(r"([\w*, ]+)(: .*)?", " ".join(item.split())) for item in items]
        if all(named):
            items = [f"* `{item[1]}`{escaped(item[2] or '')}" for item in named if item]
            return "\n".join([f"**{heading}**", "", *items])
    return f"**{heading}** " + escaped(" ".join(body.split()))


def entry(name: str, value: Any) -> list[str]:
    """The reference entry of one name, in MyST; of a class also its public methods and properties."""
    lines = markdown(value.__doc__ or "") if hasattr(value, "__qualname__") else []
    if not lines:
        return _directive("data", name, [f":value: {value!r}"], 5)
    origin = f"{value.__module__}.{value.__qualname__}"
    head = [] if origin == name else [f":canonical: {origin}"]
    if inspect.isroutine(value):
        return _directive("function", f"{name}{_signature(value)}", [*head, "", *lines], 5)
    for member, kind, what in members(value):
        shown = member if kind == "property" else f"{member}{_signature(what, kind != 'staticmethod')}"
        lines += ["", *_directive(kind, shown, ["", *markdown(what.__doc__ or "")], 4)]
    if issubclass(value, Warning | Exception):  # users do not construct them, so their arguments are not shown
        return _directive("exception", name, [*head, "", *lines], 5)
    return _directive("class", f"{name}{_signature(value)}", [*head, "", *lines], 5)


def _directive(kind: str, title: str, content: list[str], colons: int) -> list[str]:
    return [f"{':' * colons}{{py:{kind}}} {title}", *content, ":" * colons, ""]


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
        entries = [(name, value) for name, value in public() if home(name, value) in homes]
        if not entries:
            raise self.error(f"no public name is defined in {homes}")
        return [line for name, value in entries for line in entry(name, value)]


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


def _entries(app: Sphinx, page: str, source: list[str]) -> None:
    """Adds the entries of the names below their table."""
    source[0] = _END_OF_NAMES.sub(r"\2\n```{api} \1\n```\n", source[0])


def _without_live(app: Sphinx, tree: nodes.document) -> None:
    """Removes the output of the live view, an empty text; the snapshot, a view's other output, stays."""
    for block in list(tree.findall(nodes.literal_block)):
        if not block.astext().strip():
            block.parent.remove(block)


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_directive("api", Api)
    app.connect("source-read", _notebook_links)
    app.connect("source-read", _entries)
    app.connect("doctree-read", _without_live)
    app.connect("doctree-resolved", _link)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
