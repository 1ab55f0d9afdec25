"""The docs site: it builds without warnings, has no dead links and no outside requests, and lists every public name."""

import inspect
import os
import pkgutil
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from html.parser import HTMLParser
from importlib import import_module
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

import workbench as wb
from docs import reference_pages
from tests.views.browser import needed
from workbench import hooks

HOME = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As `make docs` builds it."""
    out = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-b", "html", "-d", f"{out}.trees"]
    built = subprocess.run([*command, "docs", str(out)], cwd=HOME, capture_output=True, text=True, timeout=1800)
    assert built.returncode == 0 and not built.stderr, built.stderr
    return out


class Page(HTMLParser):
    """The ids, links and automatically loaded resources (loads) of a page."""

    def __init__(self, path: Path):
        super().__init__()
        self.ids: set[str] = set()
        self.links: set[str] = set()
        self.loads: set[str] = set()
        self.feed(path.read_text("utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.ids |= {given[name] for name in ("id", "name") if name in given}
        if tag == "a" and "href" in given:
            self.links.add(given["href"])
        elif tag == "link" and given.get("rel") not in ("index", "search", "next", "prev", "canonical"):
            self.loads.add(given["href"])
        self.loads |= {given[name] for name in ("src", "poster", "data") if name in given}
        self.loads |= {part.split()[0] for part in given.get("srcset", "").split(",") if part.strip()}


@cache
def page(path: Path) -> Page:
    return Page(path)


def pages(site: Path) -> Iterator[tuple[Path, Page]]:
    for path in sorted(site.rglob("*.html")):
        yield path, page(path)


def test_every_page_and_every_notebook_is_in_the_site(site: Path):
    sources = [path.relative_to(HOME / "docs") for path in (HOME / "docs").rglob("*.md")]
    sources += [path.relative_to(HOME) for path in (HOME / "notebooks").glob("[0-9]*.ipynb")]
    assert not [source for source in sources if not (site / source.with_suffix(".html")).exists()]


def test_every_link_and_anchor_has_a_target(site: Path):
    dead = []
    for path, content in pages(site):
        for link in content.links | content.loads:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = path.parent / unquote(parts.path) if parts.path else path
            there = target.exists()
            if there and parts.fragment and target.suffix == ".html":
                there = unquote(parts.fragment) in page(target.resolve()).ids
            if not there:
                dead.append(f"{path.relative_to(site)}: {link}")
    assert not dead


def test_no_page_loads_anything_from_another_host(site: Path):
    assert not [
        f"{path.relative_to(site)}: {load}"
        for path, content in pages(site)
        for load in content.loads
        if re.match(r"(?:\w+:)?//", load)
    ]
    for sheet in site.rglob("*.css"):
        assert not re.search(r"(?:@import|url\()\s*[\"']?(?:https?:)?//", sheet.read_text("utf-8")), sheet


@needed
def test_the_site_makes_no_outside_requests_and_its_search_works(site: Path, browser, measured):
    requests: list[str] = []
    complaints: list[str] = []
    window = browser.new_page()
    window.set_default_timeout(120_000)  # slow machines must not fail the test
    window.on("request", lambda request: requests.append(request.url))
    window.on("console", lambda message: complaints.append(message.text))
    window.on("pageerror", lambda error: complaints.append(str(error)))
    visited = ["index", "reference/attention", "reference/hook_points", "comparison"]
    visited += [f"notebooks/{path.stem}" for path in (site / "notebooks").glob("*.html")]
    for name in visited:
        window.goto((site / f"{name}.html").as_uri())
    window.goto((site / "search.html").as_uri() + "?q=breakdown")
    window.wait_for_selector("#search-results a[href*='reference/attention.html']")
    window.close()
    measured(f"site: {len(visited) + 1} pages visited, {len(requests)} requests, all for files of the site")
    assert not [url for url in requests if not url.startswith((site.as_uri(), "data:"))]
    assert complaints == []


# -- the reference


def public() -> list[str]:
    """Every public name of `wb` and of its modules."""
    names = []
    for name in wb.__all__:
        value = getattr(wb, name)
        if not inspect.ismodule(value):
            names.append(f"workbench.{name}")
        elif name == "interop":
            modules = [import_module(info.name) for info in pkgutil.iter_modules(value.__path__, f"{value.__name__}.")]
            mine = [module for module in modules if module.__name__.rpartition(".")[2] not in INSIDE]
            names += [f"{module.__name__}.{of}" for module in mine for of in contents(module)]
        else:
            names += [f"workbench.{name}.{of}" for of in contents(value)]
    return names


INSIDE = ("adapter", "readers", "sae_formats", "versions")  # internals of interop; wb.sae


def contents(module) -> list[str]:
    if hasattr(module, "__all__"):
        return list(module.__all__)
    return [
        name
        for name, value in vars(module).items()
        if not name.startswith("_") and getattr(value, "__module__", None) == module.__name__ and callable(value)
    ]


@cache
def entries(site: Path) -> frozenset[str]:
    from sphinx.util.inventory import InventoryFile

    inventory = InventoryFile.loads((site / "objects.inv").read_bytes(), uri="")
    return frozenset(name for kind, entries in inventory.data.items() if kind.startswith("py:") for name in entries)


def test_every_public_name_has_an_entry_in_the_reference(site: Path):
    missing = [name for name in public() if name not in entries(site)]
    assert not missing, "say where they stand: a line `<!-- names: … -->` in docs/reference"


@pytest.mark.parametrize("kind", ["Model", "Trace"])
def test_every_public_method_has_an_entry_in_the_reference(site: Path, kind: str):
    methods = [name for name in vars(getattr(wb, kind)) if not name.startswith("_")]
    shown = [name for name in methods if f"workbench.{kind}.{name}" in entries(site)]
    assert len(shown) > 10 and shown == methods


def test_the_tables_of_the_reference_are_those_of_the_package():
    stale = [path.name for path, text in reference_pages.pages().items() if path.read_text("utf-8") != text]
    assert stale == [], "run: python docs/reference_pages.py"


def test_a_page_of_the_reference_lists_names_and_what_they_give_without_the_site():
    page = (HOME / "docs/reference/attention.md").read_text("utf-8")
    assert "| `wb.attention.pattern` | The attention pattern of one layer" in page
    listed = {name for path in reference_pages.pages() for name in re.findall(r"\| `(w[\w.]+)` \|", path.read_text())}
    assert not [name for name in public() if not {name, name.replace("workbench.", "wb.", 1)} & listed]
    points = (HOME / "docs/reference/hook_points.md").read_text("utf-8")
    assert all(f"| `{name}` |" in points for name in (*hooks.POINTS, *hooks.SUMMARIES, *hooks.PRESETS))


def test_every_hook_point_and_summary_is_in_the_table(site: Path):
    text = (site / "reference/hook_points.html").read_text("utf-8")
    shown = set(re.findall(r'<span class="pre">([^<]+)</span>', text))
    assert {*hooks.POINTS, *hooks.SUMMARIES, *hooks.PRESETS} <= shown


def test_docstrings_are_rendered_correctly():
    sys.path.insert(0, os.fspath(HOME / "docs"))
    try:
        markdown = import_module("from_source").markdown
    finally:
        sys.path.pop(0)
    assert markdown(
        "Sum.\n\nArgs:\n    a: one\n        number.\n    b: <other>.\n\nReturns:\n    The sum\n    of both."
    ) == [
        "Sum.",
        "",
        "**Args:**",
        "",
        "* `a`: one number.",
        r"* `b`: \<other>.",
        "",
        "**Returns:** The sum of both.",
    ]
    assert markdown("Adds *args <b>.\n\n>>> 1 + 1  # doctest: +SKIP\n2\n\nRaises `a*b*c` [x].") == [
        r"Adds \*args \<b>.",
        "",
        "```pycon",
        ">>> 1 + 1",
        "2",
        "```",
        "",
        r"Raises `a*b*c` \[x\].",
    ]
