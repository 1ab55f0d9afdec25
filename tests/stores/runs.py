"""Small traces for the tests of stores: chats of which every identity holds."""

from dataclasses import replace
from typing import Any

import numpy as np

from tests.traces import made
from workbench.traces import Trace
from workbench.traces.authorship import prompt_then_model
from workbench.traces.manifest import first_positions
from workbench.traces.spans import Span

GENERATION = {"max_tokens": 8, "temperature": 0.5, "top_p": 1.0, "seed": 3, "stop": [9], "finish_reason": "stop"}


def chat(
    number: int = 0,
    *,
    question: str = "What is 12+30?",
    thought: str = "Carry the 1.",
    answer: str = "It is 42.",
    effort: str = "high",
    model: str = "made",
    **changes: Any,
) -> Trace:
    """A run with a system message, a question, a thought and an answer; its seed is `number`."""
    pieces = [f"Reasoning: {effort}", "<u>", question, "<a>", thought, "<f>", answer]
    spans = [
        Span(0, 1, 0, 1, "system"),
        Span(1, 3, 2, 3, "user"),
        Span(3, 5, 4, 5, "assistant", "analysis"),
        Span(5, 7, 6, 7, "assistant", "final"),
    ]
    manifest = made.manifest(7)
    fields = {
        "tokens": [number % made.VOCAB, 1, 2, 3, 4, 5, 6],
        "str_tokens": pieces,
        "spans": spans,
        "written": prompt_then_model(3, 7),
        "generation": GENERATION | {"seed": number},
        "model": manifest.model | {"name": model},
    }
    logprob = -np.arange(7, dtype="f4") - number
    return Trace(replace(manifest, **fields | changes), {"logprob": logprob})


def partial() -> Trace:
    """What is left of `chat()` if it is interrupted at its answer."""
    whole = chat()
    manifest = replace(first_positions(whole.manifest, 5), status="partial")
    return Trace(manifest, {"logprob": whole.raw("logprob")[:5].copy()})
