"""The mean sink mass of each head, and whether its learned sink logit predicts it."""

from collections.abc import Sequence

import workbench as wb
from workbench.figures import Figure
from workbench.studies import sinks as study
from workbench.studies.held_out import pocket

CODE = study.__file__


def draw() -> tuple[Figure, Sequence[wb.Trace]]:
    return study.draw(pocket())
