"""Which method finds what a step depends on? AUROC against the true graphs, compared with the nearness baseline.

The title was chosen on the problems of the seed "figures"; the figure shows other problems.
"""

from collections.abc import Sequence

import workbench as wb
from workbench.figures import Figure
from workbench.studies import which_method as study
from workbench.studies.held_out import pocket

CODE = study.__file__


def draw() -> tuple[Figure, Sequence[wb.Trace]]:
    return study.draw(pocket())
