"""Is the chain of thought faithful? It is truncated, filled, made wrong and hidden from the answer, by family.

The tests of `wb.reasoning.faithfulness`, and attention to the thoughts or the question masked for the final message.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from random import Random
from typing import NamedTuple

import numpy as np
import xarray as xr

import workbench as wb
from workbench.figures import Figure, bars, line
from workbench.pocket.families import make, wordings
from workbench.pocket.rendering import render
from workbench.studies.held_out import bounds
from workbench.studies.wrong_steps import made_wrong, reworded

NEEDS_CHAIN, ANSWERS_DIRECTLY = ("addition", "swaps", "lists"), ("say", "look")  # with and without need of a chain
N, LENGTH, SEED = 8, 3, "fresh"
HIDDEN = ("nothing", "the thoughts", "the question")


class Tested(NamedTuple):
    """The measurements of one family."""

    battery: xr.Dataset  # of `wb.reasoning.faithfulness`
    same_answer: np.ndarray  # is the answer unchanged with something hidden? (run hidden)
    traces: list[wb.Trace]

    def by_run(self, test: str, steps: int | None = None) -> np.ndarray:
        """The share of answers that change, by run: over all cases of a test, or over those with `steps` steps."""
        cases = [c for c in self.battery.attrs["cases"] if c["test"] == test and steps in (None, c["step"])]
        changed = [[1 - c["same"] for c in cases if c["run"] == run] for run in range(len(self.traces))]
        return np.array([np.mean(changes) if changes else np.nan for changes in changed])


def answer_is_unchanged(model: wb.Model, trace: wb.Trace, hidden: str) -> bool:
    """Whether all tokens of the answer stay the most likely ones if the final message cannot attend to `hidden`."""
    question, thought, final = trace.spans[-3:]
    edited, begin = trace, final.content_start + 2  # after "It is"
    if hidden != "nothing":
        masked = list(range(len(trace))[(thought if hidden == "the thoughts" else question).content])
        with model.edit(
            "blocks.*.attn.hook_attn_scores",
            lambda x: x.index_fill(-1, x.new_tensor(masked).long(), -np.inf),
            positions=slice(final.start, len(trace)),
        ):
            edited = model.trace(trace.tokens, record="")
    return edited["top_ids"][begin - 1 : -1, 0].tolist() == trace.tokens[begin:]


@cache
def measure(model: wb.Model, n: int = N, seed: str = SEED) -> dict[str, Tested]:
    """By family, over the reference solutions of `n` held-out problems in one wording that was never trained."""
    tested = {}
    for family in (*NEEDS_CHAIN, *ANSWERS_DIRECTLY):
        rng, problem_and_trace = Random(f"{seed} {family}"), {}
        while len(problem_and_trace) < n:
            problem = make(family, rng, length=LENGTH, split="test", wording=wordings(family, trained=False)[0])
            trace = model.trace(list(render(problem, "high").ids), record="")
            if made_wrong(problem, wb.steps(trace)[-1]) or family == "say":  # a look-up needs a second color
                problem_and_trace[trace.id] = problem, trace
        traces = [trace for _, trace in problem_and_trace.values()]
        problems = {key: problem for key, (problem, _) in problem_and_trace.items()}
        battery = wb.reasoning.faithfulness(
            model,
            traces,
            mistake=lambda trace, step, problems=problems: made_wrong(problems[trace.id], step),
            paraphrase=lambda trace, k, problems=problems: reworded(problems[trace.id], trace, k),
        )
        same = np.array([[answer_is_unchanged(model, trace, hidden) for hidden in HIDDEN] for trace in traces])
        tested[family] = Tested(battery, same, traces)
    return tested


def rows(tested: dict[str, Tested]) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """By run: whether the answer was known before any thought, and how often each intervention changes it."""
    families = {name: family for name, family in tested.items() if name != "say"}  # "Copy it." cannot be made wrong
    known = np.concatenate([family.by_run("early", 0) for family in families.values()]) < 0.5
    wrong = np.concatenate([family.by_run("mistake") for family in families.values()])
    hidden = 1.0 - np.concatenate([family.same_answer[:, 1] for family in families.values()])
    return known, {"a wrong step": wrong, "thoughts hidden": hidden}


def draw(model: wb.Model) -> tuple[Figure, Sequence[wb.Trace]]:
    """The figure, and the traces behind it."""
    tested = measure(model)
    early = {family: each.battery.sel(test="early") for family, each in tested.items()}
    curves = xr.concat([early[family] for family in NEEDS_CHAIN], xr.IndexVariable("family", list(NEEDS_CHAIN)))
    curves["fraction"].attrs["long_name"] = "fraction of the thoughts kept"
    shown = curves["same"].assign_attrs(long_name="same answer")
    null = curves["chance"].mean("family")
    one = line(shown, by="family", low=curves["low"], high=curves["high"], null=null, title="Truncated")
    area = xr.concat([each.battery for each in tested.values()], xr.IndexVariable("family", list(tested)), join="outer")
    area = area.fillna(0.0)  # "Copy it." cannot be made wrong
    changing = area["area"].assign_attrs(long_name="answers that change")
    two = bars(changing, by="test", low=area["area_low"], high=area["area_high"], title="All four tests")
    coords = {"family": list(tested), "hidden": list(HIDDEN[1:])}
    hits, n = np.array([each.same_answer[:, 1:].sum(0) for each in tested.values()]), len(tested["say"].traces)
    value = xr.DataArray(hits / n, coords)
    intervals = [[wb.statistics.wilson_interval(int(k), n) for k in row] for row in hits]
    low, high = np.moveaxis(np.array(intervals), -1, 0)
    value.attrs["long_name"] = "answers unchanged"
    three = bars(value, by="hidden", low=low, high=high, title="Hidden from the final message")
    known, changed = rows(tested)
    kinds = {"known before": known, "needs the chain": ~known}
    means = [[wb.statistics.mean_interval(v[of & ~np.isnan(v)]) for v in changed.values()] for of in kinds.values()]
    coords = {"item": list(kinds), "intervention": list(changed)}
    value, low, high = (xr.DataArray(part, coords) for part in bounds(means))
    value.attrs["long_name"] = "answers that change"
    four = bars(value, by="item", low=low, high=high, title="By whether the answer is known before")
    figure = Figure(
        panels=[replace(each.panels[0], title=each.title) for each in (one, two, three, four)],
        columns=2,
        width=wb.figures.WIDTHS["page"],
        height=140,
        title="pocket follows its chain of thought even where it does not need one",
        note=f"n = {n} held-out problems per family, length {LENGTH}; bottom right: {known.sum()} items whose answer "
        f"is known before any thought and {(~known).sum()} others, from all families except say. 95 % intervals over "
        "problems (of zero width where all problems agree); dashed: how often the answer is that of another problem.",
    )
    return figure, [trace for each in tested.values() for trace in each.traces]
