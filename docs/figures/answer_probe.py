"""Is the answer in the residual stream before it is said? A probe on other problems, at the ends of earlier steps.

What is claimed was seen on the problems of the seed "figures"; what is drawn are others.
"""

from collections.abc import Sequence

import workbench as wb
from workbench.figures import Figure
from workbench.studies import answer_probe as study
from workbench.studies.held_out import pocket

CODE = study.__file__


def draw() -> tuple[Figure, Sequence[wb.Trace]]:
    return study.draw(pocket())
