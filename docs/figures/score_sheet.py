"""One chain of thought on one token axis: entropy of the next token, sink mass, router margin, prediction depth."""

from collections.abc import Sequence

import workbench as wb
from workbench.figures import Figure
from workbench.studies import score_sheet as study
from workbench.studies.held_out import pocket

CODE = study.__file__


def draw() -> tuple[Figure, Sequence[wb.Trace]]:
    return study.draw(pocket())
