"""The error of attribution patching where routing flips, where it does not, and with frozen routing."""

from collections.abc import Sequence

import workbench as wb
from workbench.figures import Figure
from workbench.studies import attribution_patching_error as study
from workbench.studies.held_out import pocket

CODE = study.__file__


def draw() -> tuple[Figure, Sequence[wb.Trace]]:
    return study.draw(pocket())
