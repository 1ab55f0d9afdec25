"""Edits in force: `with model.edit(…)`, nested, undone always, and never silent.

An edit belongs to the context (`contextvars`) in which it was entered: another thread, or another task of an event
loop, does not run under it; a task that is started inside the block, or `asyncio.to_thread`, takes it along.

Python gives a generator no context of its own. So an edit that was entered in one holds only while that generator runs,
not while it is suspended at a `yield`; unless the generator is the body of a context manager (`@contextmanager`), whose
`yield` stands for the caller's block.
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
ENTERING = {"__enter__", "__aenter__", "enter_context", "enter_async_context"}  # who enters on behalf of their caller
AS_MANAGERS = {"_pytest.fixtures"}  # modules that run a generator as a context manager, besides contextlib
GENERATOR = inspect.CO_GENERATOR | inspect.CO_ASYNC_GENERATOR


class EditStack:
    """The edits that a model runs under, in the order in which they were entered.

    It only borrows them: the `with` statement owns its edit, so one whose block was left in any way at all, even by an
    interrupt between two bytecodes of `__enter__`, is no longer in force.
    """

    def __init__(self) -> None:
        self._borrowed: list[weakref.ref[Editing]] = []
        self._lock = threading.Lock()

    def in_force(self) -> list[Edit]:
        alive = [editing for ref in list(self._borrowed) if (editing := ref()) is not None]
        return [editing.tap_here() for editing in alive if editing.holds_here()]

    def add(self, editing: "Editing") -> None:
        with self._lock:
            others = [ref for ref in self._borrowed if (e := ref()) not in (None, editing) and not e.left]
            self._borrowed = [*others, weakref.ref(editing)]


class Editing:
    """What `model.edit` gives: enter it to put the edit in force, leave it to undo it."""

    def __init__(self, stack: EditStack, tap: Edit, model: object):
        self.tap = tap
        self.left = False
        self._in_force = False
        self._thread: int | None = None  # on which it was entered
        self._generator: int | None = None  # id of the frame of the generator that entered it
        self._stack, self._model, self._fired = stack, model, 0

    def __enter__(self):
        if self._in_force:
            raise EditError(f"the edit at {self.tap.glob!r} is already in force; make another with model.edit(…)")
        self._fired = self.tap.n_calls
        try:
            self.left = False
            self._thread, self._generator = threading.get_ident(), _generator(sys._getframe(1))
            others = [ref for ref in _entered.get() if (e := ref()) not in (None, self) and not e.left]
            _entered.set((*others, weakref.ref(self)))
            self._stack.add(self)
            self._in_force = True
            return self._model
        except BaseException:
            self._in_force, self.left = False, True
            raise

    def __exit__(self, kind, error, traceback) -> None:
        self._in_force, self.left = False, True
        if kind is None and self.tap.n_calls == self._fired:
            at = "" if self.tap.positions is None else f" at positions {self.tap.positions.text}"
            raise EditError(
                f"the edit at {self.tap.glob!r} never fired{at}: no run reached it inside the block. Run the model "
                f"inside the `with` and in the same thread (a new thread has no edits), and check the positions."
            )

    def __reduce_ex__(self, protocol):
        raise EditError(
            f"the edit at {self.tap.glob!r} belongs to this model in this process and cannot be copied or pickled; "
            "make it again with model.edit(…)"
        )

    def holds_here(self) -> bool:
        """Whether a run that starts here and now is under this edit."""
        if not self._in_force:
            return False
        if self._generator is not None:
            return _is_running(self._generator, sys._getframe(1))
        return any(ref() is self for ref in _entered.get())

    def tap_here(self) -> Edit:
        """The edit, for a run on this thread: runs at the same time do not share what they count."""
        return self.tap if threading.get_ident() == self._thread else copy.copy(self.tap)


def _generator(frame: FrameType | None) -> int | None:
    """The id of the generator's frame in whose body an edit is entered; None if it is entered anywhere else."""
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
