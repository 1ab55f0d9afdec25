"""Progress bars as text, gone when the work ends: on stderr in a terminal, in the output of the cell in a notebook.

tqdm's own notebook bar is a widget. A saved notebook keeps it as a dead widget, and shows work that ended early as
failed. Here a cell keeps one empty output at most.
"""

import sys
from collections.abc import Iterable
from typing import Any

from tqdm.std import tqdm

from workbench.text import printable

Bar = tqdm
DELAY = 1.0  # seconds; shorter work shows no bar
NOTEBOOK_COLUMNS = 80


def progress_bar(items: Iterable[Any] | None = None, desc: str = "", **options: Any) -> Bar:
    """A bar of tqdm over `items`, or one to be updated; `options` are those of tqdm. Shown in terminals and notebooks.

    >>> sum(progress_bar([1, 2, 3], "adding"))
    6
    """
    options = {"leave": False, "delay": DELAY, "disable": None, "desc": printable(desc)} | options
    kind: Any = tqdm if _kernel() is None else NotebookBar
    return kind(items, **options)


def progress_count(desc: str, unit: str, at_most: int) -> Bar:
    """A count with its rate, for work that ends when it is done and not at a known number: no bar, no time left.

    >>> with progress_count("generating", "token", at_most=1024) as count:
    ...     count.update()
    """
    form = f"{{desc}}: {{n_fmt}} {unit}s, at most {at_most:,} [{{elapsed}}, {{rate_fmt}}]"
    return progress_bar(desc=desc, unit=f" {unit}s", bar_format=form)


def _kernel() -> Any:
    """The kernel of the notebook in which this runs; None elsewhere."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython else None
    return getattr(shell, "kernel", None)


class _Output:
    """A text in the output of a cell. tqdm takes it for its file, to which it writes nothing."""

    encoding = "utf-8"
    idle: tuple[Any, ...] = (None,)  # the cell, and its outputs that are empty now

    def __init__(self) -> None:
        self.handle: Any = None

    def show(self, text: str) -> None:
        if self.handle is None:
            self._take(text)
        else:
            self.handle.update({"text/plain": text}, raw=True)

    def clear(self) -> None:
        """Empties the output; the next bar of this cell takes it."""
        if self.handle is not None:
            self.show("")
            if self.cell == _Output.idle[0]:
                _Output.idle = (*_Output.idle, self.handle)
            self.handle = None

    def _take(self, text: str) -> None:
        from IPython.display import DisplayHandle

        kernel = _kernel()
        self.cell = kernel.get_parent().get("header", {}).get("msg_id") if kernel else None
        if self.cell != _Output.idle[0]:
            _Output.idle = (self.cell,)
        if len(_Output.idle) > 1:
            self.handle, _Output.idle = _Output.idle[-1], _Output.idle[:-1]
            self.show(text)
        else:
            self.handle = DisplayHandle()
            self.handle.display({"text/plain": text}, raw=True)

    def write(self, text: str) -> None:
        """Nothing: tqdm moves the cursor of a terminal with it."""

    def flush(self) -> None:
        """Nothing is buffered."""


class NotebookBar(tqdm):
    """A bar of tqdm in the output of a notebook's cell, which is empty after `close`."""

    def __init__(self, items: Any = None, **options: Any):
        self.output = _Output()
        options = {"ncols": NOTEBOOK_COLUMNS} | options | {"leave": False, "file": self.output}
        super().__init__(items, **options)

    @staticmethod
    def status_printer(file: Any) -> Any:
        """How tqdm draws the bar."""
        return file.show

    def close(self) -> None:
        super().close()
        self.output.clear()
