"""Belief after each of the last steps: in the answer in the end, and in what each step says."""

from functools import cache
from typing import NamedTuple

import numpy as np
from _runs import pocket, read

import workbench as wb
from workbench.analysis.statistics import Interval

FAMILIES, N, LENGTH, AROUND = ("variables", "hops", "swaps", "lists"), 12, 5, np.arange(-3, 1)


class Measured(NamedTuple):
    share: Interval  # of belief (what step): in the answer in the end, and in what the last step says
    settled: dict[str, list[bool]]  # family -> did belief settle with the very step that states the answer?
    traces: list[wb.Trace]


@cache
def measure(seed: str = "fresh") -> Measured:
    rows, settled, traces = [], {family: [] for family in FAMILIES}, []
    for family in FAMILIES:
        for problem, _, trace in read(family, N, LENGTH, "", seed):
            values = [step.value for step in problem.steps]
            if values.count(problem.answer) != 1:
                continue  # it would stand there before, by chance
            last = values[-len(AROUND) :]
            final = "".join(trace.pieces[trace.spans[-1].content])
            answers = list(dict.fromkeys(final.replace(problem.answer, value) for value in last))
            curve = wb.belief(pocket(), trace, answers, parts=wb.steps(trace)[-len(AROUND) :])
            said = [answers.index(final.replace(problem.answer, value)) for value in last]
            p = curve["p"].values[1:]  # the first is before all of them
            rows.append([p[:, said[-1]], p[np.arange(len(said)), said]])
            settled[family].append(curve.attrs["commit"] == len(AROUND))
            traces.append(trace)
    return Measured(wb.statistics.mean(np.array(rows)), settled, traces)
