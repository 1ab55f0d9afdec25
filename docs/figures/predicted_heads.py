"""Can weights alone predict what heads do? Previous-token mass and sink mass, predicted from weights and measured."""

from collections.abc import Sequence

import workbench as wb
from workbench.figures import Figure
from workbench.studies import predicted_heads as study
from workbench.studies.held_out import pocket

CODE = study.__file__


def draw() -> tuple[Figure, Sequence[wb.Trace]]:
    return study.draw(pocket())
