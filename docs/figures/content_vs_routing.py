"""What or who? The effect of hiding a step: what experts compute on, how they are weighted, and which of them run."""

from collections.abc import Sequence

import workbench as wb
from workbench.figures import Figure
from workbench.studies import content_vs_routing as study
from workbench.studies.held_out import pocket

CODE = study.__file__


def draw() -> tuple[Figure, Sequence[wb.Trace]]:
    return study.draw(pocket())
