"""Every error that workbench raises on purpose; each says what was asked, what there is, and what to do.

WorkbenchError
├── ArgumentError          an argument with a value that is not allowed; the message says what is
│   └── ArgumentTypeError  an argument of a type that is not allowed
├── SelectionError         no such layer, head, expert, position or step
├── FileError              a file cannot be written at that path, because something else than a file is there
├── ModelNotFound          no checkpoint at that place
├── CheckpointError        a checkpoint that cannot be read as gpt-oss: missing shard, keys, wrong config
├── PromptError            an empty prompt, a token id out of range, more positions than the model has
├── HookNameError          no hook point has that name
├── NotRecorded            the trace does not hold what was asked
├── CacheError             keys and values whose layers do not hold the same positions
├── ResumeError            a trace that this model, as it is now, cannot go on with
├── NotFinite              NaN or infinity where a token was to be drawn; the message says where the first one is
├── EditError              an edit that matched nothing, never fired, or returned something else than a tensor
├── BudgetError            the recording would not fit; the message names cheaper choices
├── FigureError            a figure whose numbers do not fit together; the message says which
├── InteropError           a model, cache or session of another library that no trace can be made from
├── MissingDependency      an optional package is needed; the message says how to install it
├── UnsupportedPlatform    this system lacks what traces are read and written with; the message says where it runs
└── TraceError
    ├── TraceNotFound      there is no trace at that path
    ├── TraceCorrupt       bytes differ from their hash, or the manifest does not describe its files
    ├── TraceUnsafe        symlinks, FIFOs, absurd sizes, names that are no names
    ├── TraceVersion       written by another schema
    └── TraceExists        another trace, or the same id with other content, is already there
"""


class WorkbenchError(Exception):
    """The root: `except WorkbenchError` catches whatever workbench raises on purpose."""


class ArgumentError(WorkbenchError, ValueError):
    pass


class ArgumentTypeError(ArgumentError, TypeError):
    pass


class SelectionError(WorkbenchError, IndexError):
    pass


class FileError(WorkbenchError, OSError):
    pass


class ModelNotFound(WorkbenchError, LookupError):
    pass


class CheckpointError(WorkbenchError):
    pass


class PromptError(WorkbenchError, ValueError):
    pass


class HookNameError(WorkbenchError, LookupError):
    pass


class NotRecorded(WorkbenchError, LookupError):
    pass


class CacheError(WorkbenchError):
    pass


class ResumeError(WorkbenchError):
    pass


class NotFinite(WorkbenchError, ArithmeticError):
    pass


class EditError(WorkbenchError):
    pass


class BudgetError(WorkbenchError):
    pass


class FigureError(WorkbenchError, ValueError):
    pass


class InteropError(WorkbenchError):
    pass


class MissingDependency(WorkbenchError, ImportError):
    pass


class UnsupportedPlatform(WorkbenchError, ImportError):
    pass


class TraceError(WorkbenchError):
    pass


class TraceNotFound(TraceError, LookupError):
    pass


class TraceCorrupt(TraceError):
    pass


class TraceUnsafe(TraceError):
    pass


class TraceVersion(TraceError):
    pass


class TraceExists(TraceError):
    pass


class VerificationWarning(UserWarning):
    """A trace was recorded, but one of the model's own identities does not hold on it."""
