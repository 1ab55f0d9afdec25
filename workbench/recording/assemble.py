"""From recorded arrays to the Trace: the manifest with all that is known besides numbers, and what verifies."""

import platform
import sys
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from workbench import hooks
from workbench.errors import VerificationWarning
from workbench.recording.source import Source, Text, text_of
from workbench.recording.verify import verify
from workbench.traces import Manifest, TensorInfo, Trace, TraceWriter, load
from workbench.traces.format import dtype_code

if TYPE_CHECKING:
    from workbench.recording.plan import Plan

VERSION = version("gpt-oss-workbench")  # read once: it takes a millisecond
TEXT_RANKS = 5  # the ranks of a prediction whose texts a trace keeps


def assemble(
    source: Source,
    plan: "Plan",
    tokens: Sequence[int],
    arrays: Mapping[str, np.ndarray],
    *,
    prompt_length: int,
    origin: Mapping[str, str] | str = "forward",
    notes: Sequence[str] = (),
    writer: TraceWriter | None = None,
    status: str = "complete",
    **more: Any,
) -> Trace:
    """The verified Trace of arrays that were recorded.

    Args:
        source: the model that ran.
        plan: what was recorded.
        tokens: the text.
        arrays: by full name; with a `writer`, those that it does not have yet.
        prompt_length: how many of the tokens were given, not generated.
        origin: when the arrays were seen ("forward", "live", "replay"), of all or by name.
        notes: more notes than the plan's.
        writer: where arrays were written while they were recorded. The trace then reads them back, and is verified on
            what was written.
        status: "partial" for an interrupted run: it ends at once, and its probe is left to the one that continues it.
        more: the manifest's entries on how the text was generated.

    Returns:
        The Trace. It warns (VerificationWarning) if an identity fails.
    """
    origins = {name: origin if isinstance(origin, str) else origin[name] for name in arrays}
    if derived := source.derived:
        origins |= {name: "derived" for name in arrays if name in derived or hooks.point_of(name) in derived}
    table = {name: TensorInfo(dtype_code(a.dtype), a.shape, hooks.axes(name), origins[name]) for name, a in arrays.items()}
    if writer:
        for each in sorted(set(origins.values())):
            writer.append({name: a for name, a in arrays.items() if origins[name] == each}, source=each)
        arrays = writer.so_far()
        table = arrays.manifest.tensors
    manifest = replace(
        draft(source, tokens, prompt_length, plan.words),
        tensors=table,
        edits=edits(source),
        omitted=list(plan.omitted),
        notes=[*plan.notes, *notes],
        vocab_text=predicted_texts(source, tokens, arrays),
        status=status,
        **more,
    )
    found = verify(source, Trace(manifest, arrays))
    _warn_if_it_fails(found)
    manifest = replace(manifest, verification=found)
    return load(writer.commit(manifest)) if writer else Trace(manifest, arrays)


def draft(
    source: Source, tokens: Sequence[int], prompt_length: int, words: Sequence[str], text: Text | None = None
) -> Manifest:
    """The manifest without tensors and edits: which model, which text, computed how."""
    text = text or text_of(source, tokens)
    return Manifest(
        model=source.identity(),
        tokens=list(tokens),
        str_tokens=text.str_tokens,
        spans=text.spans,
        prompt_length=prompt_length,
        record=list(words),
        numerics=numerics(source),
    )


def edits(source: Source) -> list[dict[str, Any]]:
    """For the manifest: each edit, how often it fired in this run, and how much it changed."""
    return [e.describe() | {"points": sorted(e.points)} | e.tally.to_manifest() for e in source.edits]


def numerics(source: Source) -> dict[str, Any]:
    """What the numbers depend on besides weights and tokens."""
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
    """The texts of the likeliest next tokens, so that a trace can be read without a tokenizer."""
    if source.reader is None:
        return {}
    predicted = [arrays[name][..., :TEXT_RANKS].ravel() for name in ("top_ids", "lens_ids") if name in arrays]
    ids = sorted({int(t) for t in np.concatenate(predicted)} - set(tokens))
    return {str(t): source.reader.str_tokens([t])[0] for t in ids}


def _warn_if_it_fails(found: list[dict]) -> None:
    failed = [f["identity"] for f in found if f["status"] == "fails"]
    if not failed:
        return
    frame, level = sys._getframe(1), 1
    while frame and frame.f_globals.get("__name__", "").startswith("workbench."):  # to the line that called us
        frame, level = frame.f_back, level + 1
    warnings.warn(
        f"this trace FAILED to verify: {', '.join(failed)}. Its numbers are not those of the model; "
        f"`trace.verification` says where and by how much.",
        VerificationWarning,
        stacklevel=level,
    )
