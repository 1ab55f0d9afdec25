"""When did it know? After each step the model is made to answer, and how likely it finds the answer is read off."""

from collections.abc import Sequence

import numpy as np
import torch
import xarray as xr
from tqdm.auto import tqdm

from workbench.errors import NotRecorded, PromptError
from workbench.experiments.cached_run import CachedRun
from workbench.model.kernels.rows import log_softmax
from workbench.model.model import Model
from workbench.traces import Trace
from workbench.traces.spans import Span, last_turn, turns
from workbench.traces.steps import Step, segment_slices


def forced_answer(
    model: Model,
    trace: Trace,
    answers: Sequence[str] | str | None = None,
    *,
    segments: Sequence[Step | slice] | None = None,
) -> xr.Dataset:
    """How likely each answer is if the model stops thinking after each step (step answer): 0 steps, 1, … all of them.

    The steps are those of the turn that led to the answer (see `wb.steps`), also where it calls tools in between. The
    chain of thought is cut after a step, and the end of that message and the header of the run's own final message
    follow. After the last step it is what the run itself wrote up to its answer, calls and results included, so the
    last value is what the run itself found.

    `logprob` is the log-probability of the whole answer, in nats, and `p` its share among the answers that were asked
    about (the plain probability if there is one only). Without `answers` it is the final message that the run wrote.
    `attrs["commit_step"]` is after how many steps the likeliest answer is the one that it stays with; with one answer, after
    how many it is likelier than not, for good.

    >>> trace = wb.trace("What is 12+30?")
    >>> curve = wb.reasoning.forced_answer(model, trace)
    >>> curve["p"].dims, curve.sizes["step"] == len(wb.steps(trace)) + 1
    (('step', 'answer'), True)

    Raises NotRecorded if the last turn has no analysis before a final message, PromptError if the model cannot encode
    texts.
    """
    thoughts, final = messages(trace)
    last = thoughts[-1].content_stop
    cut = segment_slices(trace, segments)
    ends = [thoughts[0].content_start, *(part.stop for part in cut)]
    if outside := [end for end in ends if not any(t.content_start <= end <= t.content_stop for t in thoughts)]:
        places = ", ".join(f"{t.content_start}..{t.content_stop}" for t in thoughts)
        raise NotRecorded(f"a part ends at {outside[0]}, and the thoughts that led to the answer are {places}")
    if answers is None:
        names, asked = ["".join(trace.str_tokens[final.content])], [trace.tokens[final.content]]
    elif model.tokenizer is None:
        raise PromptError("this model has no tokenizer, so it cannot encode answers: leave them out")
    else:
        names = [answers] if isinstance(answers, str) else list(answers)
        if not names or not all(isinstance(text, str) for text in names):
            raise PromptError(f"answers must be texts, as in answers=['Yes', 'No'], got {answers!r}")
        asked = [list(model.tokenizer.encode(text)) for text in names]
    if not all(asked):
        empty = next(name for name, ids in zip(names, asked) if not ids)
        raise PromptError(f"an answer has one token at least; {empty!r} has none")
    logp = np.zeros((len(ends), len(asked)))
    with model.interruptible() as flag, torch.inference_mode():
        text = CachedRun(model, trace.tokens[:last])
        for i, end in enumerate(tqdm(ends, desc="asking", unit="step", leave=False, disable=None)):
            flag.check()
            between = to_answer(trace, thoughts, final, end)
            for j, answer in enumerate(asked):
                # the first token to be read again is the one before: its prediction may be of the answer
                begin = end - 1
                ids = torch.tensor([[trace.tokens[begin], *between, *answer]], device=model.device)
                cache = text.cache.fork(1, begin)
                logits = model.forward(ids[:, :-1], None, cache, slice(len(between), None))
                found = log_softmax(logits[0])
                said = torch.tensor(answer, device=model.device)
                logp[i, j] = float(found.gather(-1, said[:, None]).double().sum())
    share = np.exp(logp - logp.max(-1, keepdims=True))
    p = share / share.sum(-1, keepdims=True) if len(asked) > 1 else np.exp(logp)
    coords = {"step": np.arange(len(ends)), "answer": names, "pos": ("step", ends)}
    data = {"p": (("step", "answer"), p), "logprob": (("step", "answer"), logp)}
    found = xr.Dataset(data, coords, {"commit_step": _commit(p), "n": len(cut)})
    found["p"].attrs["units"], found["logprob"].attrs["units"] = "probability", "nats"
    return found


def messages(trace: Trace) -> tuple[tuple[Span, ...], Span]:
    """The thoughts of the last turn that led to its answer, and the answer."""
    turn = last_turn(trace.spans)
    if turn.answer is None or not turn.thoughts:
        earlier = any(one.answer and one.thoughts for one in turns(trace.spans)[:-1])
        raise NotRecorded(
            "this is about an answer after a chain of thought, and "
            + ("the last turn of " if earlier else "")
            + "this text has no final message after an analysis. "
            "Let it write on (max_tokens), or ask with reasoning='high'."
        )
    return turn.thoughts, turn.answer


def to_answer(trace: Trace, thoughts: Sequence[Span], final: Span, end: int) -> list[int]:
    """What stands between a chain of thought that stops before `end` and the answer.

    It is the end marker of the thought that holds `end` and the header of the answer; where the last thought ends, all
    that the run itself wrote from there to its answer.
    """
    if end >= thoughts[-1].content_stop:
        return trace.tokens[end : final.content_start]
    thought = next(span for span in reversed(thoughts) if span.content_start <= end)
    return trace.tokens[thought.content_stop : thought.stop] + trace.tokens[final.start : final.content_start]


def _commit(p: np.ndarray) -> int | None:
    """After how many steps the answer is settled; None if it never is."""
    settled = p.argmax(-1) == p[-1].argmax() if p.shape[1] > 1 else p[:, 0] > 0.5
    if not settled[-1]:
        return None
    return int(len(settled) - settled[::-1].argmin()) if not settled.all() else 0
