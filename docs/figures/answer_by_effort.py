"""Does the model know the answer without thinking?

Probability of the answer at low effort, and at high effort before and after thinking.
"""

from collections.abc import Sequence

import workbench as wb
from workbench.figures import Figure
from workbench.studies import answer_by_effort as study
from workbench.studies.held_out import pocket

CODE = study.__file__


def draw() -> tuple[Figure, Sequence[wb.Trace]]:
    return study.draw(pocket())
