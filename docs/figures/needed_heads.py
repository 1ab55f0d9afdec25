"""Which heads can pocket not do without? Additions that it would still write word by word with one head silenced.

One pass tells: greedy text is the text that was read if, and only if, each of its tokens is the likeliest in its place.
"""

from collections.abc import Sequence

import workbench as wb
from workbench.figures import Figure
from workbench.studies import needed_heads as study
from workbench.studies.held_out import pocket

CODE = study.__file__


def draw() -> tuple[Figure, Sequence[wb.Trace]]:
    return study.draw(pocket())
