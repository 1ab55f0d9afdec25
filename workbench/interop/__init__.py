"""Other libraries: traces recorded from their models, readers of their files, and exports of a Trace to their formats.

    wb.interop.transformers.record(model, "What is 2+2?")       any causal language model of transformers, on any device
    wb.interop.transformer_lens.record(bridge, …), from_cache   a TransformerBridge, an ActivationCache
    wb.interop.nnsight.record(model, …), wrap(runner)           an nnsight model; workbench's runner as an nnsight model

None of these libraries is imported until a function needs it.
"""

from workbench.topics import lazy_names

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
__getattr__, __dir__, __all__ = lazy_names(__name__, _HOME)
