"""The row of a trace in the index: what can be found, from its manifest. All texts are made visible.

A new column is one line in `COLUMNS` and one in `row`; an index that lacks it is rebuilt.
"""

from hashlib import sha256
from typing import Any, NamedTuple

from workbench.text import visible
from workbench.traces import Manifest
from workbench.traces.authorship import MODEL, PROMPT, token_counts
from workbench.traces.canonical_json import canonical
from workbench.traces.listing import question_and_answer, reasoning_effort
from workbench.traces.spans import last_turn

# Column -> the type of its values in Python.
COLUMNS: dict[str, type] = {
    "id": str,
    "path": str,  # relative to the store
    "created": str,
    "model": str,
    "format": str,
    "weights": str,
    "adapter": str,  # "" without one
    "adapter_scale": float,
    "dtype": str,
    "effort": str,  # the reasoning effort: "low", "medium", "high"; "" if the prompt names none
    "question": str,  # in one line, cut
    "answer": str,
    "n_tokens": int,
    "n_prompt": int,
    "n_generated": int,  # by the model
    "n_put_in": int,  # by tools
    "n_calls": int,
    "seconds": float,  # that the run took; none if it was not measured
    "first_token": float,  # seconds until the first token
    "follows": str,  # the id of the trace that this one continues; "" for none
    "temperature": float,
    "top_p": float,
    "seed": int,
    "max_tokens": int,
    "finish": str,  # why the generation ended
    "edited": bool,
    "edits": str,  # "hook point function", one a line
    "record": str,
    "status": str,  # "complete" or "partial"
    "verified": bool,
    "failed": str,  # the identities that fail, one a line
    "n_arrays": int,
    "bytes": int,  # of the arrays
    "prompt_digest": str,  # equal for equal token ids of the prompt
}
LARGEST = 2**63 - 1  # of an integer of SQLite


class Row(NamedTuple):
    """A trace in the index: a value for each of `COLUMNS`, and the texts that are searched."""

    values: tuple[Any, ...]
    question: str
    answer: str
    analysis: str
    calls: tuple[tuple[int, str, str | None, float | None], ...]  # number, tool, error, seconds


def row(path: str, manifest: Manifest) -> Row:
    """The row of the trace at `path`.

    >>> values = dict(zip(COLUMNS, row("first.trace", trace.manifest).values))
    >>> values["question"], values["effort"], values["n_prompt"] == trace.prompt_length
    ('What is 247+138?', 'high', True)
    """
    model, generation = manifest.model, manifest.generation or {}
    adapter = model.get("adapter") or {}
    n, n_prompt = len(manifest.tokens), manifest.prompt_length
    by_writer, took = token_counts(manifest.written), manifest.took or {}
    question, answer = question_and_answer(manifest)
    states = {line["status"] for line in manifest.verification}
    failed = [line["identity"] for line in manifest.verification if line["status"] == "fails"]
    edits = [f"{edit.get('glob', '')} {edit.get('function', '')}".strip() for edit in manifest.edits]
    values: dict[str, Any] = {
        "id": manifest.id,
        "path": path,
        "created": visible(manifest.created),
        "model": visible(model["name"]),
        "format": visible(model["format"]),
        "weights": visible(model["weights_digest"]),
        "adapter": visible(adapter.get("name", "")),
        "adapter_scale": adapter.get("scale"),
        "dtype": visible(str(manifest.numerics.get("dtype", ""))),
        "effort": reasoning_effort(manifest),
        "question": visible(question),
        "answer": visible(answer),
        "n_tokens": n,
        "n_prompt": n_prompt,
        "n_generated": by_writer[MODEL],
        "n_put_in": n - by_writer[PROMPT] - by_writer[MODEL],
        "n_calls": len(manifest.calls),
        "seconds": took.get("seconds"),
        "first_token": took.get("first_token"),
        "follows": manifest.follows or "",
        "temperature": generation.get("temperature"),
        "top_p": generation.get("top_p"),
        "seed": integer(generation.get("seed")),
        "max_tokens": generation.get("max_tokens"),
        "finish": visible(generation.get("finish_reason") or ""),
        "edited": bool(manifest.edits),
        "edits": visible("\n".join(edits), "\n"),
        "record": visible(" ".join(manifest.record)),
        "status": manifest.status,
        "verified": "holds" in states and "fails" not in states,
        "failed": visible("\n".join(failed), "\n"),
        "n_arrays": len(manifest.tensors),
        "bytes": min(sum(info.nbytes for info in manifest.tensors.values()), LARGEST),
        "prompt_digest": digest(manifest.tokens[:n_prompt]),
    }
    turn, pieces = last_turn(manifest.spans), manifest.str_tokens

    def text(spans: Any) -> str:
        return visible("\n".join("".join(pieces[span.content]) for span in spans), "\n")

    return Row(
        tuple(values[name] for name in COLUMNS),
        text(span for span in turn.messages if span.role == "user"),
        text(turn.on("final")),
        text(turn.on("analysis")),
        tuple(
            (number, visible(call.tool), call.error and visible(call.error, "\n"), call.seconds)
            for number, call in enumerate(manifest.calls)
        ),
    )


def digest(token_ids: list[int]) -> str:
    """32 hex digits that are equal for equal token ids.

    >>> digest([5, 7]) == digest([5, 7]), digest([5, 7]) == digest([57])
    (True, False)
    """
    return sha256(canonical(token_ids)).hexdigest()[:32]


def integer(value: int | None) -> int | str | None:
    """A whole number as SQLite can hold it: as text if it has more than 63 bits."""
    return value if value is None or -LARGEST <= value <= LARGEST else str(value)
