"""Is the answer in the residual stream before it is generated? Linear probes for values at the ends of earlier steps.

The figure's title was chosen from problems of the seed "figures"; the figure itself shows other problems.
"""

from collections.abc import Sequence

import workbench as wb
from workbench.figures import Figure
from workbench.studies import answer_probe as study
from workbench.studies.held_out import pocket

CODE = study.__file__


def draw() -> tuple[Figure, Sequence[wb.Trace]]:
    return study.draw(pocket())
