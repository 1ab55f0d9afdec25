"""When did it know? Made to answer after each step: is it the answer in the end, or what was written last?

The title was chosen on the problems of the seed "figures"; what is drawn are others.
"""

from collections.abc import Sequence

import workbench as wb
from workbench.figures import Figure
from workbench.studies import belief as study
from workbench.studies.held_out import pocket

CODE = study.__file__


def draw() -> tuple[Figure, Sequence[wb.Trace]]:
    return study.draw(pocket())
