"""Previous-token, duplicate-token and induction heads, on sequences of random words that are repeated once.

The null is the same second half after a first half of other words. The attention that a head gives to the position of
a rule in the repeated sequence and not in the null is due to the repeated words, not to the distance.
"""

from collections.abc import Sequence

import workbench as wb
from workbench.figures import Figure
from workbench.studies import induction_heads as study
from workbench.studies.held_out import pocket

CODE = study.__file__


def draw() -> tuple[Figure, Sequence[wb.Trace]]:
    return study.draw(pocket())
