"""Which method finds what a step depends on? AUROC against the true graphs, beside what mere nearness reaches.

The title was chosen on the problems of the seed "figures"; what is drawn are others.
"""

from collections.abc import Sequence

import workbench as wb
from workbench.figures import Figure
from workbench.studies import which_method as study
from workbench.studies.held_out import pocket

CODE = study.__file__


def draw() -> tuple[Figure, Sequence[wb.Trace]]:
    return study.draw(pocket())
