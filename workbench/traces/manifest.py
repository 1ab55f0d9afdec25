"""The manifest: everything in a trace besides its arrays. This module opens no files and holds no arrays.

A manifest is checked when it is made, so every manifest can be written and read back.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from datetime import UTC, datetime
from hashlib import sha256
from math import isfinite
from typing import Any, NamedTuple

from workbench import hooks
from workbench.errors import ArgumentError, TraceCorrupt
from workbench.text import visible
from workbench.traces.canonical_json import canonical
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
        _require(len(set(self.axes)) == len(self.axes), "an axis occurs twice")
        for axis in self.axes:
            if not (isinstance(axis, str) and _AXIS.fullmatch(axis)):
                raise ArgumentError(f"{_show(axis)} is not the name of an axis")
        if self.source not in SOURCES:
            raise ArgumentError(f"source must be one of {', '.join(SOURCES)}, got {_show(self.source)}")
        for chunk in self.chunks:
            check_shape(self.dtype, chunk.shape)
            if not (isinstance(chunk.file, str) and PART.fullmatch(chunk.file)):
                raise ArgumentError(f"{_show(chunk.file)} is not the name of a part file")
            if not (isinstance(chunk.sha256, str) and _HASH.fullmatch(chunk.sha256)):
                raise ArgumentError(f"{_show(chunk.sha256)} is not a sha256")
            _require(len(chunk.shape) == len(self.shape), "a chunk has a different number of axes than its tensor")
        if self.chunks:
            _require(len({chunk.file for chunk in self.chunks}) == len(self.chunks), "a part occurs twice")
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
    >>> Manifest(model=model, tokens=[5, 7], str_tokens=["a", "b"], prompt_length=2).id
    'a2ab3e04a5686ef8f4f86ac254c5d2b5'

    Raises ArgumentError for a field of the wrong type or one that contradicts another.
    """

    model: dict[str, Any]  # name, format, weights_digest, tokenizer_digest, config; adapter, if one was in force
    tokens: list[int]
    str_tokens: list[str]  # the text of every token
    prompt_length: int  # tokens[:prompt_length] are the prompt, the rest were generated
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
    tensors: dict[str, TensorInfo] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if type(self.schema) is int and self.schema in OLDER_SCHEMAS:  # from a pickle
            raise version_error(self.schema)
        for name, check in _CHECKS.items():
            _set(self, **{name: check(_plain(getattr(self, name), name), name)})
        count = len(self.tokens)
        _require(self.schema == SCHEMA, f"schema must be {SCHEMA} in this version of workbench, got {self.schema}")
        _require(len(self.str_tokens) == count, f"str_tokens has {len(self.str_tokens)} texts for {count} tokens")
        _require(self.prompt_length <= count, f"prompt_length is {self.prompt_length}, but there are {count} tokens")
        _set(self, spans=[_span(span, count) for span in self.spans])
        _set(self, tensors=dict(self.tensors))
        for name, info in self.tensors.items():
            check_name(name)
            _require(isinstance(info, TensorInfo), f"tensors[{name!r}] is not a TensorInfo")

    def __repr__(self) -> str:
        return f"<Manifest {self.id} of {visible(self.model['name'])}: {len(self.tokens)} tokens, {self.status}>"

    def spec(self) -> dict[str, Any]:
        """The fields that identify the run: two runs with the same spec have the same numbers.

        Of the numerics it has only dtype and arithmetic. With the same arithmetic, processor, threads and versions
        change no bit.
        """
        generation = self.generation and {k: v for k, v in self.generation.items() if k != "finish_reason"}
        return {
            "model": {key: self.model[key] for key in ("weights_digest", "tokenizer_digest")},
            "tokens": self.tokens if generation is None else self.tokens[: self.prompt_length],
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

        That is `created`, the numerics that are not in the id, and the errors of the identities (numpy's BLAS).
        """
        checks = [[line[key] for key in ("identity", "status", "tolerance")] for line in self.verification]
        content = self.to_json() | {"numerics": self._bits(), "verification": checks}
        del content["created"]
        return content

    def to_json(self) -> dict[str, Any]:
        """Plain dicts, lists and finite numbers; `Manifest.from_json` gives the same manifest back."""
        plain = {name: getattr(self, name) for name in _CHECKS}
        plain["spans"] = [{name: getattr(span, name) for name in _SPAN} for span in self.spans]
        plain["tensors"] = {name: info.to_json() for name, info in self.tensors.items()}
        return plain

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
            _check_keys(data, _FIELDS, "the manifest")
            for span in _listed(dict)(data["spans"], "spans"):
                _check_keys(span, _SPAN, "a span")
            for name, info in _dict(data["tensors"], "tensors").items():
                _check_keys(info, [f.name for f in fields(TensorInfo)], f"tensors[{_show(name)}]")
                for key in ("shape", "axes", "chunks"):
                    if not isinstance(info[key], list):
                        raise ArgumentError(f"tensors[{_show(name)}].{key} is not a list")
                for chunk in info["chunks"]:
                    _require(isinstance(chunk, list) and len(chunk) == 3, "a chunk is not [part, shape, sha256]")
                    _require(isinstance(chunk[1], list), "the shape of a chunk is not a list")
            spans = [Span(**span) for span in data["spans"]]
            tensors = {name: TensorInfo(**info) for name, info in data["tensors"].items()}
            return cls(**data | {"spans": spans, "tensors": tensors})
        except (ValueError, TypeError, RecursionError) as error:
            raise TraceCorrupt(f"the manifest does not describe a trace: {str(error)[:300]}") from None


def bit_determining(numerics: Mapping[str, Any]) -> dict[str, Any]:
    """The numerics that determine the bits of a run: dtype and arithmetic; all if the arithmetic is not portable.

    >>> bit_determining({"dtype": "float32", "arithmetic": "fixed order 1", "threads": 2})
    {'dtype': 'float32', 'arithmetic': 'fixed order 1'}
    >>> bit_determining({"dtype": "float32", "arithmetic": "torch", "threads": 2})["threads"]
    2
    """
    portable = numerics.get("arithmetic") in PORTABLE
    return {key: value for key, value in numerics.items() if key in BITS or not portable}


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


# The checks of each field of a manifest. A check takes a plain value and the name of the field, and returns the value
# or raises ArgumentError.

Check = Callable[[Any, str], Any]


def _require(condition: object, message: str) -> None:
    """Raises ArgumentError unless `condition` holds. The message is always built, so it must be cheap."""
    if not condition:
        raise ArgumentError(message)


def _show(value: object) -> str:
    return visible(repr(value)[:60])


def _set(frozen: object, **values: Any) -> None:
    for name, value in values.items():
        object.__setattr__(frozen, name, value)


def _ints(shape: Sequence[Any]) -> tuple[int, ...]:
    if not (isinstance(shape, Sequence) and all(type(n) is int for n in shape)):
        raise ArgumentError(f"{_show(shape)} is not a shape")
    return tuple(shape)


def _check_keys(value: Any, expected: Any, what: str) -> None:
    _require(isinstance(value, dict), f"{what} is not a JSON object")
    missing, unknown = sorted(set(expected) - set(value)), sorted(set(value) - set(expected))
    _require(not missing, f"{what} lacks {', '.join(missing)}")
    if unknown:
        raise ArgumentError(f"{what} has the unknown key {_show(unknown[0])}")


def _plain(value: Any, what: str) -> Any:
    """A copy of the value as JSON returns it: without numpy values, tuples or lone surrogates."""
    if isinstance(value, str):
        return value if value.isascii() else value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, Mapping):
        _require(all(isinstance(key, str) for key in value), f"{what} has a key that is not a string")
        return {_plain(key, what): _plain(item, what) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item, what) for item in value]
    if hasattr(value, "tolist"):  # a numpy number or array
        return _plain(value.tolist(), what)
    if isinstance(value, float):
        return value
    raise ArgumentError(f"{what} cannot hold {_show(value)}")


def _of(*kinds: type) -> Check:
    def check(value: Any, what: str) -> Any:
        names = " or ".join(kind.__name__ for kind in kinds)
        if type(value) not in kinds:
            raise ArgumentError(f"{what} is {_show(value)}, not {names}")
        return value

    return check


def _count(value: Any, what: str) -> int:
    if not (type(value) is int and 0 <= value < 2**53):
        raise ArgumentError(f"{what} is {_show(value)}, not a whole number of at least 0")
    return value


def _number(value: Any, what: str) -> float:
    """Always a float: JSON would write 0 and 0.0 differently, and one run would have two ids."""
    finite = isfinite(value) if type(value) is float else type(value) is int and abs(value) < 2**53
    if not finite:
        raise ArgumentError(f"{what} is {_show(value)}, not a finite number")
    return float(value)


def _or_none(check: Check) -> Check:
    return lambda value, what: None if value is None else check(value, what)


def _listed(kind: type | Check) -> Check:
    def check(value: Any, what: str) -> list:
        if not isinstance(value, list):
            raise ArgumentError(f"{what} is {_show(value)}, not a list")
        if isinstance(kind, type):
            _require(all(type(item) is kind for item in value), f"{what} may hold only {kind.__name__}")
            return value
        return [kind(item, f"{what}[{index}]") for index, item in enumerate(value)]

    return check


def _dict(value: Any, what: str) -> dict:
    if not isinstance(value, dict):
        raise ArgumentError(f"{what} is {_show(value)}, not a dict")
    return value


def _free(value: Any, what: str) -> Any:
    """Anything that JSON can hold without a NaN or an infinity."""
    for item in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        _free(item, what)
    _require(not isinstance(value, float) or isfinite(value), f"{what} holds {value}, which JSON cannot")
    return value


def _free_dict(value: Any, what: str) -> dict:
    return _free(_dict(value, what), what)


def _record(**checks: Check) -> Check:
    """A dict with exactly these keys."""

    def check(value: Any, what: str) -> dict:
        _check_keys(value, checks, what)
        return {key: checks[key](value[key], f"{what}[{key!r}]") for key in checks}

    return check


def _one_of(*allowed: str) -> Check:
    def check(value: Any, what: str) -> str:
        if value not in allowed:
            raise ArgumentError(f"{what} is {_show(value)}, not {' or '.join(allowed)}")
        return value

    return check


def _config(value: Any, what: str) -> dict:
    _require("n_layers" in _free_dict(value, what), f"{what} lacks n_layers")
    _count(value["n_layers"], f"{what}['n_layers']")
    _require(value["n_layers"] <= 10_000, f"{what}['n_layers'] must be at most 10,000, got {value['n_layers']}")
    return value


def _model(value: Any, what: str) -> dict:
    """The model entry. It has the key "adapter" only if an adapter is in force."""
    return (_ADAPTED_MODEL if isinstance(value, dict) and "adapter" in value else _MODEL)(value, what)


def _edit(value: Any, what: str) -> dict:
    _require(type(_free_dict(value, what).get("identity")) is str, f"{what} lacks the string 'identity'")
    return value


def _identity(value: Any, what: str) -> dict:
    """One line of the verification; a `max_error` that JSON cannot hold moves into `reason`."""
    if isinstance(value, dict) and isinstance(value.get("max_error"), float) and not isfinite(value["max_error"]):
        reason = f"{value.get('reason', '')} (the worst difference was {value['max_error']})".strip()
        value = value | {"max_error": None, "reason": reason}
    return _VERIFICATION(value, what)


def _tokens(value: Any, what: str) -> list[int]:
    _listed(int)(value, what)
    _require(all(0 <= token < 2**31 for token in value), f"{what} contains a number that is not a token id")
    return value


def _vocab_text(value: Any, what: str) -> dict:
    for token, text in _dict(value, what).items():
        if not (token.isascii() and token.isdigit() and len(token) < 10):
            raise ArgumentError(f"{what} has the key {_show(token)}, which is not a token id")
        if not isinstance(text, str):
            raise ArgumentError(f"{what}[{token}] is {_show(text)}, not a text")
    return value


def _stop(value: Any, what: str) -> list:
    if not (isinstance(value, list) and all(type(v) in (int, str) for v in value)):
        raise ArgumentError(f"{what} is {_show(value)}, not a list of token ids and strings")
    return value


def _span(span: Any, count: int) -> Span:
    if not isinstance(span, Span):
        raise ArgumentError(f"{_show(span)} is not a Span")
    for name in ("start", "stop", "content_start", "content_stop"):
        _count(getattr(span, name), f"span.{name}")
    ordered = span.start <= span.content_start <= span.content_stop <= span.stop <= count
    _require(ordered, f"the span {span.start}:{span.stop} is not within the {count} tokens")
    _require(type(span.role) is str and type(span.complete) is bool, "a span lacks its role or `complete`")
    labels = {name: getattr(span, name) for name in ("role", "channel", "recipient", "author", "content_type")}
    for name, text in labels.items():
        if not (text is None or type(text) is str):
            raise ArgumentError(f"span.{name} is {_show(text)}, not text")
    return replace(span, **{name: _plain(text, name) for name, text in labels.items()})


_VERIFICATION = _record(
    identity=_of(str),
    status=_one_of("holds", "fails", "not checked"),
    max_error=_or_none(_number),
    tolerance=_or_none(_number),
    reason=_of(str),
)
_OF_MODEL: dict[str, Check] = {
    "name": _of(str),
    "format": _of(str),
    "weights_digest": _of(str),
    "tokenizer_digest": _of(str, type(None)),
    "config": _config,
}
_MODEL = _record(**_OF_MODEL)
_ADAPTED_MODEL = _record(**_OF_MODEL, adapter=_record(name=_of(str), digest=_of(str), scale=_number, base=_of(str)))
_CHECKS: dict[str, Check] = {
    "schema": _of(int),
    "status": _one_of("complete", "partial"),
    "created": _of(str),
    "model": _model,
    "tokens": _tokens,
    "str_tokens": _listed(str),
    "prompt_length": _count,
    "record": _listed(str),
    "edits": _listed(_edit),
    "generation": _or_none(
        _record(
            max_tokens=_or_none(_count),
            temperature=_or_none(_number),
            top_p=_or_none(_number),
            seed=_of(int, type(None)),
            stop=_or_none(_stop),
            finish_reason=_of(str, type(None)),
        )
    ),
    "numerics": _free_dict,
    "replayed_routing": _or_none(_record(compared=_count, different=_count)),
    "verification": _listed(_identity),
    "omitted": _listed(str),
    "notes": _listed(str),
    "vocab_text": _vocab_text,
}
_FIELDS = [f.name for f in fields(Manifest)]
