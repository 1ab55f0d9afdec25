"""Other libraries: their models leave the same Trace, their files are read, a Trace leaves in their formats.

    wb.interop.transformers.record(model, "What is 2+2?")       any causal model of transformers, on any device
    wb.interop.transformer_lens.record(bridge, …), from_cache   a TransformerBridge, an ActivationCache
    wb.interop.nnsight.record(model, …), wrap(runner)           an nnsight model; our runner as one

Nothing of these libraries is imported until a function needs it.
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
