"""Can it be made to take a step back, and kept from it? More and more of what wrong and right steps differ by."""

from collections.abc import Sequence

import workbench as wb
from workbench.figures import Figure
from workbench.studies import backtracking as study
from workbench.studies.held_out import pocket

CODE = study.__file__


def draw() -> tuple[Figure, Sequence[wb.Trace]]:
    return study.draw(pocket())
