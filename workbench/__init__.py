"""A workbench for seeing how gpt-oss thinks.

    import workbench as wb
    trace = wb.trace("Mod 10: a=3, b=a+4, c=b*2. Find c.")   # thinks, answers, records
    trace.text(channel="analysis")                           # the chain of thought
    wb.pattern(trace, layer=1, head=2)                       # any attention pattern, exactly

Importing this package is cheap: torch is loaded when a model is, and traces open without it.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # the same names for editors and type checkers
    from workbench import errors as errors
    from workbench import names as names
    from workbench import views as views
    from workbench.analysis.attention import pattern as pattern
    from workbench.analysis.attention import pattern_band as pattern_band
    from workbench.analysis.attention import pattern_view as pattern_view
    from workbench.api import estimate as estimate
    from workbench.api import resume as resume
    from workbench.api import trace as trace
    from workbench.conversation.chat import chat as chat
    from workbench.identities import check as check
    from workbench.runner.doctor import doctor as doctor
    from workbench.runner.edits import ablate as ablate
    from workbench.runner.edits import ban as ban
    from workbench.runner.edits import force as force
    from workbench.runner.edits import steer as steer
    from workbench.runner.model import Model as Model
    from workbench.runner.weights.synth import synth as synth
    from workbench.segments import steps as steps
    from workbench.traces import Trace as Trace
    from workbench.traces import load as load

__version__ = "0.1.0"

_HOME = {  # public name -> the module that defines it
    "trace": "workbench.api",
    "estimate": "workbench.api",
    "resume": "workbench.api",
    "Model": "workbench.runner.model",
    "Trace": "workbench.traces",
    "load": "workbench.traces",
    "check": "workbench.identities",
    "chat": "workbench.conversation.chat",
    "steps": "workbench.segments",
    "pattern": "workbench.analysis.attention",
    "pattern_band": "workbench.analysis.attention",
    "pattern_view": "workbench.analysis.attention",
    "ban": "workbench.runner.edits",
    "force": "workbench.runner.edits",
    "ablate": "workbench.runner.edits",
    "steer": "workbench.runner.edits",
    "synth": "workbench.runner.weights.synth",
    "doctor": "workbench.runner.doctor",
    "names": "workbench.names",
    "errors": "workbench.errors",
    "views": "workbench.views",
}
__all__ = sorted(_HOME)  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str):
    if name not in _HOME:
        raise AttributeError(f"workbench has no {name!r}; its public names are: {', '.join(__all__)}")
    module = import_module(_HOME[name])
    return getattr(module, name, module)


def __dir__() -> list[str]:
    return __all__
