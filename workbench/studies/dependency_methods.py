"""Methods that score how much a later step depends on an earlier one; each returns a matrix (step key_step)."""

from collections.abc import Callable, Sequence

import numpy as np
import torch

import workbench as wb
from workbench.studies.held_out import tokenizer_of

Method = Callable[[wb.Model, wb.Trace, Sequence[slice]], np.ndarray]


@torch.inference_mode()
def another_value(model: wb.Model, trace: wb.Trace, steps: Sequence[slice]) -> np.ndarray:
    """Drop in log-probability of each step if the last digit of an earlier step is raised by 1, in nats per token."""
    texts, changed_steps = [list(trace.tokens)], []
    for j, step in enumerate(steps):
        digit = trace.str_tokens[step.stop - 1].strip()
        if digit.isdigit():
            changed = list(trace.tokens)
            [changed[step.stop - 1]] = tokenizer_of(model).encode(str((int(digit) + 1) % 10))
            texts.append(changed)
            changed_steps.append(j)
    ids = torch.tensor(texts)
    logprob = (
        model.forward(ids)[:, :-1]
        .double()
        .log_softmax(-1)
        .gather(-1, ids[:1, 1:, None].expand(len(ids), -1, -1))[..., 0]
    )
    drop = np.pad((logprob[:1] - logprob[1:]).double().numpy(), ((0, 0), (1, 0)))  # step pos
    effect = np.zeros((len(steps), len(steps)))
    for j, row in zip(changed_steps, drop):
        effect[j + 1 :, j] = [row[later].mean() for later in steps[j + 1 :]]
    return effect


def received(model: wb.Model, trace: wb.Trace, steps: Sequence[slice]) -> np.ndarray:
    """Mean attention that each step receives from distant later steps, in the four heads with the highest kurtosis.

    A step without distant later steps scores -1, below all others.
    """
    sentences = wb.steps(trace)
    heads = wb.attention.receiver_heads(wb.attention.step_attention(trace, sentences)).stack(at=("layer", "head"))
    # three values always have kurtosis -1.5: rounded, so that ties go to the first heads and not to rounding errors
    kurtosis = heads["kurtosis"].fillna(-9).values.round(6)
    best = heads["vertical"].isel(at=np.argsort(-kurtosis, kind="stable")[:4])
    containing = [next(i for i, sentence in enumerate(sentences) if step.start < sentence.stop) for step in steps]
    return np.tile(best.mean("at").fillna(-1).values[containing], (len(steps), 1))


def attention(model: wb.Model, trace: wb.Trace, steps: Sequence[slice]) -> np.ndarray:
    """The mean attention of each step on each earlier one, over all heads."""
    return wb.attention.step_attention(trace, steps).mean(("layer", "head")).values


def suppression(model: wb.Model, trace: wb.Trace, steps: Sequence[slice]) -> np.ndarray:
    """The effect of hiding each earlier step on a later one (attention suppression), in nats."""
    return wb.reasoning.suppression(model, trace, steps)["effect"].values


def nearness(model: wb.Model, trace: wb.Trace, steps: Sequence[slice]) -> np.ndarray:
    """The trivial baseline: minus the distance in steps."""
    return -np.abs(np.subtract.outer(range(len(steps)), range(len(steps)))).astype(float)


def area(score: np.ndarray, truth: np.ndarray, rows: np.ndarray) -> float:
    """AUROC of the pairs in `rows`, for a bootstrap over pairs."""
    return wb.statistics.auroc(score[rows], truth[rows])


METHODS: dict[str, Method] = {
    "nearness": nearness,
    "receiver heads": received,
    "attention": attention,
    "suppression": suppression,
    "another value": another_value,
}


def score_steps(name: str, model: wb.Model, trace: wb.Trace, steps: Sequence[slice]) -> np.ndarray:
    """The matrix of a method, rounded to 7 decimals: an AUROC would count rounding errors, which depend on the BLAS."""
    return METHODS[name](model, trace, steps).round(7)
