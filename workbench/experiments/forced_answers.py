"""Forced answers: the probability of each answer if the model has to answer early, after each step of its chain."""

from collections.abc import Sequence

import numpy as np
import torch
import xarray as xr

from workbench.checks import check_texts, check_type
from workbench.errors import NotRecorded, PromptError
from workbench.experiments.cached_run import CachedRun
from workbench.model.kernels.rows import log_softmax
from workbench.model.model import Model
from workbench.progress import progress_bar
from workbench.traces import Trace
from workbench.traces.spans import Span, last_turn, turns
from workbench.traces.steps import Step, segment_slices
from workbench.units import with_units


def forced_answer(
    model: Model,
    trace: Trace,
    answers: Sequence[str] | str | None = None,
    *,
    segments: Sequence[Step | slice] | None = None,
) -> xr.Dataset:
    """Forced answers: the probability of each answer if the model has to answer after 0, 1, … n steps (step answer).

    This is early answering (Lanham et al. 2023, arXiv 2307.13702), with probabilities instead of samples. For each
    step, the prompt is the chain of thought up to that step, followed by the tokens that the run generated between its
    last thought and its answer: the end of the analysis message and the header of the final message. After the last
    step, the prompt is the run's own text, including tool calls and results.

    The steps are those of the turn that led to the answer (see `wb.steps`), even if it calls tools in between. A forced
    answer is not necessarily what the model would have answered at that point: the forced header is unusual there.

    Args:
        model: the model.
        trace: a run with a chain of thought and a final message in its last turn.
        answers: texts of the answers to compare; the run's own final message unless given.
        segments: other segments than the steps of the chain of thought.

    Returns:
        Dataset over (step, answer):
        `logprob`, the log-probability of the whole answer, in nats;
        `p`, its probability among the given answers (the plain probability if there is only one).
        `attrs["commit_step"]` is the first step from which the final answer stays the most likely (with one answer:
        stays above 0.5), or None.

    >>> trace = wb.trace("What is 12+30?")
    >>> curve = wb.reasoning.forced_answer(model, trace)
    >>> curve["p"].dims, curve.sizes["step"] == len(wb.steps(trace)) + 1
    (('step', 'answer'), True)

    Raises:
        NotRecorded: the last turn has no analysis before a final message.
        PromptError: the model cannot encode texts, or an answer is empty.
    """
    check_type("forced_answer", model, Model)
    check_type("forced_answer", trace, Trace)
    thoughts, final = messages(trace)
    last = thoughts[-1].content_stop
    parts = segment_slices(trace, segments)
    ends = [thoughts[0].content_start, *(part.stop for part in parts)]
    if outside := [end for end in ends if not any(t.content_start <= end <= t.content_stop for t in thoughts)]:
        ranges = ", ".join(f"{t.content_start}..{t.content_stop}" for t in thoughts)
        raise NotRecorded(
            f"a segment ends at {outside[0]}, outside the analysis messages that led to the answer ({ranges})"
        )
    if answers is None:
        names, answer_ids = ["".join(trace.str_tokens[final.content])], [trace.tokens[final.content]]
    elif model.tokenizer is None:
        raise PromptError("this model has no tokenizer, so it cannot encode answers; leave `answers` out")
    else:
        names = [answers] if isinstance(answers, str) else check_texts("answers", answers)
        if not names:
            raise PromptError("answers must be texts, at least one, as in answers=['Yes', 'No']")
        answer_ids = [list(model.tokenizer.encode(text)) for text in names]
    if not all(answer_ids):
        empty = next(i for i, ids in enumerate(answer_ids) if not ids)
        raise PromptError(f"answers[{empty}] is empty: every answer needs at least one token")
    logprob = np.zeros((len(ends), len(answer_ids)))
    with model.interruptible() as flag, torch.inference_mode():
        run = CachedRun(model, trace.tokens[:last])
        for i, end in enumerate(progress_bar(ends, desc="forcing answers", unit="step")):
            flag.check()
            transition_ids = to_answer(trace, thoughts, final, end)
            for j, ids in enumerate(answer_ids):
                # start one token earlier: its prediction may be the first token of the answer
                start = end - 1
                prompt = torch.tensor([[trace.tokens[start], *transition_ids, *ids]], device=model.device)
                cache = run.cache.fork(1, start)
                logits = model.forward(prompt[:, :-1], None, cache, slice(len(transition_ids), None))
                logprobs = log_softmax(logits[0])
                next_ids = torch.tensor(ids, device=model.device)
                logprob[i, j] = float(logprobs.gather(-1, next_ids[:, None]).double().sum())
    relative = np.exp(logprob - logprob.max(-1, keepdims=True))
    p = relative / relative.sum(-1, keepdims=True) if len(answer_ids) > 1 else np.exp(logprob)
    coords = {"step": np.arange(len(ends)), "answer": names, "pos": ("step", ends)}
    data = {"p": (("step", "answer"), p), "logprob": (("step", "answer"), logprob)}
    dataset = xr.Dataset(data, coords, {"commit_step": _commit_step(p), "n": len(parts)})
    return with_units(dataset, p="probability", logprob="nats")


def messages(trace: Trace) -> tuple[tuple[Span, ...], Span]:
    """The analysis messages of the last turn that led to its answer, and the answer."""
    turn = last_turn(trace.spans)
    if turn.answer is None or not turn.thoughts:
        earlier = any(turn.answer and turn.thoughts for turn in turns(trace.spans)[:-1])
        raise NotRecorded(
            "this needs an answer after a chain of thought, and "
            + ("the last turn of " if earlier else "")
            + "this text has no final message after an analysis message. "
            "Generate more tokens (max_tokens), or ask with reasoning='high'."
        )
    return turn.thoughts, turn.answer


def to_answer(trace: Trace, thoughts: Sequence[Span], final: Span, end: int) -> list[int]:
    """The token ids between a chain of thought that stops before `end` and the answer.

    These are the end marker of the analysis message that contains `end` and the header of the final message. At the end
    of the last analysis message, they are all tokens that the run generated from there to its answer.
    """
    if end >= thoughts[-1].content_stop:
        return trace.tokens[end : final.content_start]
    thought = next(span for span in reversed(thoughts) if span.content_start <= end)
    return trace.tokens[thought.content_stop : thought.stop] + trace.tokens[final.start : final.content_start]


def _commit_step(p: np.ndarray) -> int | None:
    """The first step from which the final answer stays the most likely; None if there is none."""
    settled = p.argmax(-1) == p[-1].argmax() if p.shape[1] > 1 else p[:, 0] > 0.5
    if not settled[-1]:
        return None
    return int(len(settled) - settled[::-1].argmin()) if not settled.all() else 0
