"""Where can it be read off that a step will be taken back? A linear probe at its last token, layer by layer."""

from collections.abc import Sequence

import workbench as wb
from workbench.figures import Figure
from workbench.studies import about_to_backtrack as study
from workbench.studies.held_out import pocket

CODE = study.__file__


def draw() -> tuple[Figure, Sequence[wb.Trace]]:
    return study.draw(pocket())
