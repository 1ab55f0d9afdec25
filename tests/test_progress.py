"""Progress bars are text that is gone in the end; in a notebook one empty output is left at most."""

import io
import re
import sys

import nbformat
import pytest
from nbclient import NotebookClient

from workbench.progress import progress_bar, progress_count


class Terminal(io.StringIO):
    """A terminal that keeps what was written to it."""

    def isatty(self) -> bool:
        return True

    @property
    def frames(self) -> list[str]:
        return [frame for frame in self.getvalue().split("\r") if frame.strip()]

    @property
    def left(self) -> str:
        """The line as it stands in the end."""
        line = ""
        for part in self.getvalue().split("\r"):
            line = part + line[len(part) :]
        return line.strip()


def terminal(monkeypatch) -> Terminal:
    """The terminal to which this test writes; not a fixture, because pytest changes stderr after those."""
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    return screen


def test_a_bar_in_a_terminal_is_gone_when_the_work_ends(monkeypatch):
    screen = terminal(monkeypatch)
    assert list(progress_bar("abc", "letters", delay=0, mininterval=0)) == ["a", "b", "c"]
    assert "letters:  67%" in "".join(screen.frames) and screen.left == ""


def test_work_of_less_than_a_second_shows_nothing(monkeypatch):
    screen = terminal(monkeypatch)
    assert list(progress_bar("abc", "letters", mininterval=0)) == ["a", "b", "c"]
    assert screen.getvalue() == ""


def test_nothing_is_written_where_nobody_looks(monkeypatch):
    monkeypatch.setattr(sys, "stderr", log := io.StringIO())
    list(progress_bar("abc", "letters", delay=0, mininterval=0))
    assert log.getvalue() == ""


def test_control_characters_of_a_description_do_not_reach_the_terminal(monkeypatch):
    screen = terminal(monkeypatch)
    list(progress_bar("abc", "a\x1b[31mfolder", delay=0, mininterval=0))
    assert "\x1b" not in screen.getvalue() and "folder" in screen.getvalue()


def test_a_generation_shows_its_limit_but_no_share_of_it_and_no_time_left(monkeypatch):
    terminal(monkeypatch)
    count = progress_count("generating", "token", at_most=1024)
    count.n = 40
    text = re.sub(r"\d+:\d+, [\d.]+", "TIME, RATE", str(count))
    assert text == "generating: 40 tokens, at most 1,024 [TIME, RATE tokens/s]"


CELLS = [
    """
from workbench.progress import progress_bar, progress_count
now = {"delay": 0, "mininterval": 0}
for _ in progress_bar(range(3), "first", **now):
    for _ in progress_bar(range(2), "inner", **now):
        print("work")
list(progress_bar(range(3), "second", **now))
bar = progress_bar(total=100, desc="ended early", **now)
bar.update(3)
bar.close()
""",
    """
import workbench.progress as progress
progress.DELAY = 0
import workbench as wb
answer = wb.trace("What is 12+30?", record="").text(channel="final")
""",
]


@pytest.mark.filterwarnings("ignore:Proactor event loop", "ignore::DeprecationWarning:zmq")
def test_a_saved_notebook_has_no_widget_and_no_text_of_a_bar(tmp_path):
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in CELLS])
    displayed = []
    client = NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}})
    process = client.process_message

    def watched(message, *args, **kwargs):
        displayed.append(message.get("content", {}).get("data", {}).get("text/plain", ""))
        return process(message, *args, **kwargs)

    client.process_message = watched  # type: ignore[method-assign]
    client.execute()
    assert any("first:  67%" in text for text in displayed)  # it was to be seen meanwhile
    assert any("ended early:   3%" in text for text in displayed)
    assert any(re.search(r"generating: \d+ tokens, at most 1,024", text) for text in displayed)
    loops, generation = notebook.cells
    empty = {"text/plain": ""}
    assert [output.data for output in loops.outputs if output.output_type != "stream"] == [empty, empty]
    streams = [output for output in loops.outputs if output.output_type == "stream"]
    assert {output.name for output in streams} == {"stdout"}
    assert "".join(output.text for output in streams) == "work\n" * 6
    assert [output.data for output in generation.outputs] == [empty]
