"""Display of views and traces by IPython and others: a snapshot and a widget, or one output, never duplicated."""

import pytest
from IPython.core.displayhook import DisplayHook
from IPython.core.formatters import DisplayFormatter
from IPython.core.interactiveshell import InteractiveShell
from IPython.display import DisplayHandle, display, update_display

import workbench as wb
from tests.views import made


class Published(list):
    """The displays that a kernel would send, with their ids, and the results of cells."""

    def publish(self, data, metadata=None, *, transient=None, update=False, **_):
        self.append((data, (transient or {}).get("display_id"), update))


@pytest.fixture
def shell(monkeypatch):
    """A shell that has a kernel attribute, and the outputs that it publishes."""
    new_shell = InteractiveShell.instance()
    monkeypatch.setattr(new_shell, "kernel", object(), raising=False)
    monkeypatch.setattr(new_shell, "display_pub", published := Published())
    formatter = new_shell.display_formatter
    assert isinstance(formatter, DisplayFormatter)
    monkeypatch.setattr(formatter, "active_types", formatter.format_types)
    for module in ("IPython", "IPython.core.getipython", "IPython.core.display_functions"):
        monkeypatch.setattr(f"{module}.get_ipython", lambda: new_shell, raising=False)
    yield new_shell, published
    InteractiveShell.clear_instance()


DISPLAYED = [lambda: wb.views.tokens(made.run()), lambda: wb.views.score_sheet(made.run()), made.run]


@pytest.fixture(params=DISPLAYED, ids=["tokens", "score sheet", "trace"])
def thing(request):
    return request.param()


def is_snapshot(data) -> bool:
    return "data-wb-still" in data["text/html"] and "display: none" not in data["text/html"] and data["text/plain"]


def test_display_and_the_last_line_of_a_cell_show_snapshot_and_widget(shell, thing):
    here, published = shell
    display(thing)
    assert len(published) == 2 and "display: none" in published[0][0]["text/html"]
    assert "application/vnd.jupyter.widget-view+json" in published[1][0]
    published.clear()
    assert DisplayHook(shell=here).compute_format_data(thing) == ({}, {})
    assert len(published) == 2


def test_a_display_handle_has_one_output_and_updates_it(shell, thing):
    _, published = shell
    handle = display(thing, display_id=True)
    assert handle is not None
    handle.update(thing)
    named = DisplayHandle("mine")
    named.display(thing)
    update_display(thing, display_id="mine")
    assert [(id_, update) for _, id_, update in published] == [
        (handle.display_id, False), (handle.display_id, True), ("mine", False), ("mine", True),
    ]  # fmt: skip
    assert all(is_snapshot(data) for data, _, _ in published)


def test_an_output_widget_gets_one_output(shell, thing):
    widgets = pytest.importorskip("ipywidgets")
    _, published = shell
    output = widgets.Output()
    output.append_display_data(thing)
    assert published == [] and len(output.outputs) == 1
    assert is_snapshot(output.outputs[0]["data"])


def test_format_returns_the_snapshot(shell, thing):
    here, published = shell
    data, _ = here.display_formatter.format(thing)
    assert is_snapshot(data)
    display(thing, include=["text/plain"])
    assert published == [({"text/plain": data["text/plain"]}, None, False)]


def test_without_ipython_a_mime_bundle_is_the_snapshot(thing, monkeypatch):
    monkeypatch.setattr("IPython.get_ipython", lambda: None)  # as in marimo
    assert is_snapshot(thing._repr_mimebundle_())
    assert is_snapshot(thing._repr_mimebundle_(include=None, exclude=None))


def test_in_a_terminal_the_output_is_one_line_without_a_snapshot(thing, monkeypatch):
    monkeypatch.setattr("IPython.get_ipython", lambda: object())
    monkeypatch.setattr("workbench.views.notebook.table", lambda *_: pytest.fail("a snapshot was drawn"))
    assert list(thing._repr_mimebundle_()) == ["text/plain"]
