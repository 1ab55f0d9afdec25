"""The short way in: one call asks a model a question and gives the Trace of its answer."""

from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from workbench.model.model import Model, Prompt
    from workbench.recording.budget import Estimate
    from workbench.traces import Trace


@lru_cache(maxsize=1)
def kept_model(where: str) -> "Model":
    """The model that the last call used: loading one takes longer than most questions."""
    from workbench.model.model import Model

    return Model(where)


def model_of(model: "str | Model") -> "Model":
    """The model itself, or the one that is found under a name or in a folder."""
    return kept_model(model) if isinstance(model, str) else model


def trace(
    prompt: "Prompt",
    model: "str | Model" = "pocket",
    *,
    record: str | Sequence[str] = "auto",
    max_tokens: int = 1024,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int = 0,
    reasoning: str | None = None,
    stop: Sequence[int | str] = (),
) -> "Trace":
    """Asks a model, lets it think and answer, and gives the verified Trace of both.

    `prompt`: a question, a `wb.chat(…)`, or token ids. `model`: a name or folder as for `wb.Model` (kept for the next
    call), or a Model. `reasoning` is the effort of a question or chat: "low", "medium" or "high"; without it, it is the
    model's own default, as in `Model.generate` (medium for gpt-oss, high for pocket). The other arguments are those of
    `Model.generate`.

    >>> wb.trace("What is 12+30?").text(channel="final")
    'It is 42.'

    Raises ModelNotFound, CheckpointError, PromptError, HookNameError, BudgetError.
    """
    return model_of(model).generate(
        question(prompt, reasoning), max_tokens=max_tokens, temperature=temperature, top_p=top_p, seed=seed,
        record=record, stop=stop,
    )  # fmt: skip


def resume(partial: "Trace", model: "str | Model | None" = None) -> "Trace":
    """Goes on with an interrupted run, and gives the Trace that it would have left; see `Model.resume`.

    `partial`: what the interrupt kept, `interrupt.trace`, or that trace saved and loaded. `model`: as for `trace`;
    the one that the partial trace names unless given.

    >>> half = wb.load("half.trace")  # doctest: +SKIP
    >>> wb.resume(half).status  # doctest: +SKIP
    'complete'

    Raises ModelNotFound, CheckpointError, ResumeError, BudgetError.
    """
    return model_of(partial.manifest.model["name"] if model is None else model).resume(partial)


def estimate(
    prompt: "Prompt",
    model: "str | Model" = "pocket",
    *,
    record: str | Sequence[str] = "auto",
    max_tokens: int = 1024,
    reasoning: str | None = None,
) -> "Estimate":
    """How big the trace of such a run would be, before it is made: `.bytes`, `.memory`, `.by_name`, `.fits`.

    `max_tokens` is taken as if the model wrote all of them; 0 for a text that is only read.

    >>> small, large = (wb.estimate("What is 12+30?", record=what, max_tokens=0) for what in ("", "everything"))
    >>> small.fits, small.bytes < large.bytes / 5
    (True, True)

    Raises what `trace` raises, but BudgetError.
    """
    return model_of(model).estimate(question(prompt, reasoning), record=record, max_tokens=max_tokens)


def question(prompt: "Prompt", reasoning: str | None) -> "Prompt":
    """The prompt with that effort; None leaves it as it is."""
    from workbench.conversation.chat import with_reasoning

    return with_reasoning(prompt, reasoning)
