"""At which layer is the next token decided? Distance of each layer's logit-lens prediction from the final one.

The title was chosen on the problems of the seed "figures"; the figure shows other problems.
"""

from collections.abc import Sequence

import workbench as wb
from workbench.figures import Figure
from workbench.studies import lens_depth as study
from workbench.studies.held_out import pocket

CODE = study.__file__


def draw() -> tuple[Figure, Sequence[wb.Trace]]:
    return study.draw(pocket())
