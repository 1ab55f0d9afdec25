"""When did it know? Made to answer after each step: is it the answer in the end, or what was written last?

Belief after each of the last steps: in the answer in the end, and in what each step says.
The title was chosen on the problems of the seed "figures"; what is drawn are others.
"""

from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

import numpy as np
import xarray as xr

import workbench as wb
from workbench.analysis.statistics import Interval
from workbench.figures import Figure, line
from workbench.studies.held_out import read

FAMILIES, N, LENGTH, AROUND = ("variables", "hops", "swaps", "lists"), 12, 5, np.arange(-3, 1)


class Measured(NamedTuple):
    """Belief over the last steps, by problem."""

    share: Interval  # of belief (what step): in the answer in the end, and in what the last step says
    settled: dict[str, list[bool]]  # family -> did belief settle with the very step that states the answer?
    traces: list[wb.Trace]


@cache
def measure(model: wb.Model, seed: str = "fresh") -> Measured:
    """Belief in the values of the last steps, over held-out problems of four families."""
    rows, settled, traces = [], {family: [] for family in FAMILIES}, []
    for family in FAMILIES:
        for problem, _, trace in read(model, family, N, LENGTH, "", seed):
            values = [step.value for step in problem.steps]
            if values.count(problem.answer) != 1:
                continue  # it would stand there before, by chance
            last = values[-len(AROUND) :]
            final = "".join(trace.str_tokens[trace.spans[-1].content])
            answers = list(dict.fromkeys(final.replace(problem.answer, value) for value in last))
            curve = wb.reasoning.forced_answer(model, trace, answers, segments=wb.steps(trace)[-len(AROUND) :])
            said = [answers.index(final.replace(problem.answer, value)) for value in last]
            p = curve["p"].values[1:]  # the first is before all of them
            rows.append([p[:, said[-1]], p[np.arange(len(said)), said]])
            settled[family].append(curve.attrs["commit_step"] == len(AROUND))
            traces.append(trace)
    return Measured(wb.statistics.mean_interval(np.array(rows)), settled, traces)


def draw(model: wb.Model) -> tuple[Figure, Sequence[wb.Trace]]:
    """The figure, and the traces behind it."""
    share, _, traces = measure(model)
    what = ["the answer in the end", "what the last step says"]
    coords = {"what": what, "step": ("step", AROUND, {"long_name": "steps from the one that states the answer"})}
    figure = line(
        xr.DataArray(share.value, coords, ("what", "step"), attrs={"long_name": "share of belief", "units": "1"}),
        by="what",
        low=np.asarray(share.low),
        high=np.asarray(share.high),
        title="Made to answer early, pocket says what it wrote last",
        note=f"n = {share.n} of {N * len(FAMILIES)} held-out problems ({', '.join(FAMILIES)}; length {LENGTH}): those "
        f"in which only the last step has the value of the answer. Shares among the values of the last {len(AROUND)} "
        "steps. Bands: 95 % intervals over problems.",
    )
    return figure, traces
