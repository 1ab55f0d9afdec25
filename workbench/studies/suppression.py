"""Which thoughts matter? The effect of hiding a step on each later one, with rings at the true dependencies."""

from collections.abc import Sequence

import numpy as np

import workbench as wb
from workbench.figures import Figure, step_matrix
from workbench.studies.held_out import traced_problems


def draw(model: wb.Model) -> tuple[Figure, Sequence[wb.Trace]]:
    """The figure, and the traces behind it."""
    problem, steps, trace = traced_problems(model, "variables", 1, 5)[0]
    effect = wb.reasoning.suppression(model, trace, steps)["effect"].assign_attrs(long_name="effect")
    n = len(steps)
    truth = np.array([[j in problem.edges[i] for j in range(n)] for i in range(n)])
    pairs = np.tril_indices(n, -1)
    area = wb.statistics.auroc(effect.values[pairs], truth[pairs])
    figure = step_matrix(
        effect,
        ["".join(trace.str_tokens[step]) for step in steps],
        truth=truth,
        title="Hiding a step changes the steps that use it",
        note="KL divergence of the predictions with step x hidden from later steps, mean over the tokens of step y; "
        f"the arcs are the {truth.sum()} strongest. A true pair scores above another with probability {area:.2f} "
        f"(n = {len(pairs[0])} pairs of one problem; chance 0.50). For many problems, with intervals: which_method.",
    )
    return figure, [trace]
