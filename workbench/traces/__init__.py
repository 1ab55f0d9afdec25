"""Traces: what a run of a model left behind, in memory and on disk. Opens without torch, a model or a network."""

from workbench.traces.manifest import Chunk, Manifest, TensorInfo
from workbench.traces.reader import Report, verify
from workbench.traces.trace import Trace, load
from workbench.traces.writer import TraceWriter, check_place, predicted_bytes, write

__all__ = [
    "Chunk",
    "Manifest",
    "Report",
    "TensorInfo",
    "Trace",
    "TraceWriter",
    "check_place",
    "load",
    "predicted_bytes",
    "verify",
    "write",
]
