"""Shortcuts that load a model by name: `trace` asks a question and records the answer in one call."""

import os
from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

from workbench.checks import check_type

if TYPE_CHECKING:
    from workbench.conversation.chat import Effort
    from workbench.model.model import Model, Prompt
    from workbench.recording.budget import Estimate
    from workbench.traces import Trace


@lru_cache(maxsize=1)
def cached_model(where: str) -> "Model":
    """The model at `where`, cached for the next call: loading a model takes longer than most questions."""
    from workbench.model.model import Model

    return Model(where)


def model_of(model: "str | Model") -> "Model":
    """The Model itself, or the one of a name or folder."""
    from workbench.model.model import Model

    if isinstance(model, str | os.PathLike):
        return cached_model(os.fsdecode(model))
    check_type("model=", model, Model)
    return model


def trace(
    prompt: "Prompt",
    model: "str | Model" = "pocket",
    *,
    record: str | Sequence[str] = "auto",
    max_tokens: int = 1024,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int = 0,
    reasoning: "Effort | None" = None,
    stop: Sequence[int | str] = (),
) -> "Trace":
    """The verified Trace of a model's chain of thought and answer to a prompt.

    >>> wb.trace("What is 12+30?").text(channel="final")
    'It is 42.'

    Args:
        prompt: a question, a `wb.chat(…)`, or token ids.
        model: a name or folder as for `wb.Model` (the model is cached for the next call), or a Model.
        record: presets (residuals, writes, attention, patterns, values, experts, logits, lens, steps, everything), hook
            points and globs, separated by spaces. "" records only what is always recorded (router logits, experts,
            sinks, log-probabilities; see `wb.hooks.ALWAYS_RECORDED`). "auto" adds the presets that fit a quarter of the
            free memory: usually all but patterns, logits and everything. See `Model.trace`.
        max_tokens: the largest number of generated tokens.
        temperature: 0 for greedy decoding.
        top_p: sample from the smallest set of tokens with this mass.
        seed: of the sampling.
        reasoning: the effort of a question or chat: "low", "medium" or "high". The default is the model's own, as in
            `Model.generate` (medium for gpt-oss, high for pocket).
        stop: token ids and texts at which to stop, in addition to the model's own.

    Raises:
        ModelNotFound, CheckpointError: if the model cannot be found or loaded.
        PromptError: for an invalid prompt or setting.
        HookNameError: for a name in `record` that matches no hook point.
        BudgetError: if the recording does not fit.
    """
    return model_of(model).generate(
        question(prompt, reasoning), max_tokens=max_tokens, temperature=temperature, top_p=top_p, seed=seed,
        record=record, stop=stop,
    )  # fmt: skip


def resume(partial: "Trace", model: "str | Model | None" = None) -> "Trace":
    """The Trace of an interrupted run, continued to its end; identical to an uninterrupted one. See `Model.resume`.

    `partial` is the trace of the interrupt (`interrupt.trace`), or that trace saved and loaded. `model` is as for
    `trace`; the default is the model named in the partial trace.

    >>> half = wb.load("half.trace")  # doctest: +SKIP
    >>> wb.resume(half).status  # doctest: +SKIP
    'complete'

    Raises ModelNotFound, CheckpointError, ResumeError, BudgetError.
    """
    from workbench.traces import Trace

    check_type("resume", partial, Trace)
    return model_of(partial.manifest.model["name"] if model is None else model).resume(partial)


def estimate(
    prompt: "Prompt",
    model: "str | Model" = "pocket",
    *,
    record: str | Sequence[str] = "auto",
    max_tokens: int = 1024,
    reasoning: "Effort | None" = None,
) -> "Estimate":
    """The estimated size of the trace of a run, without running it: `.bytes`, `.memory`, `.by_name`, `.fits`.

    >>> small, large = (wb.estimate("What is 12+30?", record=what, max_tokens=0) for what in ("", "everything"))
    >>> small.fits, small.bytes < large.bytes / 5
    (True, True)

    Args:
        prompt: as for `trace`.
        model: as for `trace`.
        record: as for `trace`.
        max_tokens: the estimate assumes that all of them are generated; 0 for a text that is only recorded.
        reasoning: as for `trace`.

    Raises what `trace` raises, except BudgetError.
    """
    return model_of(model).estimate(question(prompt, reasoning), record=record, max_tokens=max_tokens)


def question(prompt: "Prompt", reasoning: "Effort | None") -> "Prompt":
    """The prompt with that reasoning effort; None leaves it unchanged."""
    from workbench.conversation.chat import with_reasoning

    return with_reasoning(prompt, reasoning)
