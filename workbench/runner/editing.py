"""Edits in force: `with model.edit(…)`, nested, undone always, and never silent."""

import threading
import weakref

from workbench.errors import EditError
from workbench.runner.taps import Edit


class EditStack:
    """The edits that a model runs under, in the order in which they were entered.

    It only borrows them: the `with` statement owns its edit, so one whose block was left in any way at all, even by an
    interrupt between two bytecodes of `__enter__`, is gone. An edit holds for runs on the thread that entered it.
    """

    def __init__(self) -> None:
        self._borrowed: list[weakref.ref[Editing]] = []

    def in_force(self) -> list[Edit]:
        thread = threading.get_ident()
        alive = [editing for ref in list(self._borrowed) if (editing := ref()) is not None]
        return [editing.tap for editing in alive if editing.thread == thread]

    def add(self, editing: "Editing") -> None:
        kept = [ref for ref in self._borrowed if (e := ref()) not in (None, editing) and not e.left]
        self._borrowed = [*kept, weakref.ref(editing)]


class Editing:
    """What `model.edit` gives: enter it to put the edit in force, leave it to undo it."""

    def __init__(self, stack: EditStack, tap: Edit, model: object):
        self.tap = tap
        self.thread: int | None = None  # the thread on which the edit holds; None: not in force
        self.left = False
        self._stack, self._model, self._fired = stack, model, 0

    def __enter__(self):
        if self.thread is not None:
            raise EditError(f"the edit at {self.tap.glob!r} is already in force; make another with model.edit(…)")
        self._fired = self.tap.fired
        try:
            self.left = False
            self._stack.add(self)
            self.thread = threading.get_ident()
            return self._model
        except BaseException:
            self.thread, self.left = None, True
            raise

    def __exit__(self, kind, error, traceback) -> None:
        self.thread, self.left = None, True
        if kind is None and self.tap.fired == self._fired:
            at = "" if self.tap.positions is None else f" at positions {self.tap.positions.text}"
            raise EditError(
                f"the edit at {self.tap.glob!r} never fired{at}: no run on this thread reached it inside the block. "
                f"Run the model inside the `with`, and check the positions."
            )
