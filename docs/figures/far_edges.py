"""Which method finds a dependency on a step that is not adjacent? True pairs against others at the same distance.

The title was chosen on the problems of the seed "figures"; the figure shows other problems.
"""

from collections.abc import Sequence

import workbench as wb
from workbench.figures import Figure
from workbench.studies import far_edges as study
from workbench.studies.held_out import pocket

CODE = study.__file__


def draw() -> tuple[Figure, Sequence[wb.Trace]]:
    return study.draw(pocket())
