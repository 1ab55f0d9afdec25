"""Wrong steps, by the rules of pocket's families: where a value is wrong, what is then right to say is known."""

from collections.abc import Callable
from functools import cache
from random import Random
from typing import NamedTuple

import numpy as np
import torch

import workbench as wb
from workbench.model.cache import KVCache
from workbench.pocket.eval.causes import prefix
from workbench.pocket.families import make, slips, wordings
from workbench.pocket.families.controls import Look
from workbench.pocket.problems import Problem
from workbench.pocket.rendering import ANALYSIS, prompt
from workbench.pocket.vocabulary import encode

WAIT = encode(". Wait")  # how pocket takes a step back; after a right step that is not the last, a comma follows


class Pair(NamedTuple):
    """A step that is written up to its value, rightly and wrongly: texts that differ in their last token alone."""

    problem: Problem
    start: int  # of the step, as a position
    right: list[int]
    wrong: list[int]


@cache
def pairs(family: str, n: int, length: int, seed: str) -> list[Pair]:
    """The first `n` held-out problems with a step, not the last one, that can be wrong in one token."""
    rng, found = Random(f"{seed} {family}"), []
    while len(found) < n:
        problem = make(family, rng, length=length, split="test", wording=None)
        drawn = [s for s in slips(problem, rng, corrected=False) if problem.steps[s.number].stop == ","]
        for slip in rng.sample(drawn, len(drawn)):
            right, wrong = (encode(prefix(p, slip.number, passed=False)) for p in (problem, problem.slipped(slip)))
            if len(right) == len(wrong):
                start = len(right) - len(encode(problem.steps[slip.number].text))
                found.append(Pair(problem, start, right, wrong))
                break
    return found


def written_on(model: wb.Model, ids: list[int], record: str = "") -> wb.Trace:
    """The text read with ". Wait" after it: what the model makes of that stands at its last three positions."""
    return model.trace([*ids, *WAIT], record=record)


def takes_back(trace: wb.Trace) -> bool:
    """Whether ". Wait" is what the model itself would have said there."""
    return trace["top_ids"][-3:-1, 0].tolist() == WAIT


def chance_of_wait(trace: wb.Trace) -> float:
    """How likely the model finds ". Wait" there."""
    return float(np.exp(trace["logprob"][-2:].sum()))


def chances(
    model: wb.Model, ids: list[int], rows: int, where: str, fn: Callable[[torch.Tensor], torch.Tensor]
) -> np.ndarray:
    """How likely ". Wait" is after the text, in so many readings of its last token, each edited there by a row of `fn`.

    The same as `chance_of_wait` of a trace under each edit, but what comes before is read once.
    """
    cached = KVCache(model.config)
    with torch.inference_mode():
        model.forward(torch.tensor([ids[:-1]]), None, cached, slice(0, 0))
        with model.edit(where, fn, positions=len(ids) - 1):
            last = torch.tensor([[ids[-1], WAIT[0]]]).expand(rows, 2)
            logp = model.forward(last, None, cached.fork(rows)).double().log_softmax(-1)
    return (logp[:, 0, WAIT[0]] + logp[:, 1, WAIT[1]]).exp().numpy()


def made_wrong(problem: Problem, step) -> str | None:
    """A step with a wrong value that leads to another answer; None where there is none."""
    others = [problem.slipped(slip) for slip in slips(problem, Random(0), corrected=False)]
    found = [(p.steps[p.slip.number].text, p.answer, problem.steps[p.slip.number].text) for p in others if p.slip]
    if isinstance(problem.facts, Look):
        text, colors = problem.steps[0].text, sorted({color for _, color in problem.facts.colors})
        found = [(text.replace(problem.answer, color), color, text) for color in colors]
    said = [(text, right) for text, answer, right in found if answer != problem.answer and right in step.text]
    return step.text.replace(said[0][1], said[0][0]) if said else None


def reworded(problem: Problem, trace: wb.Trace, k: int) -> list[int] | None:
    """The first step after the same question in another wording; None for more steps."""
    if k != 1:
        return None
    other = next(w for w in wordings(problem.family, trained=True) if w != problem.wording)
    first = wb.steps(trace)[0]
    asked = prompt(Problem(problem.facts, other), "high") + ANALYSIS
    return [*encode(asked), *trace.tokens[first.start : first.stop]]
