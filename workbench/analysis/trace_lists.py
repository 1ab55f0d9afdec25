"""The traces of an analysis of several runs: a list of traces, of models of one shape."""

from typing import Any

from workbench.checks import check_items, check_type
from workbench.errors import ArgumentError
from workbench.traces import Trace

SHAPE = ("n_layers", "d_model", "n_heads", "n_experts", "n_active", "d_vocab")


def trace_list(function: str, traces: Any) -> list[Trace]:
    """The traces as a list; one trace is a list of one. `function` names the function in the error.

    >>> trace = wb.trace("What is 12+30?")
    >>> trace_list("routing_drift", trace) == trace_list("routing_drift", (trace,)) == [trace]
    True

    Raises ArgumentTypeError for anything but traces, ArgumentError for none and for traces of models of different
    shapes, whose layers and experts cannot be compared.
    """
    listed = [traces] if isinstance(traces, Trace) else check_items("traces", traces)
    for trace in listed:
        check_type(function, trace, Trace)
    shapes = [{name: trace.config.get(name) for name in SHAPE} for trace in listed]
    for i, shape in enumerate(shapes):
        if different := [name for name in SHAPE if shape[name] != shapes[0][name]]:
            name = different[0]
            raise ArgumentError(
                f"the traces must be of models of one shape: traces[{i}] has {name}={shape[name]} and traces[0] has "
                f"{name}={shapes[0][name]}. Give the traces of one model."
            )
    return listed
