"""Other libraries: their models leave the same Trace, their files are read, a Trace leaves in their formats.

    wb.interop.transformers.record(model, "What is 2+2?")       any causal model of transformers, on any device
    wb.interop.transformer_lens.record(bridge, …), from_cache   a TransformerBridge, an ActivationCache
    wb.interop.nnsight.record(model, …), wrap(runner)           an nnsight model; our runner as one

Nothing of these libraries is imported until a function needs it.
"""

import pkgutil
from importlib import import_module


def __getattr__(name: str):
    if name not in __dir__():
        raise AttributeError(f"workbench.interop has no {name!r}; it has: {', '.join(__dir__())}")
    return import_module(f"{__name__}.{name}")


def __dir__() -> list[str]:
    return sorted(module.name for module in pkgutil.iter_modules(__path__))
