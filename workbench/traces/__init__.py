"""Traces: the record of one run of a model, in memory and on disk. Opens without torch, a model or a network."""

from workbench.traces.authorship import Stretch
from workbench.traces.calls import Call
from workbench.traces.manifest import Chunk, Manifest, TensorInfo
from workbench.traces.reader import Report, verify
from workbench.traces.run_checkpoint import RunCheckpoint
from workbench.traces.trace import Trace, load
from workbench.traces.writer import TraceWriter, check_writable, predicted_bytes, write

__all__ = [
    "Call",
    "Chunk",
    "Manifest",
    "Report",
    "RunCheckpoint",
    "Stretch",
    "TensorInfo",
    "Trace",
    "TraceWriter",
    "check_writable",
    "load",
    "predicted_bytes",
    "verify",
    "write",
]
