"""Other libraries: traces recorded from their models, readers of their files, and exports of a Trace to their formats.

    wb.interop.transformers.record(model, "What is 2+2?")       any causal language model of transformers, on any device
    wb.interop.transformer_lens.record(bridge, …), from_cache   a TransformerBridge, an ActivationCache
    wb.interop.nnsight.record(model, …), wrap(runner)           an nnsight model; workbench's runner as an nnsight model

None of these libraries is imported until a function needs it.
"""

from importlib import import_module
from types import ModuleType

_HOME = {  # public name -> its module
    name: f"{__name__}.{name}"
    for name in (
        "circuit_tracer",
        "inif",
        "nnsight",
        "transformer_lens",
        "transformers",
        "xarray_tables",
    )
}


def __getattr__(name: str) -> ModuleType:
    if name not in _HOME:
        raise AttributeError(f"workbench.interop has no {name!r}; it has: {', '.join(_HOME)}")
    return import_module(_HOME[name])


def __dir__() -> list[str]:
    return list(_HOME)
