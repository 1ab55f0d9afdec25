"""Which experts run? What a router's rows say of a token alone, beside the usual route of that token elsewhere."""

from collections.abc import Sequence

import workbench as wb
from workbench.figures import Figure
from workbench.studies import router_rows as study
from workbench.studies.held_out import pocket

CODE = study.__file__


def draw() -> tuple[Figure, Sequence[wb.Trace]]:
    return study.draw(pocket())
