"""At which depth is the next token there? How far each layer's prediction is from the last, by what is predicted.

The title was chosen on the problems of the seed "figures"; what is drawn are others.
"""

from collections.abc import Sequence

import workbench as wb
from workbench.figures import Figure
from workbench.studies import lens_depth as study
from workbench.studies.held_out import pocket

CODE = study.__file__


def draw() -> tuple[Figure, Sequence[wb.Trace]]:
    return study.draw(pocket())
