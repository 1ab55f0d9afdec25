"""Imports from a lower package to a higher one: each is declared here with its reason, and happens at call time.

Packages import downward only. A method of a lower package that needs a higher one (`model.trace` records) imports it
through `upward`, so that the architecture test can list every such import.
"""

from importlib import import_module
from types import ModuleType

# (importing module, imported module) -> reason
UPWARD: dict[tuple[str, str], str] = {
    ("workbench.model.model", "workbench.recording.record"): "model.trace records the text that the model reads",
    ("workbench.model.model", "workbench.recording.generation"): "model.generate and model.resume record a generation",
    ("workbench.model.model", "workbench.recording.many"): "model.generate_many records several generations",
    ("workbench.model.model", "workbench.recording.plan"): "model.estimate plans a recording without making it",
    (
        "workbench.traces.trace",
        "workbench.views.score_sheet_view",
    ): "a trace in a notebook shows its score sheet",
    ("workbench.stores.store", "workbench.views.summary_view"): "a store in a notebook shows its runs as a table",
}


def upward(importer: str, module: str) -> ModuleType:
    """The module, imported now. Raises ImportError unless the import is declared in `UPWARD`."""
    if (importer, module) not in UPWARD:
        raise ImportError(f"{importer} may not import {module}: declare it in {__name__}.UPWARD, with a reason")
    return import_module(module)
