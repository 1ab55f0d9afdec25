"""When does the model know the answer? Forced answers after each step: the final answer, or the last value written?

Measured after each of the last steps: the probability of the final answer and that of the value of the last step.
The title was chosen on the problems of the seed "figures"; the figure shows other problems.
"""

from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

import numpy as np
import xarray as xr

import workbench as wb
from workbench.analysis.statistics import Interval
from workbench.figures import Figure, line
from workbench.studies.held_out import traced_problems

FAMILIES, N, LENGTH, AROUND = ("variables", "hops", "swaps", "lists"), 12, 5, np.arange(-3, 1)


class Measured(NamedTuple):
    """Forced answers after each of the last steps."""

    share: Interval  # probability among the values (which step): of the final answer, and of the last step's value
    settled: dict[str, list[bool]]  # family -> by problem, does the forced answer settle at the step that states it?
    traces: list[wb.Trace]


@cache
def measure(model: wb.Model, seed: str = "fresh") -> Measured:
    """Probability of the values of the last steps as forced answers, over held-out problems of four families."""
    rows, settled, traces = [], {family: [] for family in FAMILIES}, []
    for family in FAMILIES:
        for problem, _, trace in traced_problems(model, family, N, LENGTH, "", seed):
            values = [step.value for step in problem.steps]
            if values.count(problem.answer) != 1:
                continue  # an earlier step has the same value by chance
            last = values[-len(AROUND) :]
            final = "".join(trace.str_tokens[trace.spans[-1].content])
            answers = list(dict.fromkeys(final.replace(problem.answer, value) for value in last))
            curve = wb.reasoning.forced_answer(model, trace, answers, segments=wb.steps(trace)[-len(AROUND) :])
            indices = [answers.index(final.replace(problem.answer, value)) for value in last]
            p = curve["p"].values[1:]  # row 0 is before any of these steps
            rows.append([p[:, indices[-1]], p[np.arange(len(indices)), indices]])
            settled[family].append(curve.attrs["commit_step"] == len(AROUND))
            traces.append(trace)
    return Measured(wb.statistics.mean_interval(np.array(rows)), settled, traces)


def draw(model: wb.Model) -> tuple[Figure, Sequence[wb.Trace]]:
    """The figure, and the traces behind it."""
    share, _, traces = measure(model)
    which = ["the final answer", "the value of the last step"]
    coords = {"which": which, "step": ("step", AROUND, {"long_name": "steps from the one that states the answer"})}
    figure = line(
        xr.DataArray(share.value, coords, ("which", "step"), attrs={"long_name": "share of probability", "units": "1"}),
        by="which",
        low=np.asarray(share.low),
        high=np.asarray(share.high),
        title="Forced to answer early, pocket gives the value it wrote last",
        note=f"n = {share.n} of {N * len(FAMILIES)} held-out problems ({', '.join(FAMILIES)}; length {LENGTH}): those "
        "in which only the last step has the value of the answer. Shares of the probability of the values of the last "
        f"{len(AROUND)} steps. Bands: 95 % intervals over problems.",
    )
    return figure, traces
