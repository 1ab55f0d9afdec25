"""Are attention sinks and long-range attention needed?

With either ablated, this study counts the solutions that are still reproduced token by token.

One forward pass is enough: greedy decoding reproduces a text if and only if each token is the most likely at its place.
"""

from collections.abc import Sequence

import workbench as wb
from workbench.figures import Figure
from workbench.studies import sink_and_edge_ablation as study
from workbench.studies.held_out import pocket

CODE = study.__file__


def draw() -> tuple[Figure, Sequence[wb.Trace]]:
    return study.draw(pocket())
