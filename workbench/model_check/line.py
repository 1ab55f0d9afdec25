"""One line of a report: what was checked, and what came out."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from workbench.errors import ArgumentError
from workbench.text import brief, visible

HOLDS, FAILS, NOT_CHECKED = "holds", "fails", "not checked"
MAX_TEXT = 10_000  # characters of a text in a line that is read from a file
PARTS = {
    "files": "the files on the disk",
    "weights": "each tensor in memory, against the bytes of the files",
    "layers": "each step of each layer, against transformers",
    "identities": "what must hold in every run of gpt-oss",
    "numerics": "the same tokens in the other settings of this machine",
}


@dataclass(frozen=True, slots=True)
class Line:
    """One thing that was checked.

    `worst` is the largest difference, relative to the largest value of its row (for weights: absolute, and 0 is asked).
    """

    part: str  # a key of PARTS
    layer: int | None
    tensor: str  # a file, a tensor by transformers' name, a step of a layer, or an identity
    status: str  # "holds", "fails" or "not checked"
    worst: float | None = None
    tolerance: float | None = None
    seconds: float = 0.0
    note: str = ""

    @property
    def where(self) -> str:
        """The layer and the tensor, as text."""
        return f"{'' if self.layer is None else f'layer {self.layer}: '}{self.tensor}"

    def __str__(self) -> str:
        numbers = "" if self.worst is None else f" (worst {self.worst:.2g}"
        numbers += (
            f", tolerance {self.tolerance:.2g})" if numbers and self.tolerance is not None else ")" * bool(numbers)
        )
        return visible(
            f"{self.status:<11}  {self.part:<10}  {self.where}{numbers}{f': {self.note}' if self.note else ''}"
        )


def compared(
    part: str, layer: int | None, tensor: str, worst: float, tolerance: float, seconds: float = 0.0, note: str = ""
) -> Line:
    """A line that holds if `worst` is at most `tolerance`; NaN fails."""
    return Line(part, layer, tensor, HOLDS if worst <= tolerance else FAILS, worst, tolerance, seconds, note)


def line_json(line: Line) -> dict[str, Any]:
    """The line as JSON values; a number that JSON lacks is a text: "inf" or "nan".

    >>> line_json(Line("files", None, "a", "fails", math.inf))["worst"]
    'inf'
    """
    return {
        name: str(value) if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in asdict(line).items()
    }


def line_of(value: Any) -> Line:
    """The line from `line_json`. A file may hold anything, so each value is checked. Raises ArgumentError."""
    names = ("part", "layer", "tensor", "status", "worst", "tolerance", "seconds", "note")
    if not isinstance(value, Mapping) or {*value} != {*names}:
        raise ArgumentError(f"a line of a report has {', '.join(names)}, and nothing else; got {brief(value)}")
    part, layer, tensor, status, worst, tolerance, seconds, note = (value[name] for name in names)
    if part not in [*PARTS] or status not in (HOLDS, FAILS, NOT_CHECKED):
        raise ArgumentError(f"no report has part {brief(part)!r} and status {brief(status)!r}")
    if layer is not None and (type(layer) is not int or not 0 <= layer < 1 << 31):
        raise ArgumentError(f"a layer is a number or null, got {brief(layer)}")
    if any(not isinstance(text, str) or len(text) > MAX_TEXT for text in (tensor, note)):
        raise ArgumentError(f"tensor and note are texts of at most {MAX_TEXT:,} characters")
    return Line(part, layer, tensor, status, _number(worst), _number(tolerance), _number(seconds) or 0.0, note)


def _number(value: Any) -> float | None:
    if value in ("inf", "-inf", "nan"):
        return float(value)
    if value is not None and (isinstance(value, bool) or not isinstance(value, int | float) or abs(value) > 1e308):
        raise ArgumentError(f"a number of a report is a number or null, got {brief(value)}")
    return None if value is None else float(value)
