"""The script of a page or a widget: handwritten ES modules, joined without a bundler. Nothing is fetched.

The joined script has the tokens of the sources, without comments, indentation and the line breaks of the formatter.
"""

import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

HERE = Path(__file__).parent
_IMPORT = re.compile(r'^import (?:\{[^}]*\} from )?"\./(\w+)\.js";\n', re.MULTILINE)
_SPACE = re.compile(r"(?:\s|//[^\n]*|/\*.*?\*/)+", re.DOTALL)
_STRING = re.compile(r'"(?:[^"\\\n]|\\.)*"|' r"'(?:[^'\\\n]|\\.)*'", re.DOTALL)
_REGEX = re.compile(r"/(?:[^/\\\[\n]|\\.|\[(?:[^\]\\\n]|\\.)*\])+/\w*")
_TEMPLATE_TEXT = re.compile(r"(?:[^`\\$]|\\.|\$(?!\{))*", re.DOTALL)
_WORD = re.compile(r"[\w$#]+")
# After these a slash divides; after anything else it begins a regular expression.
_VALUE_END = re.compile(r"[\w$)\]}\"'`]$")
_KEYWORD = re.compile(r"(?:return|typeof|case|in|of|void|delete|throw|new|await|yield|else|do)$")


@cache
def script(*modules: str) -> str:
    """The modules and their imports as one script, each once and before its importers, without `import` and `export`.

    >>> script("score_sheet_view").count("register=")
    1
    """
    added: dict[str, str] = {}
    for module in modules:
        _add(module, added)
    return "".join(added.values())


def _add(module: str, added: dict[str, str]) -> None:
    if module in added:
        return
    text = (HERE / f"{module}.js").read_text("utf-8")
    for imported in _IMPORT.findall(text):
        _add(imported, added)
    added[module] = stripped(_IMPORT.sub("", text)) + "\n"


def stripped(source: str) -> str:
    """The same program in fewer bytes: without comments, exports, trailing commas and unneeded white space.

    Statements that ended a line still do. The source must have all semicolons, as the formatter writes them.

    >>> stripped("export const half = (x) => x / 2; // of it\\nconst text = `a  b`;\\n")
    'const half=(x)=>x/2;\\nconst text=`a  b`;'
    """
    tokens = [token for token in tokenized(source) if token.strip() != "export"]
    parts: list[str] = []
    last = ""  # the last part that is not white space
    for place, token in enumerate(tokens):
        following = tokens[place + 1] if place + 1 < len(tokens) else ""
        if _SPACE.fullmatch(token):
            if last.endswith((";", "}")) and "\n" in token and following[:1] not in {"", ")", "]", "}", ",", ";", "."}:
                parts.append("\n")
            elif last and following and _need_space(last, following):
                parts.append(" ")
            continue
        if (
            token == ","
            and "\n" in following
            and tokens[place + 2][:1] in {")", "]", "}"}
            and last not in {"", ",", "["}
        ):
            continue
        parts.append(token)
        last = token
    return "".join(parts)


def _need_space(token: str, following: str) -> bool:
    """Whether two adjacent tokens would be parsed differently without a space between them."""
    a, b = token[-1], following[0]
    if _WORD.fullmatch(a) and (_WORD.fullmatch(b) or (b == "." and a.isdigit())):
        return True
    return (a == b and a in "+-/&|*=<>?") or (a == "/" and b == "*")


def tokenized(source: str) -> Iterator[str]:
    """The tokens of JavaScript: strings, templates, regular expressions, words, signs, and white space with comments.

    >>> list(tokenized("a /b/ /* c */ c"))
    ['a', ' ', '/', 'b', '/', ' /* c */ ', 'c']
    """
    at, before = 0, ""
    while at < len(source):
        if space := _SPACE.match(source, at):
            yield space[0]
            at = space.end()
            continue
        divides = bool(_VALUE_END.search(before)) and not _KEYWORD.match(before)
        if source[at] == "`":
            stop = _template_end(source, at)
        elif (
            token := _STRING.match(source, at) or (not divides and _REGEX.match(source, at)) or _WORD.match(source, at)
        ):
            stop = token.end()
        else:
            stop = at + 1
        before = source[at:stop]
        yield before
        at = stop


def _template_end(source: str, start: int) -> int:
    """The end of the template literal that begins at `start`; its ${…} may contain further templates."""
    at = start + 1
    while True:
        text = _TEMPLATE_TEXT.match(source, at)
        at = text.end() if text else at
        if source[at] == "`":
            return at + 1
        depth, at = 1, at + 2  # after ${
        for token in tokenized(source[at:]):
            at += len(token)
            depth += (token == "{") - (token == "}")
            if not depth:
                break


@cache
def style() -> str:
    """The CSS of all views."""
    return (HERE / "views.css").read_text("utf-8")
