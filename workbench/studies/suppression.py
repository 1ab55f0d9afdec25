"""Which thoughts matter? What hiding a step does to each later one, with rings where the later one truly uses it."""

from collections.abc import Sequence

import numpy as np

import workbench as wb
from workbench.figures import Figure, step_matrix
from workbench.studies.held_out import read


def draw(model: wb.Model) -> tuple[Figure, Sequence[wb.Trace]]:
    """The figure, and the traces behind it."""
    problem, parts, trace = read(model, "variables", 1, 5)[0]
    effect = wb.reasoning.suppression(model, trace, parts)["effect"].assign_attrs(long_name="effect")
    n = len(parts)
    truth = np.array([[j in problem.edges[i] for j in range(n)] for i in range(n)])
    pairs = np.tril_indices(n, -1)
    area = wb.statistics.auroc(effect.values[pairs], truth[pairs])
    figure = step_matrix(
        effect,
        ["".join(trace.str_tokens[part]) for part in parts],
        truth=truth,
        title="Hiding a step changes the steps that use it",
        note=f"KL of predictions with step x hidden from later ones, mean over the tokens of step y; arcs are the "
        f"{truth.sum()} strongest. A true pair scores above another with probability {area:.2f} (n = {len(pairs[0])} "
        "pairs of one problem; chance 0.50). Over problems, with intervals: see which_method.",
    )
    return figure, [trace]
