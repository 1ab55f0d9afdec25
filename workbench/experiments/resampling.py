"""What a step is worth: the text is written anew from before it, and from after it, and the answers are compared."""

from collections import Counter
from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np
import xarray as xr
from tqdm.auto import tqdm

from workbench.analysis import statistics
from workbench.conversation.parse import parse
from workbench.errors import NotRecorded, PromptError
from workbench.experiments import sampling as drawing
from workbench.model.model import Model
from workbench.traces import Trace
from workbench.traces.spans import last_turn
from workbench.traces.steps import Step, segment_slices

NONE = "<none>"  # a text that ends without an answer
Answer = Callable[[Sequence[int]], str | None]  # of a whole text, as token ids


def final_text(model: Model) -> Answer:
    """Reads the answer of a text: the final message of its last turn, None if it has none."""

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
    parse_answer: Answer | None = None,
    temperature: float = 1.0,
    max_tokens: int = 512,
    seed: int = 0,
) -> xr.Dataset:
    """How much each step of a chain of thought moves the answer, by writing on from before and from after it.

    `n_samples` continuations are written where the text is cut: point i is before step i, the last one after all steps.
    `none` (point) is the share that ends without an answer, most often at `max_tokens`: an metric of its own. If it
    counted as wrong, early points would look worse only because more is left to write.

    `accuracy` (point): of those with an answer, the share whose answer is `correct_answer` (the run's own unless given); NaN if
    there is none. `low` and `high` are Wilson's 95 % bounds. `importance` (step) is what accuracy gains by keeping the
    step: they sum to the last less the first. `attrs["detectable"]` is the smallest difference that `n_samples` finds four
    times in five, and `attrs["null_max"]` what the largest of so many importances reaches by chance once in twenty:
    screen with few, then confirm with more.

    `kl` (step) is KL(answers before || answers after) in nats, "<none>" among the answers, each counted half a time
    more than it was. It is never 0 on average, so `kl_null` (step) is its mean if both points have the answers of the
    two together (1,000 parametric bootstrap draws), and `kl_p` the share of these draws that are as large.

    >>> trace = model.generate(wb.chat("What is 12+30?", reasoning="high"))
    >>> found = wb.reasoning.resampling(model, trace, n_samples=4, temperature=0)
    >>> bool(np.isclose(found["importance"].sum(), found["accuracy"][-1] - found["accuracy"][0]))
    True

    Raises NotRecorded if the trace has no steps, or no answer and none was given. (arXiv 2506.19143)
    """
    cut = segment_slices(trace, segments)
    if not cut:
        raise NotRecorded("the trace has no steps, for nothing was thought in it: give `segments`, as slices")
    if not isinstance(n_samples, int | np.integer) or n_samples < 1:
        raise PromptError(
            f"n_samples must be a whole number of 1 or more, the texts that are written from each point, got {n_samples!r}"
        )
    read = parse_answer or final_text(model)
    wanted = read(trace.tokens) if correct_answer is None else correct_answer
    if wanted is None:
        raise NotRecorded("this run gave no answer: say which one is right, as `correct_answer`")
    points = [*(part.start for part in cut), cut[-1].stop]
    answers = []
    with model.interruptible() as flag:
        for number, point in enumerate(tqdm(points, desc="writing on", unit="step", leave=False, disable=None)):
            flag.check()
            kept = trace.tokens[:point]
            more = drawing.rollouts(
                model, kept, n_samples, max_tokens=max_tokens, temperature=temperature, seed=seed * 100_003 + number
            )
            answers.append([read([*kept, *said]) for said in more])
    hits = np.array([sum(said == wanted for said in those) for those in answers])
    answered = np.array([sum(said is not None for said in those) for those in answers])
    bounds = np.array(
        [statistics.wilson_interval(int(h), int(k)) if k else (np.nan, np.nan) for h, k in zip(hits, answered)]
    )
    accuracy = np.divide(hits, answered, out=np.full(len(hits), np.nan), where=answered > 0)
    named = [[NONE if said is None else said for said in those] for those in answers]
    nulls = [_null_divergences(a, b) for a, b in pairwise(named)]
    kl = np.array([divergence(a, b) for a, b in pairwise(named)])
    coords = {"point": np.arange(len(points)), "step": np.arange(len(cut)), "pos": ("point", points)}
    data = {
        "accuracy": ("point", accuracy),
        "low": ("point", bounds[:, 0]),
        "high": ("point", bounds[:, 1]),
        "none": ("point", 1 - answered / n_samples),
        "importance": ("step", np.diff(accuracy)),
        "kl": ("step", kl),
        "kl_null": ("step", [null.mean() for null in nulls]),
        "kl_p": ("step", [(1 + (null >= found - 1e-12).sum()) / (1 + len(null)) for found, null in zip(kl, nulls)]),
    }
    attrs = {
        "n": n_samples,
        "correct_answer": wanted,
        "temperature": temperature,
        "detectable": statistics.minimum_detectable_effect(n_samples),
        "null_max": _largest_by_chance(hits, answered),
        "answers": [dict(Counter(those)) for those in named],
    }
    return xr.Dataset(data, coords, attrs)


def _null_divergences(before: Sequence[str], after: Sequence[str], draws: int = 1000) -> np.ndarray:
    """`divergence` of lists as long as these, both drawn from the answers of the two together."""
    pooled = np.array(list(Counter([*before, *after]).values()), float)
    rng = np.random.default_rng(0)
    a, b = (rng.multinomial(len(said), pooled / pooled.sum(), draws) for said in (before, after))
    seen = a + b > 0  # an answer that neither list has is no metric of theirs
    p, q = (np.where(seen, counts + 0.5, 0.0) for counts in (a, b))
    p, q = p / p.sum(1, keepdims=True), q / q.sum(1, keepdims=True)
    return (p * np.log(np.where(seen, p, 1.0) / np.where(seen, q, 1.0))).sum(1)


def divergence(before: Sequence, after: Sequence) -> float:
    """KL(before || after) in nats of two lists of answers, each counted half a time more than it was (Jeffreys).

    >>> divergence(["a"] * 9, ["a"] * 9)
    0.0
    """
    names = sorted({*map(str, before), *map(str, after)})
    p, q = (np.array([Counter(map(str, said))[name] + 0.5 for name in names]) for said in (before, after))
    p, q = p / p.sum(), q / q.sum()
    return float((p * np.log(p / q)).sum())


def _largest_by_chance(hits: np.ndarray, answered: np.ndarray, draws: int = 4000) -> float:
    """The 95th percentile of the largest |difference| of neighbours, if all points had the same accuracy."""
    if not (answered[1:] * answered[:-1]).any():
        return float("nan")  # no two neighbours have an answer
    counts = np.maximum(answered, 1)
    again = np.random.default_rng(0).binomial(counts, hits.sum() / answered.sum(), (draws, len(hits))) / counts
    again[:, answered == 0] = np.nan
    return float(np.quantile(np.nanmax(np.abs(np.diff(again, axis=1)), axis=1), 0.95))
