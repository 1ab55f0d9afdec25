"""Which method finds a used step that is not the neighbour? True pairs against others that are as far apart.

What is claimed was seen on the problems of the seed "figures"; what is drawn are others.
"""

from collections.abc import Sequence

import workbench as wb
from workbench.figures import Figure
from workbench.studies import far_edges as study
from workbench.studies.held_out import pocket

CODE = study.__file__


def draw() -> tuple[Figure, Sequence[wb.Trace]]:
    return study.draw(pocket())
