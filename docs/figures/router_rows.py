"""Can a token's experts be predicted from the token alone? By the router's rows, and by its experts in other texts."""

from collections.abc import Sequence

import workbench as wb
from workbench.figures import Figure
from workbench.studies import router_rows as study
from workbench.studies.held_out import pocket

CODE = study.__file__


def draw() -> tuple[Figure, Sequence[wb.Trace]]:
    return study.draw(pocket())
