"""Which thoughts matter? The effect of hiding a step on each later one, with rings at the true dependencies."""

from collections.abc import Sequence

import workbench as wb
from workbench.figures import Figure
from workbench.studies import suppression as study
from workbench.studies.held_out import pocket

CODE = study.__file__


def draw() -> tuple[Figure, Sequence[wb.Trace]]:
    return study.draw(pocket())
