"""When did it know? After each step the model is made to answer, and how likely it finds the answer is read off."""

from collections.abc import Sequence

import numpy as np
import torch
import xarray as xr
from tqdm.auto import tqdm

from workbench.causal.reading import Reading
from workbench.errors import NotRecorded, PromptError
from workbench.runner.model import Model
from workbench.segments import Step, steps
from workbench.spans import Span
from workbench.traces import Trace


def belief(
    model: Model,
    trace: Trace,
    answers: Sequence[str] | None = None,
    *,
    parts: Sequence[Step | slice] | None = None,
) -> xr.Dataset:
    """How likely each answer is if the model stops thinking after each step (step answer): 0 steps, 1, … all of them.

    The chain of thought is cut there, and what the run itself wrote between its last thought and its answer follows:
    the end of the message and the beginning of the final one. `logprob` is the log-probability of the whole answer, in
    nats, and `p` its share among the answers that were asked about (the plain probability if there is one only).
    Without `answers` it is the final message that the run wrote. `attrs["commit"]` is after how many steps the
    likeliest answer is the one that it stays with; with one answer, after how many it is likelier than not, for good.
    After all steps, it is what the run itself found.

    >>> trace = wb.trace("What is 12+30?")
    >>> curve = wb.belief(model, trace)
    >>> curve["p"].dims, curve.sizes["step"] == len(wb.steps(trace)) + 1
    (('step', 'answer'), True)

    Raises NotRecorded if the run has no analysis before a final message, PromptError if the model cannot encode texts.
    """
    thought, final = messages(trace)
    cut = [slice(p.start, p.stop) for p in (steps(trace) if parts is None else parts)]
    ends = [thought.content_start, *(part.stop for part in cut if part.stop <= thought.content_stop)]
    between = trace.tokens[thought.content_stop : final.content_start]
    if answers is None:
        names, asked = ["".join(trace.pieces[final.content])], [trace.tokens[final.content]]
    elif model.tokenizer is None:
        raise PromptError("this model has no tokenizer, so it cannot encode answers: leave them out")
    else:
        names, asked = list(answers), [list(model.tokenizer.encode(text)) for text in answers]
    if not all(asked):
        empty = next(name for name, ids in zip(names, asked) if not ids)
        raise PromptError(f"an answer has one token at least; {empty!r} has none")
    logp = np.zeros((len(ends), len(asked)))
    with model.listening() as flag, torch.inference_mode():
        text = Reading(model, trace.tokens[: thought.content_stop])
        for i, end in enumerate(tqdm(ends, desc="asking", unit="step", leave=False, disable=None)):
            flag.check()
            for j, answer in enumerate(asked):
                # the first token to be read again is the one before: its prediction may be of the answer
                begin = end - 1
                ids = torch.tensor([[trace.tokens[begin], *between, *answer]], device=model.device)
                cache = text.cache.fork(1, begin)
                logits = model.forward(ids[:, :-1], None, cache, slice(len(between), None))
                found = logits[0].float().log_softmax(-1)
                said = torch.tensor(answer, device=model.device)
                logp[i, j] = float(found.gather(-1, said[:, None]).double().sum())
    share = np.exp(logp - logp.max(-1, keepdims=True))
    p = share / share.sum(-1, keepdims=True) if len(asked) > 1 else np.exp(logp)
    coords = {"step": np.arange(len(ends)), "answer": names, "pos": ("step", ends)}
    data = {"p": (("step", "answer"), p), "logprob": (("step", "answer"), logp)}
    found = xr.Dataset(data, coords, {"commit": _commit(p), "n": len(cut)})
    found["p"].attrs["units"], found["logprob"].attrs["units"] = "probability", "nats"
    return found


def messages(trace: Trace) -> tuple[Span, Span]:
    """The last final message, and the analysis before it, whether the run wrote them or read them."""
    spans = [span for span in trace.spans if span.role == "assistant"]
    final = next((i for i in reversed(range(len(spans))) if spans[i].channel == "final"), None)
    thoughts = [span for span in spans[:final] if span.channel == "analysis"]
    if final is None or not thoughts:
        raise NotRecorded(
            "this is about an answer after a chain of thought, and this text has no final message after an analysis. "
            "Let it write on (max_tokens), or ask with reasoning='high'."
        )
    return thoughts[-1], spans[final]


def _commit(p: np.ndarray) -> int | None:
    """After how many steps the answer is settled; None if it never is."""
    settled = p.argmax(-1) == p[-1].argmax() if p.shape[1] > 1 else p[:, 0] > 0.5
    if not settled[-1]:
        return None
    return int(len(settled) - settled[::-1].argmin()) if not settled.all() else 0
