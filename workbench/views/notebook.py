"""A view in Jupyter: two outputs, a snapshot that is saved and a widget that is alive; CSS chooses which one is seen.

The widget's state is small and never needed: its numbers come as messages when it is drawn, so a notebook that is
opened without a kernel, untrusted, or in another program shows the snapshot instead of an error.

Where there is room for one output only (a display handle, `Output.append_display_data`, another program that asks for a
mime bundle) it is the snapshot.
"""

import sys
from functools import cache
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from workbench.text import html
from workbench.views.script import script, style
from workbench.views.snapshot_html import table

if TYPE_CHECKING:
    from workbench.views.view import View

# The snapshot goes when the live view beside it is drawn, which says so by .wb-alive (mount.js); until then, and where
# it never is, the widget's output does. A :has that looked inside a live view would do so at every move of the mouse.
_CHOOSE = """<style>
.jp-OutputArea-child:has(> * > [data-wb-still="{id}"]):has(+ .wb-alive) {{ display: none; }}
.jp-OutputArea-child:has(> * > [data-wb-still="{id}"]) + .jp-OutputArea-child:not(.wb-alive) {{ display: none; }}
</style>"""


def show(view: "View") -> None:
    """Display a view, in Jupyter; elsewhere, and where one output is asked for, NotImplementedError tells IPython to
    take the mime bundle.
    """
    from IPython import get_ipython
    from IPython.display import display

    if not hasattr(get_ipython(), "kernel") or _one_output_is_asked_for():
        raise NotImplementedError
    live = widget(view)
    display({"text/html": snapshot(view, live is not None), "text/plain": repr(view)}, raw=True)
    if live is not None:
        data, metadata = live._repr_mimebundle_()
        display({**data, "text/plain": "(the live view: run this cell)"}, metadata=metadata, raw=True)


def snapshot(view: "View", living: bool = True) -> str:
    """The view as HTML that needs no script; a mark that CSS finds it by."""
    mark = uuid4().hex[:12]
    note = "snapshot: run the cell for the live view" if living else "snapshot: pip install gpt-oss-workbench[lab]"
    choose = _CHOOSE.format(id=mark) if living else ""
    return choose + _snapshot_html(view, mark, note)


def bundle(view: "View") -> dict[str, str]:
    """The view as one output, by mime type: its snapshot, and its line for a terminal."""
    found = sys.modules.get("IPython")
    shell = found.get_ipython() if found else None
    if shell is not None and not hasattr(shell, "kernel"):  # a terminal shows no HTML
        return {"text/plain": repr(view)}
    note = "snapshot: the view alone on the last line of a cell is live"
    return {"text/html": _snapshot_html(view, uuid4().hex[:12], note), "text/plain": repr(view)}


def _snapshot_html(view: "View", mark: str, note: str) -> str:
    return f'<div data-wb-still="{mark}">{table(view.snapshot())}<small>{html(repr(view))}, {note}</small></div>'


def _one_output_is_asked_for() -> bool:
    """Whether whoever asks IPython for the formats of a view wants them back, instead of having the view displayed.

    IPython has one question for both, so its stack is looked at: the last line of a cell and a plain `display(view)`
    have the view displayed; a display with an id, with some formats only, and all others who call `format` do not.
    """
    frame = sys._getframe(1)
    while frame and (frame.f_code.co_name, frame.f_globals.get("__name__")) != ("format", "IPython.core.formatters"):
        frame = frame.f_back
    if frame is None or frame.f_back is None:  # called by itself
        return False
    caller = frame.f_back
    name, module = caller.f_code.co_name, str(caller.f_globals.get("__name__"))
    if name == "display" and module.startswith("IPython.core.display"):
        return any(caller.f_locals.get(key) is not None for key in ("display_id", "include", "exclude"))
    return not (name == "compute_format_data" and module == "IPython.core.displayhook")


def widget(view: "View") -> Any:
    """The view's widget, made once; None without anywidget."""
    with view._lock:
        if view._live is None:
            try:
                made = _class()
            except ImportError:
                return None
            live = made(_esm=script(view.module) + "export default { render: renderLive };\n", selected=view._selected)
            live.on_msg(lambda _, message, buffers: live.send(*_answer(view, message)))
            view._live = live
        return view._live


def _answer(view: "View", message: dict[str, Any]) -> tuple[dict[str, Any], list[bytes]]:
    """Runs on Jupyter's own thread while cells run: reads what cannot change, and never raises."""
    number = message.get("id")
    try:
        return {"id": number}, [view.reply(str(message["kind"]), message.get("request") or {})]
    except Exception as error:  # the reader sees it where the view would be
        return {"id": number, "error": f"{type(error).__name__}: {error}"}, []


@cache
def _class() -> type:
    import anywidget
    import traitlets

    class Live(anywidget.AnyWidget):
        _esm = traitlets.Unicode().tag(sync=True)
        _css = traitlets.Unicode(style()).tag(sync=True)
        selected = traitlets.Dict(allow_none=True, default_value=None).tag(sync=True)

    return Live
