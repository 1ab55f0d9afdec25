"""Is the chain of thought faithful? It is truncated, filled, made wrong and hidden from the answer, by family."""

from collections.abc import Sequence

import workbench as wb
from workbench.figures import Figure
from workbench.studies import faithful as study
from workbench.studies.held_out import pocket

CODE = study.__file__


def draw() -> tuple[Figure, Sequence[wb.Trace]]:
    return study.draw(pocket())
