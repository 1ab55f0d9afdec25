"""The result of `wb.verify_model`: one line for each thing that was checked."""

import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from workbench.checks import check_choice, check_text
from workbench.errors import ArgumentError
from workbench.model_check.line import FAILS, HOLDS, NOT_CHECKED, PARTS, Line, line_json, line_of
from workbench.model_check.page import save_page
from workbench.text import visible


@dataclass(frozen=True)
class ModelReport:
    """What `wb.verify_model` found: `ok`, the failed lines, all lines; `print` shows a summary.

    >>> report = wb.verify_model("pocket", parts=["files"])
    >>> report.ok, report.failed, report.lines[0].part
    (True, [], 'files')
    """

    model: Mapping[str, Any]  # name, format, weights_digest, and the digest of each file that was read whole
    machine: Mapping[str, Any]  # processor, memory, versions
    date: str
    lines: list[Line] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether no line fails."""
        return not self.failed

    @property
    def failed(self) -> list[Line]:
        """The lines that fail."""
        return [line for line in self.lines if line.status == FAILS]

    def select(self, part: str) -> list[Line]:
        """The lines of one part: "files", "weights", "layers", "identities" or "numerics"."""
        check_choice("part", part, list(PARTS))
        return [line for line in self.lines if line.part == part]

    def to_json(self) -> dict[str, Any]:
        """The report as JSON values: model, machine, date, ok, and the lines as dicts."""
        return {
            "model": dict(self.model),
            "machine": dict(self.machine),
            "date": self.date,
            "ok": self.ok,
            "lines": [line_json(line) for line in self.lines],
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "ModelReport":
        """The report from `to_json`. Raises ArgumentError if `value` is not one: a report may come from anybody."""
        if not isinstance(value, Mapping) or not {"model", "machine", "date", "lines"} <= {*value}:
            raise ArgumentError("value must be the dict that to_json returned, with model, machine, date and lines")
        for name in ("model", "machine"):
            if not isinstance(value[name], Mapping) or not all(isinstance(key, str) for key in value[name]):
                raise ArgumentError(f"value[{name!r}] must be a dict with texts as keys")
        if not isinstance(value["lines"], list) or "name" not in value["model"] or "format" not in value["model"]:
            raise ArgumentError("value must have a list of lines, and a model with its name and format")
        date = check_text("value['date']", value["date"])
        return cls(value["model"], value["machine"], date, [line_of(line) for line in value["lines"]])

    def save_page(self, path: os.PathLike[str] | str) -> Path:
        """Writes the report as one HTML page without scripts, to attach to a paper or a bug report."""
        return save_page(self, path)

    def __str__(self) -> str:
        rows = [f"{self.model['name']} ({self.model['format']}), {self.date}"]
        for part, about in PARTS.items():
            if lines := self.select(part):
                n = Counter(line.status for line in lines)
                counts = ", ".join(f"{n[status]} {status}" for status in (HOLDS, FAILS, NOT_CHECKED) if n[status])
                rows.append(f"  {part:<10}  {about}: {counts}, {sum(line.seconds for line in lines):.0f} s")
        rows += [f"  {line}" for line in self.failed]
        unchecked = [line for line in self.lines if line.status == NOT_CHECKED]
        return "\n".join([visible(row) for row in rows] + [f"  {line}" for line in unchecked])

    def __repr__(self) -> str:
        state = "holds" if self.ok else f"{len(self.failed)} lines fail"
        return visible(f"<ModelReport {self.model['name']}: {len(self.lines)} lines, {state}>")
