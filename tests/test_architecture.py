"""Tests of the architecture: allowed imports between packages, modules that may import torch, and forbidden names.

docs/architecture.py has the packages and their allowed imports.
"""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest

import workbench as wb
from docs import architecture
from docs.architecture import LONG, LONG_FILES, PACKAGES, WITH_TORCH
from docs.stubs import stubs
from workbench import topics
from workbench.lazy_imports import UPWARD, upward

HOME = Path(__file__).parent.parent
ROOT = Path(wb.__file__).parent
MODULES = sorted(ROOT.rglob("*.py"))
# Where names are imported that are not written there: the tables of public names, the table of upward arrows, and
# optional packages.
BY_NAME = {"__init__.py", "topics.py", "interop/__init__.py", "lazy_imports.py", "checks.py"}
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


def package_of(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def name_of(path: Path) -> str:
    """The name that a file is imported by."""
    parts = path.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


TOPIC_FILES = {topic for topic in topics.TOPICS if (ROOT / f"{topic}.py").is_file()}
NAMES = {name_of(path): path for path in MODULES}


def imports(path: Path) -> Iterator[tuple[str, bool]]:
    """Every module that a file imports when it runs, by its full name, and whether it does so inside a function."""
    package = ("workbench", *path.relative_to(ROOT).parent.parts)

    def walk(node: ast.AST, inside: bool) -> Iterator[tuple[str, bool]]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
                for instead in child.orelse:
                    yield from walk(instead, inside)
                continue
            if isinstance(child, ast.Import):
                yield from ((alias.name, inside) for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                base = ".".join(package[: len(package) - child.level + 1]) if child.level else ""
                module = ".".join(part for part in (base, child.module) if part)
                for alias in child.names:
                    full = f"{module}.{alias.name}"
                    yield full if full in NAMES else module, inside
            yield from walk(child, inside or isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef))

    yield from walk(ast.parse(path.read_text("utf-8")), False)


def calls(path: Path, *functions: str) -> Iterator[ast.Call]:
    """The calls of functions of these names, however they are reached."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Call):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if called in functions:
                yield node


def graph() -> dict[str, set[str]]:
    """file -> files that it imports, also inside functions; without the declared upward imports."""
    imported = {name: {other for other, _ in imports(path)} & (NAMES.keys() - {name}) for name, path in NAMES.items()}
    for module in (
        "workbench",
        *(f"workbench.{topic}" for topic in topics.TOPICS),
    ):  # the modules of their public names
        imported[module] |= set(topics.homes(module).values()) - {module}
    imported["workbench.interop"] |= set(wb.interop._HOME.values())
    return imported


def import_cycles(arrows: dict[str, set[str]]) -> list[list[str]]:
    """The groups of modules that import each other, directly or indirectly."""
    order: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    cycles: list[list[str]] = []

    def visit(name: str) -> None:  # Tarjan 1972
        order[name] = low[name] = len(order)
        stack.append(name)
        for other in sorted(arrows[name]):
            if other not in order:
                visit(other)
                low[name] = min(low[name], low[other])
            elif other in stack:
                low[name] = min(low[name], order[other])
        if low[name] == order[name]:
            group = stack[stack.index(name) :]
            del stack[stack.index(name) :]
            if len(group) > 1 or name in arrows[name]:
                cycles.append(sorted(group))

    for name in sorted(arrows):
        if name not in order:
            visit(name)
    return cycles


def test_no_files_import_each_other():
    wrong = import_cycles(graph())
    assert not wrong, "\n".join(f"these import each other: {', '.join(group)}" for group in wrong)


def test_an_import_cycle_of_any_length_is_detected():
    assert import_cycles({"a": {"b"}, "b": {"c"}, "c": {"a", "d"}, "d": set(), "e": {"e"}}) == [["a", "b", "c"], ["e"]]
    assert import_cycles({"a": {"b", "c"}, "b": {"d"}, "c": {"d"}, "d": set()}) == []


def test_every_import_upward_is_declared_and_used():
    used = set()
    for name, path in NAMES.items():
        for call in calls(path, "upward"):
            importer, module = call.args
            assert ast.unparse(importer) == "__name__" and isinstance(module, ast.Constant), f"{path}:{call.lineno}"
            used.add((name, module.value))
    assert used == set(UPWARD)
    assert {module for _, module in used} <= set(NAMES)


def test_an_upward_import_that_is_not_declared_is_refused():
    with pytest.raises(ImportError, match=r"workbench\.hooks may not import workbench\.api"):
        upward("workbench.hooks", "workbench.api")


def test_modules_are_imported_by_name_only_from_a_table():
    wrong = [
        f"{path.relative_to(ROOT)}:{call.lineno}"
        for path in MODULES
        for call in calls(path, "import_module", "__import__")
        if path.relative_to(ROOT).as_posix() not in BY_NAME
    ]
    assert not wrong, f"import by name, past the architecture test: {', '.join(wrong)}; see workbench/lazy_imports.py"


def test_every_package_imports_only_from_allowed_packages():
    wrong = []
    for path in MODULES:
        package = package_of(path)
        if package == "__init__" or package in TOPIC_FILES:
            continue  # they import names when these are used: see the tests of `import workbench`
        assert package in PACKAGES, f"workbench/{package} is new: say in docs/architecture.py what it may import"
        for name, _ in imports(path):
            head, *rest = name.split(".")
            other, allowed = rest[0] if rest else "__init__", PACKAGES[package].imports
            if head == "workbench" and other != package and other not in allowed:
                wrong.append(f"{path.relative_to(ROOT)} imports {name}; {package} may import {sorted(allowed)}")
    assert not wrong, "\n".join(wrong)


def test_the_table_of_packages_lists_all_packages_in_order():
    assert PACKAGES.keys() == {package_of(path) for path in MODULES} - {"__init__"} - TOPIC_FILES
    above: set[str] = {"__init__"}
    for name, package in PACKAGES.items():
        assert package.imports <= above, f"{name} may import {sorted(package.imports - above)}, which stand below it"
        above.add(name)


def test_the_page_on_the_architecture_has_its_generated_parts():
    page = (HOME / "docs/architecture.md").read_text("utf-8")
    assert page == architecture.generated(page), "run: python docs/architecture.py"


def test_the_architecture_page_names_existing_files():
    page = (HOME / "docs/architecture.md").read_text("utf-8")
    named = set(re.findall(r"`([\w./]+/[\w.]+\.(?:py|js|c|md))`", page))
    examples = {name for name in named if "things" in name}  # of the recipes: files that are still to be written
    assert examples and named - examples
    assert not [name for name in named - examples if not any((top / name).is_file() for top in (ROOT, HOME))]


def test_the_readme_names_every_package():
    readme = (HOME / "README.md").read_text("utf-8")
    assert not [path.parent.name for path in ROOT.glob("*/__init__.py") if f"\n  {path.parent.name}/ " not in readme]


def test_every_long_file_is_listed_with_a_reason():
    sources = [path for path in ROOT.rglob("*") if path.suffix in {".py", ".js", ".c", ".h", ".css"}]
    long = {path.relative_to(ROOT).as_posix() for path in sources if len(path.read_text("utf-8").splitlines()) > LONG}
    assert long == set(LONG_FILES), "split it, or say in docs/architecture.py why not"


def test_the_files_of_a_trace_are_those_whose_code_runs():
    code = """
import sys, workbench as wb
wb.trace("What is 2+2?", max_tokens=2)
ran = set()
sys.setprofile(lambda frame, event, _: ran.add(frame.f_code.co_filename) if event == "call" else None)
wb.trace("What is 2+2?", max_tokens=2)
sys.setprofile(None)
print("\\n".join(ran))
"""
    ran = {Path(name).relative_to(ROOT).as_posix() for name in child(code).splitlines() if name.startswith(str(ROOT))}
    ran = {name for name in ran if not name.startswith(("model/kernels", "model/checkpoints"))}
    assert ran == {*architecture.TRACE_STORY, *architecture.TRACE_BELOW}


def test_torch_stays_in_the_packages_that_run_models():
    wrong = []
    for path in MODULES:
        for name, inside in imports(path):
            part = "/".join(path.relative_to(ROOT).parts[:2])  # of pocket, two parts have torch and the rest has not
            allowed = {package_of(path), part} & WITH_TORCH or (package_of(path) == "interop" and inside)
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
            set(topics.homes(here)) - set(topics.TOPICS) - set(topics.MODULES)
            if here == "workbench" or here.removeprefix("workbench.") in topics.TOPICS
            else set()
        )
        for node in ast.walk(ast.parse(init.read_text("utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module and node.module != here:
                public |= {alias.asname or alias.name for alias in node.names}
        taken += [f"{here}.{name}" for name in modules & public]
    assert not taken


def test_stub_files_are_those_of_the_table_of_public_names():
    stale = [path.name for path, text in stubs().items() if not path.is_file() or path.read_text("utf-8") != text]
    assert stale == [], f"run `python docs/stubs.py`: {stale}"


@pytest.mark.parametrize("module", ["workbench", *(f"workbench.{topic}" for topic in topics.TOPICS)])
def test_every_public_name_exists_and_nothing_else_is_listed(module):
    space = import_module(module)
    assert dir(space) == space.__all__ == sorted(topics.homes(module))
    for name in dir(space):
        assert getattr(space, name) is not None
        assert getattr(import_module(module), name).__name__.rpartition(".")[2] == name


def test_a_name_is_in_one_topic_only():
    names = [name for table in (topics.TOP, *topics.TOPICS.values()) for name in table]
    assert sorted(names) == sorted(set(names))


def test_topics_are_imported_from_as_modules():
    from workbench.routing import expert_load

    assert expert_load is wb.routing.expert_load


def test_an_unknown_name_error_lists_the_names_of_the_topic():
    with pytest.raises(AttributeError, match=r"workbench\.probes has no 'probe'; its public names are: linear_probe"):
        getattr(wb.probes, "probe")  # noqa: B009


def test_a_name_of_another_topic_is_located_and_the_nearest_names_come_first():
    with pytest.raises(AttributeError, match=r"has no 'expert_load'; it is in wb\.routing: wb\.routing\.expert_load$"):
        getattr(wb, "expert_load")  # noqa: B009
    with pytest.raises(AttributeError, match=r"has no 'ablte'; its public names are: ablate, "):
        getattr(wb, "ablte")  # noqa: B009


def child(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=120)
    return done.stdout.strip()


def test_importing_workbench_loads_no_torch():
    heavy = "torch", "transformers", "xarray", "pandas", "tokenizers", "IPython"
    code = f"import sys, workbench; print([name for name in {heavy} if name in sys.modules])"
    assert child(code) == "[]"


def test_traces_views_and_analyses_load_without_torch():
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "import workbench as wb, workbench.views, workbench.views.page, workbench.cli\n"
        "import workbench.analysis, workbench.traces.verification\n"
        "wb.load, wb.verify, wb.steps, wb.Trace; print('loaded')"
    )
    assert child(code) == "loaded"


@pytest.mark.parametrize(
    "danger", ["innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", 'HTML(f"', "HTML(f'"]
)
def test_model_text_never_becomes_markup(danger: str):
    sources = [path for path in ROOT.rglob("*") if path.suffix in {".py", ".js", ".html"}]
    assert not [path for path in sources if danger in path.read_text("utf-8")]


def test_every_module_has_a_docstring():
    silent = [path for path in MODULES if not ast.get_docstring(ast.parse(path.read_text("utf-8")))]
    assert not silent


def test_the_problems_of_pocket_load_without_torch():
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from workbench.pocket import families, problems, rendering, vocabulary\n"
        "import random; print(families.make('addition', random.Random(3), length=2).answer)"
    )
    assert child(code) == "85"


def test_pocket_problems_import_neither_training_nor_evaluation():
    for path in (ROOT / "pocket").rglob("*.py"):
        part = path.relative_to(ROOT / "pocket").parts[0]
        for name, _ in imports(path):
            above = name.startswith(("workbench.pocket.train", "workbench.pocket.eval", "workbench.model"))
            assert part in ("train", "eval") or not above, f"{path} imports {name}"
