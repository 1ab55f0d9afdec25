"""The architecture as a test: who may import whom, where torch may be, and what a name may not be called."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import workbench as wb

ROOT = Path(wb.__file__).parent
MODULES = sorted(ROOT.rglob("*.py"))

BASE = {"errors", "text", "hooks", "paths", "checks", "files"}
DATA = BASE | {"traces"}  # what can be known from a trace alone
# package -> the packages it may import from, besides itself
ROOMS: dict[str, set[str]] = {
    "errors": set(),
    "text": set(),
    "paths": set(),
    "hooks": {"errors"},
    "checks": {"errors", "text"},
    "files": {"errors", "paths", "text"},
    "traces": BASE,
    "conversation": DATA,
    "analysis": DATA,
    "views": DATA | {"analysis"},  # analyses need no torch, and a summary is computed in one place
    "figures": DATA | {"__init__"},  # for the version in what a picture says
    "edits": DATA | {"model", "recording"},
    "model": DATA | {"conversation", "edits", "recording"},
    "recording": DATA | {"conversation", "edits", "model", "__init__"},  # for the version in a manifest
    "experiments": DATA | {"analysis", "conversation", "edits", "model", "recording"},
    "pocket": DATA | {"analysis", "conversation", "edits", "experiments", "model", "recording"},
    "circuits": BASE | {"model"},
    "interop": DATA | {"conversation", "experiments", "model", "recording"},  # what a splice costs is an experiment
    "api": DATA | {"conversation", "model", "recording"},
    "cli": DATA | {"api", "conversation", "figures", "views", "__init__"},
}
WITH_TORCH = {"circuits", "edits", "experiments", "model", "pocket/eval", "pocket/train", "recording"}
OPTIONAL = {
    "jupyterlab",
    "ipywidgets",
    "plotly",
    "matplotlib",
    "PIL",
    "pyarrow",
    "anywidget",
    "transformers",
    "nnsight",
    "transformer_lens",
    "gguf",
    "sklearn",
    "numba",
    "llvmlite",
}


def room_of(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def imports(path: Path) -> Iterator[tuple[str, bool]]:
    """Every module that a file imports when it runs, by its full name, and whether it does so inside a function."""
    package = ("workbench", *path.relative_to(ROOT).parent.parts)

    def walk(node: ast.AST, inside: bool) -> Iterator[tuple[str, bool]]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
                continue
            if isinstance(child, ast.Import):
                yield from ((alias.name, inside) for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                base = ".".join(package[: len(package) - child.level + 1]) if child.level else ""
                module = ".".join(part for part in (base, child.module) if part)
                if module == "workbench":
                    yield from ((f"workbench.{alias.name}", inside) for alias in child.names)
                else:
                    yield module, inside
            yield from walk(child, inside or isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef))

    yield from walk(ast.parse(path.read_text("utf-8")), False)


def test_every_room_imports_only_from_the_rooms_below_it():
    wrong = []
    for path in MODULES:
        room = room_of(path)
        if room == "__init__":
            continue  # it imports when asked: see the tests of `import workbench`
        assert room in ROOMS, f"workbench/{room} is a new room: say in ROOMS what it may import"
        for name, _ in imports(path):
            head, *rest = name.split(".")
            other = rest[0] if rest else "__init__"
            if head == "workbench" and other != room and other not in ROOMS[room]:
                wrong.append(f"{path.relative_to(ROOT)} imports {name}; {room} may import {sorted(ROOMS[room])}")
    assert not wrong, "\n".join(wrong)


def test_the_rooms_have_no_cycle():
    done: list[str] = []
    left = dict(ROOMS)
    while left:
        free = [room for room, below in left.items() if below <= {*done, "__init__"}]
        assert free, f"these rooms import each other: {sorted(left)}"
        done += free
        for room in free:
            del left[room]


def test_torch_stays_in_the_rooms_that_run_models():
    wrong = []
    for path in MODULES:
        for name, inside in imports(path):
            floor = "/".join(path.relative_to(ROOT).parts[:2])  # pocket has floors with torch and one without
            allowed = {room_of(path), floor} & WITH_TORCH or (room_of(path) == "interop" and inside)
            if name.split(".")[0] == "torch" and not allowed:
                wrong.append(f"{path.relative_to(ROOT)} imports {name}")
    assert not wrong, "\n".join(wrong)


def test_optional_packages_are_imported_inside_functions():
    wrong = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in MODULES
        for name, inside in imports(path)
        if name.split(".")[0] in OPTIONAL and not inside
    ]
    assert not wrong, "\n".join(wrong)


def test_no_submodule_has_the_name_of_a_public_function():
    """`workbench/trace.py` would take the place of `workbench.trace` as soon as somebody imports it."""
    taken = []
    for init in ROOT.rglob("__init__.py"):
        here = ".".join(("workbench", *init.relative_to(ROOT).parent.parts))
        modules = {path.stem for path in init.parent.glob("*.py")} | {
            path.parent.name for path in init.parent.glob("*/*.py")
        }
        public = (
            {name: home for name, home in wb._HOME.items() if home != f"workbench.{name}"}
            if here == "workbench"
            else {}
        )
        for node in ast.walk(ast.parse(init.read_text("utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module and node.module != here:
                public |= {alias.asname or alias.name: node.module for alias in node.names}
        taken += [f"{here}.{name}" for name in modules & set(public)]
    assert not taken


def test_every_public_name_is_there():
    missing = []
    for name in wb.__all__:
        try:
            getattr(wb, name)
        except (ImportError, AttributeError) as error:
            missing.append(f"{name}: {error}")
    assert not missing, "\n".join(missing)


def child(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=120)
    return done.stdout.strip()


def test_importing_workbench_loads_no_torch():
    heavy = "torch", "transformers", "xarray", "pandas", "tokenizers", "IPython"
    code = f"import sys, workbench; print([name for name in {heavy} if name in sys.modules])"
    assert child(code) == "[]"


def test_importing_workbench_is_fast():
    code = "import time; t = time.perf_counter(); import workbench; print(time.perf_counter() - t)"
    assert min(float(child(code)) for _ in range(5)) < 0.3


def test_traces_views_and_analyses_load_without_torch():
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "import workbench as wb, workbench.views, workbench.views.page, workbench.cli\n"
        "import workbench.analysis, workbench.traces.verification\n"
        "wb.load, wb.check, wb.steps, wb.Trace; print('loaded')"
    )
    assert child(code) == "loaded"


@pytest.mark.parametrize(
    "danger", ["innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", 'HTML(f"', "HTML(f'"]
)
def test_model_text_has_no_way_to_become_markup(danger: str):
    sources = [path for path in ROOT.rglob("*") if path.suffix in {".py", ".js", ".html"}]
    assert not [path for path in sources if danger in path.read_text("utf-8")]


def test_every_module_says_what_it_is():
    silent = [path for path in MODULES if not ast.get_docstring(ast.parse(path.read_text("utf-8")))]
    assert not silent


def test_the_problems_of_pocket_load_without_torch():
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from workbench.pocket import families, problems, rendering, vocabulary\n"
        "import random; print(families.make('addition', random.Random(3), length=2).answer)"
    )
    assert child(code) == "85"


def test_the_problems_of_pocket_do_not_know_how_it_is_trained_or_measured():
    for path in (ROOT / "pocket").rglob("*.py"):
        floor = path.relative_to(ROOT / "pocket").parts[0]
        for name, _ in imports(path):
            above = name.startswith(("workbench.pocket.train", "workbench.pocket.eval", "workbench.model"))
            assert floor in ("train", "eval") or not above, f"{path} imports {name}"
