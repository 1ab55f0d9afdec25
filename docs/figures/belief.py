"""When did it know? Made to answer after each step: is it the answer in the end, or what was written last?"""

import numpy as np
import xarray as xr
from _runs import Sequence, main, pocket, read

import workbench as wb
from workbench.figures import Figure, line

FAMILIES, N, LENGTH, AROUND = ("variables", "hops", "lists"), 8, 5, np.arange(-4, 1)


def draw() -> tuple[Figure, Sequence[wb.Trace]]:
    rows, traces = [], []
    for family in FAMILIES:
        for problem, parts, trace in read(family, N, LENGTH):
            values = [step.value for step in problem.steps][-len(AROUND) :]  # what the last steps come to
            if values.count(problem.answer) != 1:
                continue  # it would stand there before, by chance
            final = "".join(trace.pieces[trace.spans[-1].content])
            answers = dict.fromkeys(final.replace(problem.answer, value) for value in values)
            p = wb.belief(pocket(), trace, list(answers), parts=parts)["p"].values[-len(AROUND) :]
            last = [list(answers).index(final.replace(problem.answer, value)) for value in values]
            rows.append([p[:, last[-1]], p[np.arange(len(values)), last]])
            traces.append(trace)
    mean = wb.statistics.mean(np.array(rows))
    coords = {
        "answer": ["the answer in the end", "what the last step says"],
        "step": ("step", AROUND, {"long_name": "steps from the one that states the answer"}),
    }
    attrs = {"long_name": "share of belief", "units": "1"}
    figure = line(
        xr.DataArray(mean.value, coords, ("answer", "step"), attrs=attrs),
        by="answer",
        low=mean.low,
        high=mean.high,
        title="Made to answer early, pocket says what it wrote last",
        note=f"n = {len(rows)} of {N * len(FAMILIES)} held-out problems (variables, hops, lists; length {LENGTH}): "
        "those in which only the last step has the value of the answer. Shares among the values of the last five "
        "steps. Bands: 95 % intervals over problems.",
    )
    return figure, traces


if __name__ == "__main__":
    main(__file__, draw)
