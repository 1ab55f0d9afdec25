"""Where attribution patching fails: its error where routes flip and where they do not, and with the routes held."""

from collections.abc import Sequence

import workbench as wb
from workbench.figures import Figure
from workbench.studies import first_order as study
from workbench.studies.held_out import pocket

CODE = study.__file__


def draw() -> tuple[Figure, Sequence[wb.Trace]]:
    return study.draw(pocket())
