"""Makes the pictures of docs/tutorial.md in Chromium: `python docs/images/tutorial.py`. Look at each before keeping it.

It runs the page's blocks in order. A block whose next paragraph is a picture is drawn: the value of its last line, as a
notebook would show it. So a picture is always that of the code above it.
"""

import ast
import os
import re
import tempfile
from typing import Any

from pictures import HERE, chromium, draw

BLOCK = re.compile(r"^```python\n(.*?)^```\n(?:\n!\[[^\]]*\]\(images/([\w.]+)\))?", re.MULTILINE | re.DOTALL)


def value_of(code: str, names: dict[str, Any]) -> Any:
    """Runs the code and returns the value of its last line, if that is an expression."""
    tree = ast.parse(code)
    last = tree.body[-1]
    if not isinstance(last, ast.Expr):
        return exec(compile(tree, "tutorial.md", "exec"), names)
    exec(compile(ast.Module(tree.body[:-1], []), "tutorial.md", "exec"), names)
    return eval(compile(ast.Expression(last.value), "tutorial.md", "eval"), names)


def main() -> None:
    text, names = (HERE.parent / "tutorial.md").read_text("utf-8"), {"__name__": "__main__"}
    with tempfile.TemporaryDirectory() as folder, chromium() as browser:
        os.chdir(folder)
        for code, picture in BLOCK.findall(text):
            shown = value_of(code, names)
            if picture:
                draw(shown, browser, picture)


if __name__ == "__main__":
    main()
