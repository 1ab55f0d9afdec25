"""When does the model know the answer? Forced answers after each step: the final answer, or the last value written?

The title was chosen on the problems of the seed "figures"; the figure shows other problems.
"""

from collections.abc import Sequence

import workbench as wb
from workbench.figures import Figure
from workbench.studies import forced_answer as study
from workbench.studies.held_out import pocket

CODE = study.__file__


def draw() -> tuple[Figure, Sequence[wb.Trace]]:
    return study.draw(pocket())
