"""How hiding a step acts on later ones: through the experts' inputs, through their weights, or through their choice."""

from collections.abc import Sequence

import workbench as wb
from workbench.figures import Figure
from workbench.studies import content_vs_routing as study
from workbench.studies.held_out import pocket

CODE = study.__file__


def draw() -> tuple[Figure, Sequence[wb.Trace]]:
    return study.draw(pocket())
