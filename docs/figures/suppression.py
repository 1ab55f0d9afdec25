"""Which thoughts matter? What hiding a step does to each later one, with rings where the later one truly uses it."""

from collections.abc import Sequence

import workbench as wb
from workbench.figures import Figure
from workbench.studies import suppression as study
from workbench.studies.held_out import pocket

CODE = study.__file__


def draw() -> tuple[Figure, Sequence[wb.Trace]]:
    return study.draw(pocket())
