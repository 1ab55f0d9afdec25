"""One chain of thought on one axis: where the next token was open, where attention sinks, how close routes were."""

from collections.abc import Sequence

import workbench as wb
from workbench.figures import Figure
from workbench.studies import score_sheet as study
from workbench.studies.held_out import pocket

CODE = study.__file__


def draw() -> tuple[Figure, Sequence[wb.Trace]]:
    return study.draw(pocket())
