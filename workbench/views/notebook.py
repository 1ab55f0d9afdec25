"""A view in Jupyter: two outputs, a snapshot that is saved and a live widget. CSS shows one of them.

The widget's saved state is small and never needed, because its numbers arrive as messages when it is drawn. A notebook
that is opened without a kernel, untrusted, or in another program therefore shows the snapshot instead of an error.

Where only one output is possible (a display handle, `Output.append_display_data`, another program that requests a mime
bundle), it is the snapshot.
"""

import sys
from contextlib import suppress
from functools import cache
from hashlib import sha256
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from workbench.errors import WorkbenchError
from workbench.text import printable
from workbench.views.script import script, style
from workbench.views.snapshot_html import label_html, table

if TYPE_CHECKING:
    from workbench.views.view import View

MAX_ID, MAX_ERROR = 100, 1000  # characters

# mount.js sets .wb-alive when the live view is drawn. From then on the snapshot is hidden; before that, and where it is
# never drawn, the widget's output is hidden. No :has selector looks inside a live view: it would be evaluated at every
# move of the mouse.
# A widget that has an element of its own but no live view after ten seconds has not started: the style says so, because
# no script of ours runs then. Where styles are removed, nothing is said.
_CHOOSE = """<style>
@keyframes wb-late {{ to {{ visibility: visible; }} }}
.jp-OutputArea-child:has(+ .jp-OutputArea-child:not(.wb-alive) > * > .lm-Widget) > * > [data-wb-still="{id}"]::after {{
  content: "The live view did not start: run the cell again."; font-weight: bold; display: block;
  visibility: hidden; animation: wb-late 0s 10s forwards;
}}
.jp-OutputArea-child:has(> * > [data-wb-still="{id}"]):has(+ .wb-alive) {{ display: none; }}
.jp-OutputArea-child:has(> * > [data-wb-still="{id}"]) + .jp-OutputArea-child:not(.wb-alive) {{ display: none; }}
</style>"""


def display_in_jupyter(view: "View") -> None:
    """Display snapshot and widget in Jupyter.

    Raises NotImplementedError outside Jupyter and where only one output is possible; IPython then uses the mime bundle.
    """
    from IPython import get_ipython
    from IPython.display import display

    if not hasattr(get_ipython(), "kernel") or _one_output_requested():
        raise NotImplementedError
    live = widget(view)
    display({"text/html": snapshot(view, live is not None), "text/plain": repr(view)}, raw=True)
    if live is not None:
        data, metadata = live._repr_mimebundle_()
        # No text: where the widget cannot be shown, the snapshot above has already said what to do.
        display({**data, "text/plain": ""}, metadata=metadata, raw=True)


def snapshot(view: "View", has_widget: bool = True) -> str:
    """The view as HTML that needs no script; a unique id lets the CSS above hide it once the live view is shown."""
    mark = uuid4().hex[:12]
    note = "snapshot: run the cell for the live view" if has_widget else "snapshot: pip install gpt-oss-workbench[lab]"
    choose = _CHOOSE.format(id=mark) if has_widget else ""
    return choose + _snapshot_html(view, mark, note)


def bundle(view: "View") -> dict[str, str]:
    """The view as one output, by mime type: its snapshot as HTML, and its `repr` as text."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython else None
    if shell is not None and not hasattr(shell, "kernel"):  # a terminal shows no HTML
        return {"text/plain": repr(view)}
    note = "snapshot: for the live view, put the view alone on the last line of a cell"
    return {"text/html": _snapshot_html(view, uuid4().hex[:12], note), "text/plain": repr(view)}


def _snapshot_html(view: "View", mark: str, note: str) -> str:
    return f'<div data-wb-still="{mark}">{table(view.snapshot())}<small>{label_html(repr(view))}, {note}</small></div>'


def _one_output_requested() -> bool:
    """Whether the caller of IPython's formatter needs the formats of a view returned, instead of the view displayed.

    IPython calls the same method for both, so this inspects the call stack. The last line of a cell and a plain
    `display(view)` display the view. A display with an id or with some formats only, and all other callers of `format`,
    need the formats.
    """
    frame = sys._getframe(1)
    while frame and (frame.f_code.co_name, frame.f_globals.get("__name__")) != ("format", "IPython.core.formatters"):
        frame = frame.f_back
    if frame is None or frame.f_back is None:  # not called by IPython
        return False
    caller = frame.f_back
    name, module = caller.f_code.co_name, str(caller.f_globals.get("__name__"))
    if name == "display" and module.startswith("IPython.core.display"):
        return any(caller.f_locals.get(key) is not None for key in ("display_id", "include", "exclude"))
    return not (name == "compute_format_data" and module == "IPython.core.displayhook")


def widget(view: "View") -> Any:
    """The view's widget, which is made once; None if anywidget is not installed."""
    with view._lock:
        if view._live is None:
            try:
                widget_class = _class()
            except ImportError:
                return None
            chosen = view._selected_range
            live = widget_class(
                view,
                _esm=loader(view.module),
                selected=view._selected,
                selected_range=None if chosen is None else [chosen.start, chosen.stop],
            )
            live.observe(view._changed, ["selected", "selected_range"])
            live.on_msg(lambda _, message, buffers: live.send(*_reply(view, message)))
            view._live = live
        return view._live


def live_script(module: str) -> str:
    """The script of a live view, which `loader` requests."""
    return script(module) + "export { renderLive };\n"


def loader(module: str) -> str:
    """The widget's own script: short, so that it starts at once; it requests `live_script` if the page has none yet."""
    digest = sha256(live_script(module).encode()).hexdigest()[:12]
    return f'const SCRIPT="{module}-{digest}";\n{script("loader")}export default {{ render }};\n'


def _reply(view: "View", message: Any) -> tuple[dict[str, Any], list[bytes]]:
    """Header and buffers that answer a message. Runs on Jupyter's own thread while cells run, and never raises."""
    message = message if isinstance(message, dict) else {}
    number = message.get("id")
    if not isinstance(number, str) or len(number) > MAX_ID:  # the browser's ids are short texts; JSON has all of them
        number = None
    kind, request = message.get("kind"), message.get("request") or {}
    try:
        return {"id": number}, [live_script(view.module).encode() if kind == "script" else view.reply(kind, request)]
    except Exception as error:  # the browser shows it in place of the view
        return {"id": number, "error": printable(f"{type(error).__name__}: {error}")[:MAX_ERROR]}, []


@cache
def _class() -> type:
    import anywidget
    import traitlets

    class Live(anywidget.AnyWidget):
        _esm = traitlets.Unicode().tag(sync=True)
        _css = traitlets.Unicode(style()).tag(sync=True)
        selected = traitlets.Any(default_value=None).tag(sync=True)
        selected_range = traitlets.Any(default_value=None).tag(sync=True)

        def __init__(self, view: "View", **values: Any):
            self._view, self._place, self._range = view, None, None
            super().__init__(**values)

        @traitlets.validate("selected")
        def _selected_place(self, proposal: dict[str, Any]) -> dict[str, int] | None:
            """The proposed place; what the browser sends and is not one changes nothing."""
            with suppress(WorkbenchError, RecursionError):
                self._place = self._view.checked_place(proposal["value"])
            return self._place

        @traitlets.validate("selected_range")
        def _selected_range(self, proposal: dict[str, Any]) -> list[int] | None:
            """The proposed range, likewise."""
            with suppress(WorkbenchError, RecursionError):
                chosen = self._view.checked_range(proposal["value"])
                self._range = None if chosen is None else [chosen.start, chosen.stop]
            return self._range

    return Live
