"""The script of a page or a widget: ES modules written by hand, joined without a bundler. Nothing is fetched."""

import re
from functools import cache
from pathlib import Path

HERE = Path(__file__).parent
_IMPORT = re.compile(r'^import \{[^}]*\} from "\./(\w+)\.js";\n', re.MULTILINE)
_COMMENT = re.compile(r"^\s*(?://.*|/\*\*.*|\*.*)\n|\s+// [^\"'`\n]*$", re.MULTILINE)


@cache
def script(*modules: str) -> str:
    """Those modules and what they import, each once and before who needs it, as one text without imports or exports.

    >>> script("score_sheet_view").count("register = ")
    1
    """
    done: dict[str, str] = {}
    for module in modules:
        _add(module, done)
    return "".join(done.values())


def _add(module: str, done: dict[str, str]) -> None:
    if module in done:
        return
    text = (HERE / f"{module}.js").read_text("utf-8")
    for needed in _IMPORT.findall(text):
        _add(needed, done)
    text = _COMMENT.sub("", _IMPORT.sub("", text))
    done[module] = re.sub(r"^\s*(?:export )?", "", text, flags=re.MULTILINE)


@cache
def style() -> str:
    """The style of all views."""
    return (HERE / "views.css").read_text("utf-8")
