"""Is the chain faithful? Thoughts are cut, filled, made wrong and hidden from the answer, family by family.

Families of problems under the battery of faithfulness, and with thoughts or question hidden from the answer.
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

NEED, SPARE = ("addition", "swaps", "lists"), ("say", "look")  # families that need a chain of thought, and that do not
N, LENGTH, SEED = 8, 3, "fresh"
HIDDEN = ("nothing", "the thoughts", "the question")


class Tested(NamedTuple):
    """One family: what `wb.reasoning.faithfulness` says, which answers stay (run hidden), and the runs."""

    found: xr.Dataset
    kept: np.ndarray
    traces: list[wb.Trace]

    def by_run(self, test: str, steps: int | None = None) -> np.ndarray:
        """The share of answers that change, run by run: in all cases of a test, or with so many steps left."""
        cases = [c for c in self.found.attrs["cases"] if c["test"] == test and steps in (None, c["step"])]
        changed = [[1 - c["same"] for c in cases if c["run"] == run] for run in range(len(self.traces))]
        return np.array([np.mean(these) if these else np.nan for these in changed])


def keeps(model: wb.Model, trace: wb.Trace, hidden: str) -> bool:
    """Whether the likeliest answer is still the same, to the last token, when the final message does not see one."""
    question, thought, final = trace.spans[-3:]
    seen, begin = trace, final.content_start + 2  # after "It is"
    if hidden != "nothing":
        at = list(range(len(trace))[(thought if hidden == "the thoughts" else question).content])
        with model.edit(
            "blocks.*.attn.hook_attn_scores",
            lambda x: x.index_fill(-1, x.new_tensor(at).long(), -np.inf),
            positions=slice(final.start, len(trace)),
        ):
            seen = model.trace(trace.tokens, record="")
    return seen["top_ids"][begin - 1 : -1, 0].tolist() == trace.tokens[begin:]


@cache
def measure(model: wb.Model, n: int = N, seed: str = SEED) -> dict[str, Tested]:
    """By family, over `n` held-out problems in one wording that was never trained, read as they should be solved."""
    found = {}
    for family in (*NEED, *SPARE):
        rng, of = Random(f"{seed} {family}"), {}
        while len(of) < n:
            problem = make(family, rng, length=LENGTH, split="test", wording=wordings(family, trained=False)[0])
            trace = model.trace(list(render(problem, "high").ids), record="")
            if made_wrong(problem, wb.steps(trace)[-1]) or family == "say":  # a look-up needs a second colour
                of[trace.id] = problem, trace
        traces = [trace for _, trace in of.values()]
        battery = wb.reasoning.faithfulness(
            model,
            traces,
            mistake=lambda trace, step, of=of: made_wrong(of[trace.id][0], step),
            paraphrase=lambda trace, k, of=of: reworded(of[trace.id][0], trace, k),
        )
        kept = np.array([[keeps(model, trace, hidden) for hidden in HIDDEN] for trace in traces])
        found[family] = Tested(battery, kept, traces)
    return found


def rows(tested: dict[str, Tested]) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Run by run: whether the answer was known before any thought, and how often each thing done changes it."""
    every = {family: each for family, each in tested.items() if family != "say"}  # nothing in "Copy it." can be wrong
    known = np.concatenate([each.by_run("early", 0) for each in every.values()]) < 0.5
    wrong = np.concatenate([each.by_run("mistake") for each in every.values()])
    hidden = 1.0 - np.concatenate([each.kept[:, 1] for each in every.values()])
    return known, {"a wrong step": wrong, "thoughts hidden": hidden}


def draw(model: wb.Model) -> tuple[Figure, Sequence[wb.Trace]]:
    """The figure, and the traces behind it."""
    tested = measure(model)
    early = {family: each.found.sel(test="early") for family, each in tested.items()}
    curves = xr.concat([early[family] for family in NEED], xr.IndexVariable("family", list(NEED)))
    curves["fraction"].attrs["long_name"] = "fraction of the thoughts that is left"
    shown = curves["same"].assign_attrs(long_name="same answer")
    null = curves["chance"].mean("family")
    one = line(shown, by="family", low=curves["low"], high=curves["high"], null=null, title="Cut short, then answered")
    area = xr.concat([each.found for each in tested.values()], xr.IndexVariable("family", list(tested)), join="outer")
    area = area.fillna(0.0)  # "Copy it." has nothing that could be wrong
    done = area["area"].assign_attrs(long_name="answers that change")
    two = bars(done, by="test", low=area["area_low"], high=area["area_high"], title="Cut, filled, made wrong, reworded")
    coords = {"family": list(tested), "hidden": list(HIDDEN[1:])}
    hits, n = np.array([each.kept[:, 1:].sum(0) for each in tested.values()]), len(tested["say"].traces)
    value = xr.DataArray(hits / n, coords)
    ends = [[wb.statistics.wilson_interval(int(k), n) for k in row] for row in hits]
    low, high = np.moveaxis(np.array(ends), -1, 0)
    value.attrs["long_name"] = "answers kept"
    three = bars(value, by="hidden", low=low, high=high, title="Hidden from the final message")
    known, changed = rows(tested)
    kinds = {"known before": known, "found by thinking": ~known}
    means = [[wb.statistics.mean_interval(v[at & ~np.isnan(v)]) for v in changed.values()] for at in kinds.values()]
    coords = {"item": list(kinds), "done": list(changed)}
    value, low, high = (xr.DataArray(part, coords) for part in bounds(means))
    value.attrs["long_name"] = "answers that change"
    four = bars(value, by="item", low=low, high=high, title="Items known before any thought, and others")
    figure = Figure(
        panels=[replace(each.panels[0], title=each.title) for each in (one, two, three, four)],
        columns=2,
        width=wb.figures.WIDTHS["page"],
        height=140,
        title="Not to need a chain of thought is not to ignore it",
        note=f"n = {n} held-out problems a family, length {LENGTH}; below right "
        f"{known.sum()} items known before and {(~known).sum()} others, of all families but say. 95 % intervals over "
        "problems (they have no width where all are alike); dashed: how often it is another problem's answer.",
    )
    return figure, [trace for each in tested.values() for trace in each.traces]
