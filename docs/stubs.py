"""Writes the stub files (.pyi) of workbench and its topics, for editors and type checkers, and the reference's tables.

    python docs/stubs.py

The names come from workbench/topics.py, the descriptions from the modules' own docstrings. A test compares. The tables
are those of reference_pages.py, which lists the same names.
"""

import ast
from pathlib import Path

from workbench import topics

PACKAGE = Path(topics.__file__).parent


def stub_path(module: str) -> Path:
    """The path of the stub file of "workbench" or of a topic."""
    source = PACKAGE.joinpath(*module.split(".")[1:])
    return source / "__init__.pyi" if source.is_dir() else source.with_suffix(".pyi")


def stub(module: str) -> str:
    """The text of the stub file of "workbench" or of a topic."""
    source = stub_path(module).with_suffix(".py").read_text("utf-8")
    lines = [f'"""{(ast.get_docstring(ast.parse(source)) or "").splitlines()[0]}"""', ""]
    if module == "workbench":
        lines += [f"from workbench import {name} as {name}" for name in sorted((*topics.TOPICS, *topics.MODULES))]
        named = topics.TOP
    else:
        named = topics.homes(module)
    lines += sorted(f"from {home} import {name} as {name}" for name, home in named.items())
    lines += [""] + ["__version__: str"] * (module == "workbench")
    lines += ["__all__ = [", *(f'    "{name}",' for name in sorted(topics.homes(module))), "]", ""]
    return "\n".join(lines)


def stubs() -> dict[Path, str]:
    """The path and the text of every stub file."""
    return {stub_path(module): stub(module) for module in ("workbench", *(f"workbench.{t}" for t in topics.TOPICS))}


if __name__ == "__main__":
    for path, text in stubs().items():
        path.write_text(text, "utf-8")
        print(path.relative_to(PACKAGE.parent))
    import reference_pages  # here, because it imports all of workbench

    reference_pages.main()
