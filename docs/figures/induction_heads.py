"""Which head follows which rule? Words drawn at random and said twice, beside the same words after other ones.

The second half is the same in both: what a head gives to the place of a rule in the one and not in the other is due to
the words that return, not to the distance.
"""

from collections.abc import Sequence

import workbench as wb
from workbench.figures import Figure
from workbench.studies import induction_heads as study
from workbench.studies.held_out import pocket

CODE = study.__file__


def draw() -> tuple[Figure, Sequence[wb.Trace]]:
    return study.draw(pocket())
