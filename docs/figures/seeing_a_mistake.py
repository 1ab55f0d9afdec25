"""What does the model need to detect a wrong step? Heads that carry the effect, and tokens that must stay visible."""

from collections.abc import Sequence

import workbench as wb
from workbench.figures import Figure
from workbench.studies import seeing_a_mistake as study
from workbench.studies.held_out import pocket

CODE = study.__file__


def draw() -> tuple[Figure, Sequence[wb.Trace]]:
    return study.draw(pocket())
