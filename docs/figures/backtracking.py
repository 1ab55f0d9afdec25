"""Can backtracking be induced and suppressed? Steering by the mean difference of wrong and right steps, by dose."""

from collections.abc import Sequence

import workbench as wb
from workbench.figures import Figure
from workbench.studies import backtracking as study
from workbench.studies.held_out import pocket

CODE = study.__file__


def draw() -> tuple[Figure, Sequence[wb.Trace]]:
    return study.draw(pocket())
