"""Previous-token, duplicate-token and induction heads, on sequences of random words that are repeated once.

The null is the same second half after a first half of other words. If a head attends to the position of a rule in the
repeated sequence but not in the null, the cause is the repeated words, not the distance.
"""

from collections.abc import Sequence

import workbench as wb
from workbench.figures import Figure
from workbench.studies import induction_heads as study
from workbench.studies.held_out import pocket

CODE = study.__file__


def draw() -> tuple[Figure, Sequence[wb.Trace]]:
    return study.draw(pocket())
