"""Active edits: `with model.edit(…)`. They nest, are always undone, and raise an error if they never fire.

An edit belongs to the context (`contextvars`) in which it was entered. It is not active in another thread or in another
task of an event loop. It is active in a task that is started inside the block, and in `asyncio.to_thread`.

A generator has no context of its own in Python. An edit that was entered in a generator is therefore active only while
that generator runs, not while it is suspended at a `yield`. The exception is the body of a context manager
(`@contextmanager`), whose `yield` runs the caller's block.
"""

import copy
import inspect
import sys
import threading
import weakref
from contextvars import ContextVar
from types import FrameType

from workbench.edits.edit import Edit
from workbench.errors import EditError

_entered: ContextVar[tuple["weakref.ref[Editing]", ...]] = ContextVar("workbench edits", default=())
ENTERING = {
    "__enter__",
    "__aenter__",
    "enter_context",
    "enter_async_context",
}  # functions that enter a context manager for their caller
AS_MANAGERS = {"_pytest.fixtures"}  # modules that run a generator as a context manager, besides contextlib
GENERATOR = inspect.CO_GENERATOR | inspect.CO_ASYNC_GENERATOR


class EditStack:
    """The active edits of a model, in the order in which they were entered.

    It holds weak references: the `with` statement owns its edit. An edit is therefore no longer active once its block
    has ended in any way, even by an interrupt between two bytecodes of `__enter__`.
    """

    def __init__(self) -> None:
        self._refs: list[weakref.ref[Editing]] = []
        self._lock = threading.Lock()

    def active(self) -> list[Edit]:
        alive = [editing for ref in list(self._refs) if (editing := ref()) is not None]
        return [editing.tap_for_thread() for editing in alive if editing.is_active_here()]

    def add(self, editing: "Editing") -> None:
        with self._lock:
            others = [ref for ref in self._refs if (e := ref()) not in (None, editing) and not e.exited]
            self._refs = [*others, weakref.ref(editing)]


class Editing:
    """The context manager that `model.edit` returns: entering activates the edit, leaving undoes it."""

    def __init__(self, stack: EditStack, tap: Edit, model: object):
        self.tap = tap
        self.exited = False
        self._active = False
        self._thread: int | None = None  # the thread that entered it
        self._generator: int | None = None  # id of the frame of the generator that entered it, if any
        self._stack, self._model, self._calls_before = stack, model, 0

    def __enter__(self):
        if self._active:
            raise EditError(f"the edit at {self.tap.glob!r} is already active. Make another one with model.edit(…).")
        self._calls_before = self.tap.n_calls
        try:
            self.exited = False
            self._thread, self._generator = threading.get_ident(), _generator(sys._getframe(1))
            others = [ref for ref in _entered.get() if (e := ref()) not in (None, self) and not e.exited]
            _entered.set((*others, weakref.ref(self)))
            self._stack.add(self)
            self._active = True
            return self._model
        except BaseException:
            self._active, self.exited = False, True
            raise

    def __exit__(self, kind, error, traceback) -> None:
        self._active, self.exited = False, True
        if kind is None and self.tap.n_calls == self._calls_before:
            at = "" if self.tap.positions is None else f" at positions {self.tap.positions.text}"
            raise EditError(
                f"the edit at {self.tap.glob!r} never fired{at}: no run reached it inside the block. Run the model "
                f"inside the `with` and in the same thread (edits are not active in a new thread), and check the "
                f"positions."
            )

    def __reduce_ex__(self, protocol):
        raise EditError(
            f"the edit at {self.tap.glob!r} belongs to this model in this process and cannot be copied or pickled. "
            "Make a new one with model.edit(…)."
        )

    def is_active_here(self) -> bool:
        """True if the edit applies to a run that starts in the current context."""
        if not self._active:
            return False
        if self._generator is not None:
            return _is_running(self._generator, sys._getframe(1))
        return any(ref() is self for ref in _entered.get())

    def tap_for_thread(self) -> Edit:
        """The edit for a run on this thread: a copy on other threads, so that concurrent runs have separate tallies."""
        return self.tap if threading.get_ident() == self._thread else copy.copy(self.tap)


def _generator(frame: FrameType | None) -> int | None:
    """The id of the frame of the generator in whose body an edit is entered, or None outside of a generator."""
    while frame is not None:
        above = frame.f_back
        if frame.f_code.co_flags & GENERATOR and not (above and _runs_managers(above)):
            return id(frame)
        if not (frame.f_code.co_flags & GENERATOR or frame.f_code.co_name in ENTERING or _runs_managers(frame)):
            return None
        frame = above
    return None


def _runs_managers(frame: FrameType) -> bool:
    module = frame.f_globals.get("__name__")
    return module in AS_MANAGERS or (module == "contextlib" and frame.f_code.co_name in ENTERING)


def _is_running(generator: int, frame: FrameType | None) -> bool:
    while frame is not None and id(frame) != generator:
        frame = frame.f_back
    return frame is not None
