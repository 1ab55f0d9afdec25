"""Does the model switch experts for the answer, and how much of that is due to the channel?"""

from collections.abc import Sequence

import workbench as wb
from workbench.figures import Figure
from workbench.studies import channel_drift as study
from workbench.studies.held_out import pocket

CODE = study.__file__


def draw() -> tuple[Figure, Sequence[wb.Trace]]:
    return study.draw(pocket())
