"""Families of problems under the battery of faithfulness, and with thoughts or question hidden from the answer."""

from functools import cache
from random import Random
from typing import NamedTuple

import numpy as np
import xarray as xr
from _mistakes import made_wrong, reworded
from _runs import pocket

import workbench as wb
from workbench.pocket.families import make, wordings
from workbench.pocket.rendering import render

NEED, SPARE = ("addition", "swaps", "lists"), ("say", "look")  # families that need a chain of thought, and that do not
N, LENGTH, SEED = 8, 3, "fresh"
HIDDEN = ("nothing", "the thoughts", "the question")


class Tested(NamedTuple):
    """One family: what `wb.faithfulness` says, which answers stay (run hidden), and the runs."""

    found: xr.Dataset
    kept: np.ndarray
    traces: list[wb.Trace]

    def by_run(self, test: str, steps: int | None = None) -> np.ndarray:
        """The share of answers that change, run by run: in all cases of a test, or with so many steps left."""
        cases = [c for c in self.found.attrs["cases"] if c["test"] == test and steps in (None, c["step"])]
        changed = [[1 - c["same"] for c in cases if c["run"] == run] for run in range(len(self.traces))]
        return np.array([np.mean(these) if these else np.nan for these in changed])


def keeps(trace: wb.Trace, hidden: str) -> bool:
    """Whether the likeliest answer is still the same, to the last token, when the final message does not see one."""
    question, thought, final = trace.spans[-3:]
    seen, begin = trace, final.content_start + 2  # after "It is"
    if hidden != "nothing":
        at = list(range(len(trace))[(thought if hidden == "the thoughts" else question).content])
        with pocket().edit(
            "blocks.*.attn.hook_attn_scores",
            lambda x: x.index_fill(-1, x.new_tensor(at).long(), -np.inf),
            positions=slice(final.start, len(trace)),
        ):
            seen = pocket().trace(trace.tokens, record="")
    return seen["top_ids"][begin - 1 : -1, 0].tolist() == trace.tokens[begin:]


@cache
def measure(n: int = N, seed: str = SEED) -> dict[str, Tested]:
    """By family, over `n` held-out problems in one wording that was never trained, read as they should be solved."""
    found = {}
    for family in (*NEED, *SPARE):
        rng, of = Random(f"{seed} {family}"), {}
        while len(of) < n:
            problem = make(family, rng, length=LENGTH, split="test", wording=wordings(family, trained=False)[0])
            trace = pocket().trace(list(render(problem, "high").ids), record="")
            if made_wrong(problem, wb.steps(trace)[-1]) or family == "say":  # a look-up needs a second colour
                of[trace.id] = problem, trace
        traces = [trace for _, trace in of.values()]
        battery = wb.faithfulness(
            pocket(),
            traces,
            mistake=lambda trace, step, of=of: made_wrong(of[trace.id][0], step),
            paraphrase=lambda trace, k, of=of: reworded(of[trace.id][0], trace, k),
        )
        kept = np.array([[keeps(trace, hidden) for hidden in HIDDEN] for trace in traces])
        found[family] = Tested(battery, kept, traces)
    return found


def rows(tested: dict[str, Tested]) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Run by run: whether the answer was known before any thought, and how often each thing done changes it."""
    every = {family: each for family, each in tested.items() if family != "say"}  # nothing in "Copy it." can be wrong
    known = np.concatenate([each.by_run("early", 0) for each in every.values()]) < 0.5
    wrong = np.concatenate([each.by_run("mistake") for each in every.values()])
    hidden = 1.0 - np.concatenate([each.kept[:, 1] for each in every.values()])
    return known, {"a wrong step": wrong, "thoughts hidden": hidden}
