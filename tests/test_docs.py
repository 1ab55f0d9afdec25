"""The examples of the documentation work: each python block of README.md and docs/ runs, page by page, in a new folder.

A block that needs more than pocket begins with "```python not-run".
"""

import argparse
import re
from pathlib import Path

import pytest

from docs.reference_pages import all_commands
from workbench.cli import parser

HOME = Path(__file__).parent.parent
PAGES = [HOME / "README.md", *sorted((HOME / "docs").rglob("*.md"))]
BLOCK = re.compile(r"^```python[ ]*\n(.*?)^```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\((?!https?:|#)([^)#]+)[^)]*\)")


def blocks(page: Path) -> list[tuple[int, str]]:
    """The line on which each block begins, and its code."""
    text = page.read_text("utf-8")
    return [(text.count("\n", 0, match.start(1)) + 1, match[1]) for match in BLOCK.finditer(text)]


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page)], ids=lambda page: str(page.relative_to(HOME)))
def test_every_block_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WORKBENCH_CACHE", str(tmp_path / "cache"))  # where a verified model is remembered
    names: dict[str, object] = {"__name__": "__main__"}
    for line, code in blocks(page):
        exec(compile("\n" * (line - 1) + code, str(page), "exec"), names)


def test_each_step_of_the_tutorial_takes_five_lines_and_its_pictures_are_small():
    page = HOME / "docs/tutorial.md"
    for line, code in blocks(page):
        own = [row for row in code.splitlines() if row.strip() and not re.match("import |from ", row)]
        assert len(own) <= 5, f"the block at line {line}"
    text, pictures = page.read_text("utf-8"), sorted((HOME / "docs/images").glob("tutorial_*.png"))
    drawn = re.findall(r"^```\n\n!\[[^\]]{20,}\]\(images/(tutorial_\w+\.png)\)$", text, re.MULTILINE)
    assert sorted(drawn) == [picture.name for picture in pictures]  # each below the code that it shows
    gallery = sorted((HOME / "docs/images").glob("view_*.png"))
    assert all(picture.stat().st_size < 120_000 for picture in [*pictures, *gallery])


def test_the_readme_links_every_notebook_with_its_question():
    rows = re.findall(
        r"^\| \[(\d\d) [^\]]+\]\(notebooks/(\d\d)_\w+\.ipynb\) \| .+\? \|$", PAGES[0].read_text("utf-8"), re.M
    )
    notebooks = sorted(path.name[:2] for path in (HOME / "notebooks").glob("[0-9][0-9]_*.py"))
    assert rows == [(number, number) for number in notebooks]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(HOME)))
def test_every_link_points_to_a_file(page: Path):
    missing = [link for link in LINK.findall(page.read_text("utf-8")) if not (page.parent / link).exists()]
    assert not missing


@pytest.mark.parametrize(("name", "command"), list(all_commands(parser())))
def test_every_command_is_in_the_readme_and_has_help(name: str, command: argparse.ArgumentParser):
    assert f"workbench {name}" in PAGES[0].read_text("utf-8")
    assert command.description
    assert all(action.help for action in command._actions)
