"""What does a model look at to see that it was wrong? Heads that carry it, and what has to be in sight."""

from collections.abc import Sequence

import workbench as wb
from workbench.figures import Figure
from workbench.studies import seeing_a_mistake as study
from workbench.studies.held_out import pocket

CODE = study.__file__


def draw() -> tuple[Figure, Sequence[wb.Trace]]:
    return study.draw(pocket())
