"""Information of the expert choice about the kind of problem: plain, and conditioned on the token."""

from collections.abc import Sequence

import workbench as wb
from workbench.figures import Figure
from workbench.studies import expert_specialization as study
from workbench.studies.held_out import pocket

CODE = study.__file__


def draw() -> tuple[Figure, Sequence[wb.Trace]]:
    return study.draw(pocket())
