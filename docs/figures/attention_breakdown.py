"""Where does attention go? Its split by layer: sink, self, first token, window, and beyond the window."""

from collections.abc import Sequence

import workbench as wb
from workbench.figures import Figure
from workbench.studies import attention_breakdown as study
from workbench.studies.held_out import pocket

CODE = study.__file__


def draw() -> tuple[Figure, Sequence[wb.Trace]]:
    return study.draw(pocket())
