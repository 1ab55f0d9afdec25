"""The manifest: everything in a trace besides its arrays. This module opens no files and holds no arrays.

A manifest is checked when it is made, so every manifest can be written and read back.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from datetime import UTC, datetime
from hashlib import sha256
from typing import Any, NamedTuple

from workbench import hooks
from workbench.errors import ArgumentError, TraceCorrupt
from workbench.text import shown, visible
from workbench.traces import authorship
from workbench.traces.authorship import Stretch, checked_written
from workbench.traces.calls import FIELDS as CALL_FIELDS
from workbench.traces.calls import TIMES, Call, call_from_json, checked_calls, first_calls
from workbench.traces.canonical_json import canonical
from workbench.traces.consistency import check_spans, check_tensors, check_tokens
from workbench.traces.fields import CHECKS, as_dict, check_keys, checked_span, list_of, plain, require
from workbench.traces.format import check_name, check_shape
from workbench.traces.schema import OLDER_SCHEMAS, SCHEMA, version_error
from workbench.traces.spans import Span
from workbench.traces.tensor_parts import joined_shape

BITS = ("dtype", "arithmetic")  # the numerics that determine the bits of a run, and so are part of its id
PORTABLE = ("fixed order 1", "avx512-bf16")  # arithmetic whose bits are independent of threads and versions
SOURCES = ("live", "replay", "forward", "derived")
PART = re.compile(r"part-[0-9]{5}\.safetensors")
_HASH = re.compile(r"[0-9a-f]{64}")
_AXIS = re.compile(r"[a-z][a-z0-9_]{0,31}")
_SPAN = [f.name for f in fields(Span)]


class Chunk(NamedTuple):
    """The part of a tensor that one file of the trace holds."""

    file: str  # "part-00000.safetensors"
    shape: tuple[int, ...]
    sha256: str  # of its bytes


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """Dtype, shape, axes and origin of a tensor.

    `source` is "forward" (one pass over known tokens), "live" (while generating), "replay" (a pass over the generated
    tokens afterwards) or "derived" (not exposed by another library's run, but computed from what it exposes).
    `chunks` is empty for a trace that is only in memory.

    >>> TensorInfo("BF16", (74, 128), ("pos", "d_model"), "forward").nbytes
    18944
    """

    dtype: str  # the safetensors dtype code
    shape: tuple[int, ...]
    axes: tuple[str, ...]
    source: str = "forward"
    chunks: tuple[Chunk, ...] = ()

    def __post_init__(self) -> None:
        _set(self, shape=_ints(self.shape), axes=tuple(self.axes))
        _set(self, chunks=tuple(Chunk(file, _ints(shape), digest) for file, shape, digest in self.chunks))
        check_shape(self.dtype, self.shape)
        if len(self.axes) != len(self.shape):
            raise ArgumentError(f"a tensor with {len(self.shape)} axes has {len(self.axes)} axis names")
        require(len(set(self.axes)) == len(self.axes), "an axis occurs twice")
        for axis in self.axes:
            if not (isinstance(axis, str) and _AXIS.fullmatch(axis)):
                raise ArgumentError(f"{shown(axis)} is not the name of an axis")
        if self.source not in SOURCES:
            raise ArgumentError(f"source must be one of {', '.join(SOURCES)}, got {shown(self.source)}")
        for chunk in self.chunks:
            check_shape(self.dtype, chunk.shape)
            if not (isinstance(chunk.file, str) and PART.fullmatch(chunk.file)):
                raise ArgumentError(f"{shown(chunk.file)} is not the name of a part file")
            if not (isinstance(chunk.sha256, str) and _HASH.fullmatch(chunk.sha256)):
                raise ArgumentError(f"{shown(chunk.sha256)} is not a sha256")
            require(len(chunk.shape) == len(self.shape), "a chunk has a different number of axes than its tensor")
        if self.chunks:
            require(len({chunk.file for chunk in self.chunks}) == len(self.chunks), "a part occurs twice")
            whole = joined_shape(self.axes, [chunk.shape for chunk in self.chunks])
            if whole != self.shape:
                raise ArgumentError(f"the chunks add up to the shape {list(whole)}, not {list(self.shape)}")

    @property
    def nbytes(self) -> int:
        return check_shape(self.dtype, self.shape)

    def to_json(self) -> dict[str, Any]:
        chunks = [[chunk.file, list(chunk.shape), chunk.sha256] for chunk in self.chunks]
        return {
            "dtype": self.dtype,
            "shape": list(self.shape),
            "axes": list(self.axes),
            "source": self.source,
            "chunks": chunks,
        }


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Manifest:
    """The description of one run: model, tokens, settings, and a table of the recorded tensors.

    The fields are copied and checked here, so every Manifest can be written. Do not change the lists and dicts inside;
    use `dataclasses.replace`. Numpy numbers and tuples become Python numbers and lists. A `max_error` that is NaN or
    infinite becomes None, and `reason` gives the number.

    >>> model = {"name": "pocket", "format": "hf-bf16", "weights_digest": "d1", "tokenizer_digest": None}
    >>> model["config"] = {"n_layers": 4}
    >>> Manifest(model=model, tokens=[5, 7], str_tokens=["a", "b"], written=[(0, 2, "prompt")]).id
    'e7f34a349d649cbe8a02033b17ef2cfa'

    Raises ArgumentError for a field of the wrong type or one that contradicts another.
    """

    model: dict[str, Any]  # name, format, weights_digest, tokenizer_digest, config; adapter, if one was in force
    tokens: list[int]
    str_tokens: list[str]  # the text of every token
    written: list[Stretch]  # who wrote which tokens: covers all positions, in order
    schema: int = SCHEMA
    status: str = "complete"  # or "partial"
    created: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))
    spans: list[Span] = field(default_factory=list)
    record: list[str] = field(default_factory=list)  # the requested presets and hook points
    edits: list[dict[str, Any]] = field(default_factory=list)  # each has "identity"
    generation: dict[str, Any] | None = None  # max_tokens, temperature, top_p, seed, stop, finish_reason
    numerics: dict[str, Any] = field(default_factory=dict)  # dtype, arithmetic; device, kernels, threads, versions
    replayed_routing: dict[str, int] | None = None  # {"compared", "different"}: expert choices, live against replay
    verification: list[dict[str, Any]] = field(default_factory=list)  # identity, status, max_error, tolerance, reason
    omitted: list[str] = field(default_factory=list)  # left out to fit the budget
    notes: list[str] = field(default_factory=list)
    vocab_text: dict[str, str] = field(default_factory=dict)  # token id -> text, of tokens that were only predicted
    calls: list[Call] = field(default_factory=list)  # to tools, by the model in this run
    follows: str | None = None  # the id of the trace that this one continues
    took: dict[str, Any] | None = None  # seconds, phases, … of the run; None if they were not measured
    tensors: dict[str, TensorInfo] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if type(self.schema) is int and self.schema in OLDER_SCHEMAS:  # from a pickle
            raise version_error(self.schema)
        for name, check in CHECKS.items():
            _set(self, **{name: check(plain(getattr(self, name), name), name)})
        count = len(self.tokens)
        require(self.schema == SCHEMA, f"schema must be {SCHEMA} in this version of workbench, got {self.schema}")
        require(len(self.str_tokens) == count, f"str_tokens has {len(self.str_tokens)} texts for {count} tokens")
        _check_number_of_spans(self.spans, self.tokens)
        _set(self, spans=[checked_span(span, count) for span in self.spans])
        check_spans(self.spans)
        _set(self, written=checked_written(plain(self.written, "written"), count, self.spans))
        _set(self, calls=checked_calls(self.calls, self.written))
        _set(self, tensors=dict(self.tensors))
        for name, info in self.tensors.items():
            check_name(name)
            require(isinstance(info, TensorInfo), f"tensors[{name!r}] is not a TensorInfo")
        config = self.model["config"]
        check_tokens(self.tokens, config)
        check_tensors(self.tensors, count, config, self.edits)

    def __repr__(self) -> str:
        return f"<Manifest {self.id} of {visible(self.model['name'])}: {len(self.tokens)} tokens, {self.status}>"

    @property
    def prompt_length(self) -> int:
        """The number of tokens of the prompt, which is the first stretch of `written`; 0 if that is not the prompt."""
        return authorship.prompt_length(self.written)

    def spec(self) -> dict[str, Any]:
        """The fields that identify the run: two runs with the same spec have the same numbers.

        Tokens that the model generated are not in it, because they follow from the rest. Those that tools put in are:
        `put_in` has [position, token ids, who] of each. Of the numerics it has only dtype and arithmetic. With the same
        arithmetic, processor, threads and versions change no bit.
        """
        generation = self.generation and {k: v for k, v in self.generation.items() if k != "finish_reason"}
        return {
            "model": {key: self.model[key] for key in ("weights_digest", "tokenizer_digest")},
            "tokens": self.tokens if generation is None else self.tokens[: self.prompt_length],
            "put_in": authorship.put_in(self.written, self.tokens),
            "record": self.record,
            "edits": [edit["identity"] for edit in self.edits],
            "generation": generation,
            "numerics": self._bits(),
        }

    def _bits(self) -> dict[str, Any]:
        return {key: self.numerics.get(key) for key in BITS}

    @property
    def id(self) -> str:
        """32 hex digits: the sha256 of the spec."""
        return sha256(b"workbench-trace-1\0" + canonical(self.spec())).hexdigest()[:32]

    @property
    def content_hash(self) -> str:
        """64 hex digits: the sha256 of `content()`. It depends on how the run was split into parts."""
        return sha256(canonical(self.content())).hexdigest()

    def content(self) -> dict[str, Any]:
        """The manifest as JSON without what depends on the machine.

        That is `created` and `took`, the times of calls, when the model was verified here, the numerics that are not in
        the id, and the errors of the identities (numpy's BLAS).
        """
        checks = [[line[key] for key in ("identity", "status", "tolerance")] for line in self.verification]
        model = {key: value for key, value in self.model.items() if key != "verified"}
        content = self.to_json() | {"model": model, "numerics": self._bits(), "verification": checks}
        content["calls"] = [{key: call[key] for key in call if key not in TIMES} for call in content["calls"]]
        del content["created"], content["took"]
        return content

    def to_json(self) -> dict[str, Any]:
        """Plain dicts, lists and finite numbers; `Manifest.from_json` gives the same manifest back."""
        data = {name: getattr(self, name) for name in CHECKS}
        data["spans"] = [{name: getattr(span, name) for name in _SPAN} for span in self.spans]
        data["tensors"] = {name: info.to_json() for name, info in self.tensors.items()}
        data["written"] = [list(stretch) for stretch in self.written]
        data["calls"] = [call.to_json() for call in self.calls]
        return data

    @classmethod
    def from_json(cls, data: object) -> "Manifest":
        """The manifest from its JSON value, as `to_json` gives it.

        Raises TraceVersion for another schema; TraceCorrupt for an unknown or missing key, a wrong type, or fields
        that contradict each other; TraceUnsafe for tensors with invalid names or sizes over the limits.
        """
        if not isinstance(data, dict) or type(data.get("schema")) is not int:
            raise TraceCorrupt("the manifest is not a JSON object with a schema number")
        if data["schema"] != SCHEMA:
            raise version_error(data["schema"])
        try:
            check_keys(data, _FIELDS, "the manifest")
            _check_number_of_spans(data["spans"], data["tokens"])
            for span in list_of(dict)(data["spans"], "spans"):
                check_keys(span, _SPAN, "a span")
            for name, info in as_dict(data["tensors"], "tensors").items():
                check_keys(info, [f.name for f in fields(TensorInfo)], f"tensors[{shown(name)}]")
                for key in ("shape", "axes", "chunks"):
                    if not isinstance(info[key], list):
                        raise ArgumentError(f"tensors[{shown(name)}].{key} is not a list")
                for chunk in info["chunks"]:
                    require(isinstance(chunk, list) and len(chunk) == 3, "a chunk is not [part, shape, sha256]")
                    require(isinstance(chunk[1], list), "the shape of a chunk is not a list")
            require(isinstance(data["written"], list), "written is not a list")
            for call in list_of(dict)(data["calls"], "calls"):
                check_keys(call, CALL_FIELDS, "a call")
            spans = [Span(**span) for span in data["spans"]]
            calls = [call_from_json(call) for call in data["calls"]]
            tensors = {name: TensorInfo(**info) for name, info in data["tensors"].items()}
            return cls(**data | {"spans": spans, "calls": calls, "tensors": tensors})
        except (ValueError, TypeError, RecursionError) as error:
            raise TraceCorrupt(f"the manifest does not describe a trace: {str(error)[:300]}") from None


def first_positions(manifest: Manifest, count: int) -> Manifest:
    """The manifest of the first `count` tokens, without arrays; messages are cut there, and then not complete."""
    if count >= len(manifest.tokens):
        return manifest
    spans = [
        replace(
            span,
            stop=min(span.stop, count),
            content_start=min(span.content_start, count),
            content_stop=min(span.content_stop, count),
            complete=span.complete and span.stop <= count,
        )
        for span in manifest.spans
        if span.start < count
    ]
    return replace(
        manifest,
        tokens=manifest.tokens[:count],
        str_tokens=manifest.str_tokens[:count],
        spans=spans,
        written=authorship.first_stretches(manifest.written, count),
        calls=first_calls(manifest.calls, count),
        tensors={},
    )


def bit_determining(numerics: Mapping[str, Any]) -> dict[str, Any]:
    """The numerics that determine the bits of a run: dtype and arithmetic; all if the arithmetic is not portable.

    >>> bit_determining({"dtype": "float32", "arithmetic": "fixed order 1", "threads": 2})
    {'dtype': 'float32', 'arithmetic': 'fixed order 1'}
    >>> bit_determining({"dtype": "float32", "arithmetic": "torch", "threads": 2})["threads"]
    2
    """
    portable = numerics.get("arithmetic") in PORTABLE
    return {key: value for key, value in numerics.items() if key in BITS or not portable}


def _check_number_of_spans(spans: Any, tokens: Any) -> None:
    """Raises ArgumentError for more messages than tokens: before each of them is looked at, which takes long."""
    if isinstance(spans, list) and isinstance(tokens, list) and len(spans) > len(tokens):
        raise ArgumentError(
            f"there are {len(spans)} messages, which must be in order and have tokens of their own, "
            f"and only {len(tokens)} tokens"
        )


def tensor_table(
    known: Mapping[str, TensorInfo], tensors: Mapping[str, tuple[str, Sequence[int]]], *, source: str | None = None
) -> dict[str, TensorInfo]:
    """The tensor table of `tensors` (name -> (dtype code, shape)), before anything is written.

    Axes and source come from `known`, a manifest's own table, for the names in it. For others, the axes are those of
    the hook point or summary, and the source is "forward".

    Raises HookNameError for a name that is in neither, ArgumentError if a shape does not have these axes or if `known`
    has a tensor that is not in `tensors`.
    """
    absent = sorted(set(known) - set(tensors))
    if absent:
        raise ArgumentError(f"the manifest describes {absent[0]!r}, but there is no array of that name")
    table = {}
    for name, (dtype, shape) in tensors.items():
        info = known.get(check_name(name))
        axes = info.axes if info else hooks.axes(name)
        try:
            table[name] = TensorInfo(dtype, tuple(shape), axes, source or (info.source if info else "forward"))
        except ValueError as error:
            raise ArgumentError(f"{name!r} of shape {list(shape)}, with the axes ({' '.join(axes)}): {error}") from None
    return table


def _set(frozen: object, **values: Any) -> None:
    for name, value in values.items():
        object.__setattr__(frozen, name, value)


def _ints(shape: Sequence[Any]) -> tuple[int, ...]:
    if not (isinstance(shape, Sequence) and all(type(n) is int for n in shape)):
        raise ArgumentError(f"{shown(shape)} is not a shape")
    return tuple(shape)


_FIELDS = [f.name for f in fields(Manifest)]
