"""Can an upcoming backtrack be decoded? A linear probe at the last token of a step, layer by layer."""

from collections.abc import Sequence

import workbench as wb
from workbench.figures import Figure
from workbench.studies import about_to_backtrack as study
from workbench.studies.held_out import pocket

CODE = study.__file__


def draw() -> tuple[Figure, Sequence[wb.Trace]]:
    return study.draw(pocket())
