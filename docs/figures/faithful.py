"""Is the chain faithful? Thoughts are cut, filled, made wrong and hidden from the answer, family by family."""

from collections.abc import Sequence

import workbench as wb
from workbench.figures import Figure
from workbench.studies import faithful as study
from workbench.studies.held_out import pocket

CODE = study.__file__


def draw() -> tuple[Figure, Sequence[wb.Trace]]:
    return study.draw(pocket())
