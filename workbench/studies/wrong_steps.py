"""Solutions with a wrong step: the rules of pocket's families say which later steps follow from a wrong value."""

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

WAIT = encode(". Wait")  # how pocket takes a step back; a right step that is not the last is followed by a comma


class Pair(NamedTuple):
    """A text up to and including a step's value, with the right and with a wrong value: only the last token differs."""

    problem: Problem
    start: int  # position of the step's first token
    right: list[int]  # token ids
    wrong: list[int]


@cache
def wrong_step_pairs(family: str, n: int, length: int, seed: str) -> list[Pair]:
    """The first `n` held-out problems with a step, other than the last one, that can be wrong in one token."""
    rng, result = Random(f"{seed} {family}"), []
    while len(result) < n:
        problem = make(family, rng, length=length, split="test", wording=None)
        candidates = [s for s in slips(problem, rng, corrected=False) if problem.steps[s.number].stop == ","]
        for slip in rng.sample(candidates, len(candidates)):
            right, wrong = (encode(prefix(p, slip.number, passed=False)) for p in (problem, problem.slipped(slip)))
            if len(right) == len(wrong):
                start = len(right) - len(encode(problem.steps[slip.number].text))
                result.append(Pair(problem, start, right, wrong))
                break
    return result


def trace_with_wait(model: wb.Model, ids: list[int], record: str = "") -> wb.Trace:
    """The trace of a text followed by ". Wait"; its last three positions show how the model predicts that."""
    return model.trace([*ids, *WAIT], record=record)


def takes_back(trace: wb.Trace) -> bool:
    """Whether ". Wait" is the model's most likely continuation of the text, token by token."""
    return trace["top_ids"][-3:-1, 0].tolist() == WAIT


def wait_probability(trace: wb.Trace) -> float:
    """The probability of ". Wait" after the text."""
    return float(np.exp(trace["logprob"][-2:].sum()))


def wait_probabilities(
    model: wb.Model, ids: list[int], rows: int, where: str, fn: Callable[[torch.Tensor], torch.Tensor]
) -> np.ndarray:
    """The probability of ". Wait" after the text under each of `rows` edits of its last token (row).

    `fn` edits the value at hook point `where` for all rows at once (row …). The result equals `wait_probability` of a
    trace under each edit, but the text before the last token is prefilled only once.
    """
    cache = KVCache(model.config)
    with torch.inference_mode():
        model.forward(torch.tensor([ids[:-1]]), None, cache, slice(0, 0))
        with model.edit(where, fn, positions=len(ids) - 1):
            last = torch.tensor([[ids[-1], WAIT[0]]]).expand(rows, 2)
            logprobs = model.forward(last, None, cache.fork(rows)).double().log_softmax(-1)
    return (logprobs[:, 0, WAIT[0]] + logprobs[:, 1, WAIT[1]]).exp().numpy()


def made_wrong(problem: Problem, step) -> str | None:
    """The step's text with a wrong value that leads to another answer; None if there is no such value."""
    slipped = [problem.slipped(slip) for slip in slips(problem, Random(0), corrected=False)]
    # (wrong text, the answer it leads to, right text)
    candidates = [(p.steps[p.slip.number].text, p.answer, problem.steps[p.slip.number].text) for p in slipped if p.slip]
    if isinstance(problem.facts, Look):
        text, colors = problem.steps[0].text, sorted({color for _, color in problem.facts.colors})
        candidates = [(text.replace(problem.answer, color), color, text) for color in colors]
    wrong_right = [
        (text, right) for text, answer, right in candidates if answer != problem.answer and right in step.text
    ]
    return step.text.replace(wrong_right[0][1], wrong_right[0][0]) if wrong_right else None


def reworded(problem: Problem, trace: wb.Trace, k: int) -> list[int] | None:
    """Token ids of the question in another wording, followed by the first step; None unless `k` is 1."""
    if k != 1:
        return None
    other_wording = next(w for w in wordings(problem.family, trained=True) if w != problem.wording)
    first = wb.steps(trace)[0]
    text = prompt(Problem(problem.facts, other_wording), "high") + ANALYSIS
    return [*encode(text), *trace.tokens[first.start : first.stop]]
