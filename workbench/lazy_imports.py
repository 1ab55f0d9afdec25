"""The imports that go upward: from a module to one that stands above it, made when the call needs it.

All other imports go downward, to packages that stand below (`tests/test_architecture.py`). An arrow that is not in this
table is refused here, and one that nothing uses fails that test.
"""

from importlib import import_module
from types import ModuleType

UPWARD: dict[tuple[str, str], str] = {  # (importing module, imported module) -> why
    (
        "workbench.traces.trace",
        "workbench.views.score_sheet_view",
    ): "a trace at the end of a notebook cell shows itself",
}


def upward(importer: str, module: str) -> ModuleType:
    """The module `module`, imported for `importer`; raises ImportError if `UPWARD` does not declare the arrow."""
    if (importer, module) not in UPWARD:
        raise ImportError(f"{importer} may not import {module}: lazy_imports.UPWARD does not declare it")
    return import_module(module)
