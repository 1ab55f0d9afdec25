"""Every error that workbench raises on purpose. Each message has the wrong value, what is allowed, and what to do.

WorkbenchError
├── ArgumentError          an argument with a value that is not allowed; the message says what is
│   └── ArgumentTypeError  an argument of a type that is not allowed
├── SelectionError         no such layer, head, expert, position or step
├── FileError              a file cannot be written: something else is at its path, or the disk is full or fails
├── ModelNotFound          there is no checkpoint at that path or under that name
├── CheckpointError        a checkpoint that cannot be read as gpt-oss: missing shard, keys, wrong config
├── PromptError            an empty prompt, a token id out of range, more positions than the model has
├── HookNameError          no hook point has that name
├── NotRecorded            the trace does not contain the requested array
├── CacheError             a KV cache whose layers do not have the same positions
├── ResumeError            a trace that cannot be continued by this model with its current edits
├── NotFinite              NaN or infinity in the logits of the next token; the message says where the first one is
├── EditError              an edit that matched nothing, never fired, or did not return a tensor
├── BatchError             some prompts of a batch failed; the message says which, and all others are complete
├── BudgetError            the recording does not fit into memory or on disk; the message lists smaller recordings
├── FigureError            a figure whose numbers are inconsistent; the message names them
├── InteropError           a model, cache or session of another library that cannot be recorded as a trace
├── MissingDependency      an optional package is missing; the message has the command to install it
├── UnsupportedPlatform    this system lacks file locks (fcntl); the message names the supported systems
└── TraceError
    ├── TraceNotFound      there is no trace at that path
    ├── TraceCorrupt       bytes do not match their hash, or the manifest does not describe its files
    ├── TraceUnsafe        a symlink, a FIFO, a size over the limit, or an invalid name
    ├── TraceVersion       the trace has another schema
    └── TraceExists        another trace, or the same id with other content, is already there
"""

from collections.abc import Mapping
from types import MappingProxyType

from workbench.text import printable


class WorkbenchError(Exception):
    """The base class: `except WorkbenchError` catches every error that workbench raises on purpose.

    Hidden characters in a message, for instance of a file's name or a template, are made visible; line feeds stay.
    """

    def __init__(self, *args: object):
        super().__init__(*(printable(arg, "\n") if isinstance(arg, str) else arg for arg in args))

    def add_note(self, note: str, /) -> None:
        super().add_note(printable(note, "\n"))


class ArgumentError(WorkbenchError, ValueError):
    """An argument with a value that is not allowed."""


class ArgumentTypeError(ArgumentError, TypeError):
    """An argument of a type that is not allowed."""


class SelectionError(WorkbenchError, IndexError):
    """No such layer, head, expert, position or step."""


class FileError(WorkbenchError, OSError):
    """A file cannot be written: something other than a file is at its path, or the disk is full or fails."""


class ModelNotFound(WorkbenchError, LookupError):
    """There is no checkpoint at that path or under that name."""


class CheckpointError(WorkbenchError):
    """A checkpoint that cannot be read as gpt-oss: missing shard, keys, wrong config."""


class PromptError(WorkbenchError, ValueError):
    """An empty prompt, a token id out of range, more positions than the model has."""


class HookNameError(WorkbenchError, LookupError):
    """No hook point has that name."""


class NotRecorded(WorkbenchError, LookupError):
    """The trace does not contain the requested array."""


class CacheError(WorkbenchError):
    """A KV cache whose layers do not have the same positions."""


class ResumeError(WorkbenchError):
    """A trace that cannot be continued by this model with its current edits."""


class NotFinite(WorkbenchError, ArithmeticError):
    """NaN or infinity in the logits of the next token."""


class EditError(WorkbenchError):
    """An edit that matched nothing, never fired, or did not return a tensor."""


class BatchError(WorkbenchError):
    """Some prompts of a batch failed, and all others are complete. `errors` has the error of each, by its number."""

    errors: Mapping[int, Exception] = MappingProxyType({})


class BudgetError(WorkbenchError):
    """The recording does not fit into memory or on disk."""


class FigureError(WorkbenchError, ValueError):
    """A figure whose numbers are inconsistent."""


class InteropError(WorkbenchError):
    """A model, cache or session of another library that cannot be recorded as a trace."""


class MissingDependency(WorkbenchError, ImportError):
    """An optional package is missing."""


class UnsupportedPlatform(WorkbenchError, ImportError):
    """This system lacks file locks (fcntl), which reading and writing traces need."""


class TraceError(WorkbenchError):
    """Something is wrong with a trace on disk."""


class TraceNotFound(TraceError, LookupError):
    """There is no trace at that path."""


class TraceCorrupt(TraceError):
    """Bytes do not match their hash, or the manifest does not describe its files."""


class TraceUnsafe(TraceError):
    """A symlink, a FIFO, a size over the limit, or an invalid name."""


class TraceVersion(TraceError):
    """The trace has another schema."""


class TraceExists(TraceError):
    """Another trace, or the same id with other content, is already there."""


class VerificationWarning(UserWarning):
    """A trace was recorded, but one of the model's identities does not hold in it."""

    def __init__(self, *args: object):
        super().__init__(*(printable(arg, "\n") if isinstance(arg, str) else arg for arg in args))
