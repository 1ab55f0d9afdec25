"""The ways to say, of two steps, how much the later one hangs on the earlier one: a matrix (step key_step) each."""

from collections.abc import Callable, Sequence

import numpy as np
import torch

import workbench as wb
from workbench.studies.held_out import tokenizer_of

Method = Callable[[wb.Model, wb.Trace, Sequence[slice]], np.ndarray]


@torch.inference_mode()
def another_value(model: wb.Model, trace: wb.Trace, parts: Sequence[slice]) -> np.ndarray:
    """What each step's text loses in log-probability if the last digit of another step is one more, in nats a token."""
    texts, at = [list(trace.tokens)], []
    for j, part in enumerate(parts):
        digit = trace.str_tokens[part.stop - 1].strip()
        if digit.isdigit():
            changed = list(trace.tokens)
            [changed[part.stop - 1]] = tokenizer_of(model).encode(str((int(digit) + 1) % 10))
            texts.append(changed)
            at.append(j)
    ids = torch.tensor(texts)
    said = (
        model.forward(ids)[:, :-1]
        .double()
        .log_softmax(-1)
        .gather(-1, ids[:1, 1:, None].expand(len(ids), -1, -1))[..., 0]
    )
    lost = np.pad((said[:1] - said[1:]).double().numpy(), ((0, 0), (1, 0)))  # step pos
    effect = np.zeros((len(parts), len(parts)))
    for j, row in zip(at, lost):
        effect[j + 1 :, j] = [row[later].mean() for later in parts[j + 1 :]]
    return effect


def received(model: wb.Model, trace: wb.Trace, parts: Sequence[slice]) -> np.ndarray:
    """How much steps far on look at each, by the four heads that single some out; least where none is far on."""
    steps = wb.steps(trace)
    heads = wb.attention.receiver_heads(wb.attention.step_attention(trace, steps)).stack(at=("layer", "head"))
    best = heads["vertical"].isel(at=np.argsort(-heads["kurtosis"].fillna(-9).values)[:4])
    of = [next(i for i, step in enumerate(steps) if part.start < step.stop) for part in parts]
    return np.tile(best.mean("at").fillna(-1).values[of], (len(parts), 1))


def attention(model: wb.Model, trace: wb.Trace, parts: Sequence[slice]) -> np.ndarray:
    """The mean attention of each step on each earlier one, over all heads."""
    return wb.attention.step_attention(trace, parts).mean(("layer", "head")).values


def suppression(model: wb.Model, trace: wb.Trace, parts: Sequence[slice]) -> np.ndarray:
    """What hiding each earlier step does to a later one, in nats."""
    return wb.reasoning.suppression(model, trace, parts)["effect"].values


def nearness(model: wb.Model, trace: wb.Trace, parts: Sequence[slice]) -> np.ndarray:
    """No method, but what any has to beat."""
    return -np.abs(np.subtract.outer(range(len(parts)), range(len(parts)))).astype(float)


def area(score: np.ndarray, truth: np.ndarray, rows: np.ndarray) -> float:
    """AUROC of the pairs in `rows`, for a bootstrap over them."""
    return wb.statistics.auroc(score[rows], truth[rows])


METHODS: dict[str, Method] = {
    "nearness": nearness,
    "receiver heads": received,
    "attention": attention,
    "suppression": suppression,
    "another value": another_value,
}
