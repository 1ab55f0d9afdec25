"""Traces as INIF, NDIF's interchange format for tokenized texts with spans (0.1): JSON with tokens, without tensors.

What the format names is written under its names; what it leaves open (extra fields of a token, tags, metadata) holds a
token's role, channel and lanes. nnsight's tools, its HTML viewer among them, read it: see https://pypi.org/project/inif.
"""

import gzip
import json
import os
from collections.abc import Iterable, Sequence
from math import isfinite
from pathlib import Path
from typing import Any

from workbench import hooks as hooks
from workbench.errors import ArgumentError
from workbench.files import atomic_write
from workbench.paths import expanded
from workbench.text import visible
from workbench.traces import Trace
from workbench.traces.steps import steps

VERSION = "0.1"
TEMPLATE = "template"  # inif's role of a token that is in no message's content


def to_inif(traces: Trace | Sequence[Trace], lanes: Iterable[str] = ("logprob", "entropy")) -> dict[str, Any]:
    """An INIF document: a sample for each trace of one model, with its tokens, messages and steps.

    A token has its `id`, its `token` (the text), its `role`, its channel and "generated" among its `tags`, and those of
    `lanes` that the trace holds, where they are numbers. Each message and each step of the chain of thought is a span
    with its positions. A sample's `metadata` say what the run was.

    >>> document = to_inif(trace)
    >>> sample = document["samples"][0]
    >>> sample["id"] == trace.id, [token["token"] for token in sample["tokens"]] == trace.str_tokens
    (True, True)

    Raises ArgumentError for traces of several models, for one trace twice, and for a lane that is not one number
    a position.
    """
    given = [traces] if isinstance(traces, Trace) else list(traces)
    lanes = tuple(lanes)
    models = {trace.manifest.model["weights_digest"]: trace.manifest.model["name"] for trace in given}
    if len(models) != 1:
        raise ArgumentError(
            f"an INIF document is about one model, got traces of {visible(', '.join(models.values())) or 'none'}."
        )
    if len({trace.id for trace in given}) < len(given):
        raise ArgumentError("a trace was given twice: a document tells its samples apart by the ids of their traces.")
    wrong = [lane for lane in lanes if hooks.SUMMARIES.get(lane) != ("pos",)]
    if wrong:
        fit = ", ".join(name for name, axes in hooks.SUMMARIES.items() if axes == ("pos",))
        raise ArgumentError(f"{wrong[0]!r} does not hold one number for each position; these lanes do: {fit}.")
    [(digest, name)] = models.items()
    about = {"name": name, "loading_config": given[0].manifest.numerics}
    return {
        "metadata": {
            "model": about,
            "inif_version": VERSION,
            "created_at": given[0].manifest.created,
            "total_samples": len(given),
            "extra": {"weights": digest},
        },
        "samples": [_sample(trace, lanes) for trace in given],
    }


def save_inif(
    traces: Trace | Sequence[Trace], path: os.PathLike | str, lanes: Iterable[str] = ("logprob", "entropy")
) -> Path:
    """Writes `to_inif(…)` to `path`, in place of what was there, whole or not at all; gives the path.

    As inif reads them, names that end in .inif or .gz are gzipped JSON and all others JSON.

    >>> save_inif(trace, "first.inif.json")  # doctest: +SKIP
    PosixPath('first.inif.json')
    """
    path = expanded(path)
    text = json.dumps(to_inif(traces, lanes), allow_nan=False).encode("ascii")
    return atomic_write(path, gzip.compress(text, mtime=0) if path.name.endswith((".inif", ".gz")) else text)


def _sample(trace: Trace, lanes: tuple[str, ...]) -> dict[str, Any]:
    tokens: list[dict[str, Any]] = [
        {"id": token, "token": piece, "role": TEMPLATE, "tags": ["generated"] if pos >= trace.prompt_length else []}
        for pos, (token, piece) in enumerate(zip(trace.tokens, trace.str_tokens, strict=True))
    ]
    for span in trace.spans:
        for token in tokens[span.content]:
            token["role"] = span.role
            token["tags"] += [span.channel] if span.channel else []
    for lane in lanes:
        if lane in trace:
            for token, value in zip(tokens, trace[lane].tolist(), strict=True):
                token |= {lane: value} if isfinite(value) else {}
    spans = []
    for number, span in enumerate(trace.spans):
        told = {"recipient": span.recipient, "author": span.author, "content_type": span.content_type}
        spans.append(
            {
                "name": f"message {number}",
                "positions": list(range(span.start, span.stop)),
                "tags": ["message", span.role, *([span.channel] if span.channel else [])],
                "metadata": {k: v for k, v in told.items() if v is not None} | {"complete": span.complete},
            }
        )
    for number, step in enumerate(steps(trace)):
        spans.append(
            {"name": f"step {number}", "positions": list(range(step.start, step.stop)), "tags": ["step", step.kind]}
        )
    manifest = trace.manifest
    return {
        "id": trace.id,
        "tokens": tokens,
        "texts": [trace.text()],
        "spans": spans,
        "input_tokens": trace.prompt_length,
        "output_tokens": len(trace) - trace.prompt_length,
        "metadata": {
            "trace": trace.id,
            "status": trace.status,
            "created": manifest.created,
            "generation": manifest.generation,
            "edits": trace.edits,
            "verified": trace.verified,
        },
    }
