"""`python -m tests.attack` runs the attack and writes its figures into docs/reliability.md."""

import datetime
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.attack.outcomes import counts
from workbench.recording.doctor import cpu_name

PAGE = Path(__file__).parents[2] / "docs" / "reliability.md"
WHAT = {
    "arguments": "arguments of public functions",
    "checkpoints": "checkpoints, adapters, GGUF, limits of memory",
    "conversation": "prompts, templates, tokenizers, steps",
    "edits": "edits, identities, arrays of a trace",
    "files": "targets of files, sweeps, figures, lenses, SAEs",
    "identities": "functions that read from outside, usual functions",
    "lost_runs": "signals, disks, settings",
    "text": "hidden text, views, the command line",
    "traces": "traces whose parts contradict each other",
}


class Figures:
    """A pytest plugin that keeps the counts."""

    table: dict[str, list[int]] = {}

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        self.table = counts(terminalreporter)


def page(table: dict[str, list[int]], text: str) -> str:
    """The page with the figures of a run between its marks."""
    lines = [
        f"Run on {datetime.date.today()}, {cpu_name()}.",
        "",
        "| inputs | tried | refused clearly | right | anything else |",
        "|---|---|---|---|---|",
    ]
    for kind, numbers in table.items():
        cells = " | ".join(f"{number:,}" for number in (sum(numbers), *numbers))
        lines.append(f"| {WHAT.get(kind, kind)} | {cells} |")
    begin, end = "<!-- begin: attack -->", "<!-- end: attack -->"
    part = "\n".join([begin, "", *lines, "", end])
    new, n = re.subn(re.escape(begin) + ".*?" + re.escape(end), lambda _: part, text, flags=re.DOTALL)
    assert n == 1, f"{PAGE} needs one part {begin}"
    return new


if __name__ == "__main__":
    figures = Figures()
    code = pytest.main(["-q", "-n", "2", "-m", "attack", *sys.argv[1:]], plugins=[figures])
    if code == 0:
        PAGE.write_text(page(figures.table, PAGE.read_text("utf-8")), "utf-8")
    sys.exit(code)
