"""Makes the Trace from recorded arrays: builds the manifest and verifies the identities."""

import platform
import sys
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from workbench import hooks
from workbench.errors import ArgumentError, VerificationWarning, WorkbenchError
from workbench.recording.source import Source, Text, text_of
from workbench.recording.verify import verify
from workbench.text import visible
from workbench.traces import Call, Manifest, Stretch, TensorInfo, Trace, TraceWriter, load
from workbench.traces.authorship import checked_written, prompt_then_model
from workbench.traces.calls import calls_in
from workbench.traces.canonical_json import canonical
from workbench.traces.fields import plain
from workbench.traces.format import dtype_code

if TYPE_CHECKING:
    from workbench.recording.plan import Plan

VERSION = version("gpt-oss-workbench")  # read once: it takes a millisecond
TEXT_RANKS = 5  # the top ranks of a prediction whose token texts a trace keeps


class Authorship(NamedTuple):
    """Who wrote the tokens of a text, the calls to tools in it, and the id of the trace that it continues.

    Without `calls`, they are those in the messages that the model wrote.
    """

    written: Sequence[Stretch]
    calls: Sequence[Call] | None = None
    follows: str | None = None


def all_prompt(tokens: Sequence[int]) -> Authorship:
    """The Authorship of a text of which all tokens are given."""
    return Authorship(prompt_then_model(len(tokens), len(tokens)))


def assemble(
    source: Source,
    plan: "Plan",
    tokens: Sequence[int],
    arrays: Mapping[str, np.ndarray],
    *,
    authorship: Authorship,
    origin: Mapping[str, str] | str = "forward",
    notes: Sequence[str] = (),
    writer: TraceWriter | None = None,
    status: str = "complete",
    **fields: Any,
) -> Trace:
    """The verified Trace of the recorded arrays.

    Args:
        source: the model that ran.
        plan: what was recorded.
        tokens: the text.
        arrays: by full name; with a `writer`, only those that were not appended yet.
        authorship: who wrote the tokens.
        origin: the pass that recorded the arrays ("forward", "live", "replay"), for all or by name.
        notes: notes in addition to the plan's.
        writer: the writer to which arrays were appended during the run. The trace then reads them back, and is verified
            on the written bytes.
        status: "partial" for an interrupted run. `verify` then skips its short extra run of the model, so that the
            interrupt takes effect at once. The run that continues this one is verified in full.
        fields: further fields of the manifest, on how the text was generated.

    Returns:
        The Trace. Warns (VerificationWarning) if an identity fails.
    """
    origins = {name: origin if isinstance(origin, str) else origin[name] for name in arrays}
    if derived := source.derived:
        origins |= {name: "derived" for name in arrays if name in derived or hooks.point_of(name) in derived}
    table = {
        name: TensorInfo(dtype_code(a.dtype), a.shape, hooks.axes(name), origins[name]) for name, a in arrays.items()
    }
    if writer:
        for each in sorted(set(origins.values())):
            writer.append({name: a for name, a in arrays.items() if origins[name] == each}, source=each)
        writer.manifest = replace(writer.manifest, edits=edits(source))  # which may change how many experts ran
        arrays = writer.so_far()
        table = arrays.manifest.tensors
    manifest = replace(
        draft(source, tokens, authorship, plan.request),
        tensors=table,
        edits=edits(source),
        omitted=list(plan.omitted),
        notes=[*plan.notes, *notes],
        vocab_text=predicted_texts(source, tokens, arrays),
        status=status,
        **fields,
    )
    verification = verify(source, Trace(manifest, arrays))
    _warn_if_any_fails(verification)
    manifest = replace(manifest, verification=verification)
    return load(writer.commit(manifest)) if writer else Trace(manifest, arrays)


def draft(
    source: Source, tokens: Sequence[int], authorship: Authorship, request: Sequence[str], text: Text | None = None
) -> Manifest:
    """The manifest without tensors and edits: the model, the text, its writers and the numerics.

    Raises ArgumentError for an Authorship that does not fit the text.
    """
    text, calls = text or text_of(source, tokens), authorship.calls
    written = checked_written(plain(authorship.written, "written"), len(tokens), text.spans)
    return Manifest(
        model=source.identity(),
        tokens=list(tokens),
        str_tokens=text.str_tokens,
        spans=text.spans,
        written=written,
        calls=calls_in(text.spans, text.str_tokens, written) if calls is None else list(calls),
        follows=authorship.follows,
        record=list(request),
        numerics=numerics(source),
    )


def require_valid(
    source: Source,
    plan: "Plan",
    tokens: Sequence[int],
    authorship: Authorship,
    generation: Mapping[str, Any] | None = None,
) -> None:
    """Raises ArgumentError, before a run, if its trace could not have a manifest, because of an edit or a setting."""
    try:
        manifest = replace(
            draft(source, tokens, authorship, plan.request),
            edits=edits(source),
            omitted=list(plan.omitted),
            notes=list(plan.notes),
            generation=generation and dict(generation),
        )
        canonical(manifest.to_json())
    except WorkbenchError:
        raise
    except Exception as error:  # an edit describes objects of the caller, whose classes may raise anything
        reason = f"{type(error).__name__}: {visible(str(error)[:200])}"
        raise ArgumentError(
            f"the manifest of this run cannot be written, so the run was not started: {reason}"
        ) from error


def edits(source: Source) -> list[dict[str, Any]]:
    """For the manifest: each edit, how often it was called in this run, and how much it changed."""
    return [e.describe() | {"points": sorted(e.points)} | e.tally.to_manifest() for e in source.edits]


def numerics(source: Source) -> dict[str, Any]:
    """Everything besides weights and tokens that the numbers may depend on."""
    return {
        "dtype": source.dtype,
        "device": source.device,
        "threads": torch.get_num_threads(),
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
        "workbench": VERSION,
        **source.numerics(),
    }


def predicted_texts(source: Source, tokens: Sequence[int], arrays: Mapping[str, np.ndarray]) -> dict[str, str]:
    """token id -> text of the most likely next tokens, so that a trace can be shown without a tokenizer."""
    if source.reader is None:
        return {}
    predicted = [arrays[name][..., :TEXT_RANKS] for name in ("top_ids", "lens_ids") if name in arrays]
    ids = sorted({t for each in predicted for t in np.unique(each).tolist()} - set(tokens))
    return {str(t): source.reader.str_tokens([t])[0] for t in ids}


def _warn_if_any_fails(verification: list[dict]) -> None:
    failed = [f["identity"] for f in verification if f["status"] == "fails"]
    if not failed:
        return
    frame, level = sys._getframe(1), 1
    while frame and frame.f_globals.get("__name__", "").startswith(
        "workbench."
    ):  # to the caller's line outside workbench
        frame, level = frame.f_back, level + 1
    warnings.warn(
        f"this trace FAILED to verify: {', '.join(failed)}. Its numbers are not those of the model; "
        f"see `trace.verification` for the layer and the size of the difference.",
        VerificationWarning,
        stacklevel=level,
    )
