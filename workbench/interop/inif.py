"""Traces as INIF, NDIF's interchange format for tokenized texts with spans (0.1): JSON with tokens, without tensors.

Fields that the format defines have the format's names. A token's role, channel and summaries are stored where the
format allows additions: in extra fields of a token, in tags and in metadata. nnsight's tools, such as its HTML viewer,
read these files: see https://pypi.org/project/inif.
"""

import gzip
import json
import os
from collections.abc import Iterable, Sequence
from math import isfinite
from pathlib import Path
from typing import Any

from workbench import hooks
from workbench.checks import check_items, check_texts, check_type
from workbench.errors import ArgumentError
from workbench.files import atomic_write
from workbench.paths import expanded
from workbench.text import visible
from workbench.traces import Trace
from workbench.traces.authorship import MODEL, PROMPT, writer_of_each
from workbench.traces.steps import steps

VERSION = "0.1"
TAGS = {PROMPT: (), MODEL: ("generated",)}  # by the writer of a token; the tag of a tool is its name
TEMPLATE = "template"  # INIF's role for a token outside every message's content


def to_inif(traces: Trace | Sequence[Trace], summaries: Iterable[str] = ("logprob", "entropy")) -> dict[str, Any]:
    """An INIF document: one sample for each trace, with its tokens, messages and steps. All traces are of one model.

    A token has its `id`, its `token` (the text), its `role`, and `tags`: its channel, and "generated" for tokens of the
    model, or the name of the tool that put it in. It also has the value of each of `summaries` that the trace contains,
    if the value is finite. Each message and each step of the chain of thought is a span with its positions. A sample's
    `metadata` describe the run.

    >>> document = to_inif(trace)
    >>> sample = document["samples"][0]
    >>> sample["id"] == trace.id, [token["token"] for token in sample["tokens"]] == trace.str_tokens
    (True, True)

    Raises ArgumentError for traces of several models, for the same trace twice, and for a summary that does not have
    one number for each position.
    """
    traces = [traces] if isinstance(traces, Trace) else check_items("traces", traces, low=0)
    for trace in traces:
        check_type("to_inif", trace, Trace)
    summaries = tuple(check_texts("summaries", summaries))
    models = {trace.manifest.model["weights_digest"]: trace.manifest.model["name"] for trace in traces}
    if len(models) != 1:
        raise ArgumentError(
            f"an INIF document is about one model, got traces of {visible(', '.join(models.values())) or 'none'}."
        )
    if len({trace.id for trace in traces}) < len(traces):
        raise ArgumentError("the same trace was given twice; samples of a document need different trace ids.")
    wrong = [name for name in summaries if hooks.SUMMARIES.get(name) != ("pos",)]
    if wrong:
        allowed = ", ".join(name for name, axes in hooks.SUMMARIES.items() if axes == ("pos",))
        raise ArgumentError(f"{wrong[0]!r} does not hold one number for each position; these summaries do: {allowed}.")
    [(digest, name)] = models.items()
    about = {"name": name, "loading_config": traces[0].manifest.numerics}
    return {
        "metadata": {
            "model": about,
            "inif_version": VERSION,
            "created_at": traces[0].manifest.created,
            "total_samples": len(traces),
            "extra": {"weights": digest},
        },
        "samples": [_sample(trace, summaries) for trace in traces],
    }


def save_inif(
    traces: Trace | Sequence[Trace], path: os.PathLike[str] | str, summaries: Iterable[str] = ("logprob", "entropy")
) -> Path:
    """Writes `to_inif(…)` to `path` and returns the path. An existing file is replaced, completely or not at all.

    A name that ends in .inif or .gz is written as gzipped JSON, any other as JSON: this is how inif reads them.

    >>> save_inif(trace, "first.inif.json")  # doctest: +SKIP
    PosixPath('first.inif.json')

    Raises FileError if it cannot be written.
    """
    path = expanded(path)
    text = json.dumps(to_inif(traces, summaries), allow_nan=False).encode("ascii")
    return atomic_write(path, gzip.compress(text, mtime=0) if path.name.endswith((".inif", ".gz")) else text)


def _sample(trace: Trace, summaries: tuple[str, ...]) -> dict[str, Any]:
    tokens: list[dict[str, Any]] = [
        {"id": token, "token": piece, "role": TEMPLATE, "tags": list(TAGS.get(who, [who]))}
        for token, piece, who in zip(trace.tokens, trace.str_tokens, writer_of_each(trace.written), strict=True)
    ]
    for span in trace.spans:
        for token in tokens[span.content]:
            token["role"] = span.role
            token["tags"] += [span.channel] if span.channel else []
    for name in summaries:
        if name in trace:
            for token, value in zip(tokens, trace[name].tolist(), strict=True):
                token |= {name: value} if isfinite(value) else {}
    spans = []
    for number, span in enumerate(trace.spans):
        optional = {"recipient": span.recipient, "author": span.author, "content_type": span.content_type}
        spans.append(
            {
                "name": f"message {number}",
                "positions": list(range(span.start, span.stop)),
                "tags": ["message", span.role, *([span.channel] if span.channel else [])],
                "metadata": {k: v for k, v in optional.items() if v is not None} | {"complete": span.complete},
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
        "input_tokens": len(trace) - len(trace.written_by(MODEL)),
        "output_tokens": len(trace.written_by(MODEL)),
        "metadata": {
            "trace": trace.id,
            "status": trace.status,
            "created": manifest.created,
            "generation": manifest.generation,
            "calls": [call.to_json() for call in trace.calls],
            "follows": trace.follows,
            "edits": trace.edits,
            "verified": trace.verified,
        },
    }
