"""Resampling: how much each reasoning step changes the answers that the model generates after it."""

from collections import Counter
from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np
import xarray as xr

from workbench.analysis import statistics
from workbench.checks import (
    check_callable,
    check_count,
    check_number,
    check_seed,
    check_text,
    check_type,
    check_whole,
)
from workbench.conversation.parse import parse
from workbench.errors import NotRecorded
from workbench.experiments import sampling as drawing
from workbench.model.model import Model
from workbench.traces import Trace
from workbench.traces.spans import last_turn
from workbench.traces.steps import Step, segment_slices
from workbench.units import with_units

NONE = "<none>"  # stands for a continuation without an answer
# token ids of a whole text -> its answer, or None
AnswerParser = Callable[[Sequence[int]], str | None]


def final_text(model: Model) -> AnswerParser:
    """A parser of answers: the final message of a text's last turn, or None if there is none."""

    def read(tokens: Sequence[int]) -> str | None:
        assert model.tokenizer is not None
        final = last_turn(parse(tokens, model.tokenizer)).answer
        return None if final is None else model.tokenizer.decode(list(tokens[final.content]))

    return read


def resampling(
    model: Model,
    trace: Trace,
    correct_answer: str | None = None,
    *,
    n_samples: int = 20,
    segments: Sequence[Step | slice] | None = None,
    parse_answer: AnswerParser | None = None,
    temperature: float = 1.0,
    max_tokens: int = 512,
    seed: int = 0,
) -> xr.Dataset:
    """How much each reasoning step changes the answer: continuations from before and from after the step.

    From each point (point i is before step i, the last one after all steps), `n_samples` continuations are generated.
    The share without an answer (`none`, mostly cut off at `max_tokens`) is kept separate: if it counted as wrong, early
    points would look worse only because more remains to be generated. This is resampling importance as in Thought
    Anchors (arXiv 2506.19143).

    Args:
        model: the model that made the run.
        trace: a run with reasoning steps.
        correct_answer: the answer that counts as correct; the run's own unless given.
        n_samples: number of continuations from each point.
        segments: other segments than the steps of the chain of thought.
        parse_answer: from a text's token ids to its answer or None; by default the final message.
        temperature: of the sampling.
        max_tokens: the most tokens of each continuation.
        seed: of the sampling.

    Returns:
        Dataset:
        `accuracy` (point), the share of `correct_answer` among continuations with an answer; NaN if there are none;
        `low` and `high` (point), Wilson's 95 % bounds;
        `none` (point), the share of continuations without an answer;
        `importance` (step), the accuracy after the step minus that before it. They sum to the last minus the first;
        `kl` (step), KL(answers before || answers after) in nats, with "<none>" among the answers and half a count added
        to each (Jeffreys);
        `kl_null` (step), its mean if both points share one answer distribution (parametric bootstrap, 1,000 draws),
        since `kl` is above 0 even then; `kl_p` (step), the share of these draws that are as large.
        `attrs["detectable"]` is the smallest difference that `n_samples` detects with a power of 0.8.
        `attrs["null_max"]` is the 95th percentile of the largest |importance| of all steps under the null.

    Screen with few samples, then confirm the largest steps with more samples and another seed.

    >>> trace = model.generate(wb.chat("What is 12+30?", reasoning="high"))
    >>> effects = wb.reasoning.resampling(model, trace, n_samples=4, temperature=0)
    >>> bool(np.isclose(effects["importance"].sum(), effects["accuracy"][-1] - effects["accuracy"][0]))
    True

    Raises:
        NotRecorded: the trace has no steps, or no answer and `correct_answer` was not given.
        ArgumentError: a setting of the sampling is out of range.
    """
    check_type("resampling", model, Model)
    check_type("resampling", trace, Trace)
    n_samples, seed = check_count("n_samples", n_samples), check_seed(seed)
    temperature, max_tokens = check_number("temperature", temperature, low=0), check_whole("max_tokens", max_tokens, 1)
    correct_answer = None if correct_answer is None else check_text("correct_answer", correct_answer)
    parse_answer = None if parse_answer is None else check_callable("parse_answer", parse_answer)
    parts = segment_slices(trace, segments)
    if not parts:
        raise NotRecorded("this trace has no steps, because it has no chain of thought; give `segments` as slices")
    answer_of = parse_answer or final_text(model)
    correct = answer_of(trace.tokens) if correct_answer is None else correct_answer
    if correct is None:
        raise NotRecorded("this run has no answer; pass the correct one as `correct_answer`")
    points = [*(part.start for part in parts), parts[-1].stop]
    prefixes = [trace.tokens[:point] for point in points]
    answers = drawing.answers_after(
        model, prefixes, n_samples, answer_of, seed=seed, max_tokens=max_tokens, temperature=temperature,
        desc="resampling",
    )  # fmt: skip
    hits = np.array([sum(answer == correct for answer in at_point) for at_point in answers])
    answered = np.array([sum(answer is not None for answer in at_point) for at_point in answers])
    bounds = np.array(
        [statistics.wilson_interval(int(h), int(k)) if k else (np.nan, np.nan) for h, k in zip(hits, answered)]
    )
    accuracy = np.divide(hits, answered, out=np.full(len(hits), np.nan), where=answered > 0)
    named = [[NONE if answer is None else answer for answer in at_point] for at_point in answers]
    nulls = [_null_divergences(a, b) for a, b in pairwise(named)]
    kl = np.array([divergence(a, b) for a, b in pairwise(named)])
    coords = {"point": np.arange(len(points)), "step": np.arange(len(parts)), "pos": ("point", points)}
    data = {
        "accuracy": ("point", accuracy),
        "low": ("point", bounds[:, 0]),
        "high": ("point", bounds[:, 1]),
        "none": ("point", 1 - answered / n_samples),
        "importance": ("step", np.diff(accuracy)),
        "kl": ("step", kl),
        "kl_null": ("step", [null.mean() for null in nulls]),
        "kl_p": ("step", [(1 + (null >= value - 1e-12).sum()) / (1 + len(null)) for value, null in zip(kl, nulls)]),
    }
    attrs = {
        "n": n_samples,
        "correct_answer": correct,
        "temperature": temperature,
        "detectable": statistics.minimum_detectable_effect(n_samples),
        "null_max": _largest_by_chance(hits, answered),
        "answers": [dict(Counter(at_point)) for at_point in named],
    }
    return with_units(
        xr.Dataset(data, coords, attrs), "share of answers", kl="nats", kl_null="nats", kl_p="probability"
    )


def _null_divergences(before: Sequence[str], after: Sequence[str], draws: int = 1000) -> np.ndarray:
    """`divergence` of two lists of the same lengths, both drawn from the pooled answers."""
    pooled = np.array(list(Counter([*before, *after]).values()), float)
    rng = np.random.default_rng(0)
    a, b = (rng.multinomial(len(answers), pooled / pooled.sum(), draws) for answers in (before, after))
    seen = a + b > 0  # an answer in neither list is not counted
    p, q = (np.where(seen, counts + 0.5, 0.0) for counts in (a, b))
    p, q = p / p.sum(1, keepdims=True), q / q.sum(1, keepdims=True)
    return (p * np.log(np.where(seen, p, 1.0) / np.where(seen, q, 1.0))).sum(1)


def divergence(before: Sequence, after: Sequence) -> float:
    """KL(before || after) in nats of two lists of answers, with half a count added to each answer (Jeffreys).

    >>> divergence(["a"] * 9, ["a"] * 9)
    0.0
    """
    names = sorted({*map(str, before), *map(str, after)})
    p, q = (np.array([Counter(map(str, answers))[name] + 0.5 for name in names]) for answers in (before, after))
    p, q = p / p.sum(), q / q.sum()
    return float((p * np.log(p / q)).sum())


def _largest_by_chance(hits: np.ndarray, answered: np.ndarray, draws: int = 4000) -> float:
    """The 95th percentile of the largest |difference| of neighboring points if all had the same accuracy."""
    if not (answered[1:] * answered[:-1]).any():
        return float("nan")  # no two neighbours have an answer
    counts = np.maximum(answered, 1)
    resampled = np.random.default_rng(0).binomial(counts, hits.sum() / answered.sum(), (draws, len(hits))) / counts
    resampled[:, answered == 0] = np.nan
    return float(np.quantile(np.nanmax(np.abs(np.diff(resampled, axis=1)), axis=1), 0.95))
