"""One line of a report: what was checked, and what came out."""

from dataclasses import dataclass

from workbench.text import visible

HOLDS, FAILS, NOT_CHECKED = "holds", "fails", "not checked"
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
