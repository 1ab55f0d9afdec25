"""Which heads does pocket need? Additions that greedy decoding still reproduces with one head ablated, head by head.

One forward pass is enough: greedy decoding reproduces a text if and only if each token is the most likely at its place.
"""

from collections.abc import Sequence

import workbench as wb
from workbench.figures import Figure
from workbench.studies import needed_heads as study
from workbench.studies.held_out import pocket

CODE = study.__file__


def draw() -> tuple[Figure, Sequence[wb.Trace]]:
    return study.draw(pocket())
