"""The imports that go against the layers: each is declared here with its reason, and done when a function runs.

Packages import downward only. A method of a low object that is made of a higher package's work (`model.trace` records)
imports it through `upward`, so that the architecture test can list every such arrow.
"""

from importlib import import_module
from types import ModuleType

# (importing module, imported module) -> why
UPWARD: dict[tuple[str, str], str] = {
    ("workbench.model.model", "workbench.recording.record"): "model.trace records the text that the model reads",
    ("workbench.model.model", "workbench.recording.generation"): "model.generate and model.resume record a generation",
    ("workbench.model.model", "workbench.recording.plan"): "model.estimate plans a recording without making it",
    (
        "workbench.traces.trace",
        "workbench.views.score_sheet_view",
    ): "a trace in a notebook shows its score sheet",
}


def upward(importer: str, module: str) -> ModuleType:
    """The module, imported now. Raises ImportError unless the arrow from `importer` is declared in `UPWARD`."""
    if (importer, module) not in UPWARD:
        raise ImportError(f"{importer} may not import {module}: declare it in {__name__}.UPWARD, with a reason")
    return import_module(module)
