"""The checks of each field of a manifest: its type, its range, and that JSON can hold it.

A check takes a plain value and the name of the field, and returns the value or raises ArgumentError.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from math import isfinite
from typing import Any

from workbench.errors import ArgumentError
from workbench.text import shown
from workbench.traces.consistency import check_config
from workbench.traces.spans import Span

MAX_DEPTH = 32  # of lists and dicts in each other, in one field
MAX_INT = 2**64
# What a run spends its time on. "tools" is the wait for tools that the model called.
PHASES = ("prepare", "prefill", "decode", "forward", "tools", "replay", "verify", "write")
MAX_COUNTERS = 100  # of energy
TRACE_ID = re.compile(r"[0-9a-f]{32}")

Check = Callable[[Any, str], Any]


def require(condition: object, message: str) -> None:
    """Raises ArgumentError unless `condition` holds. The message is always built, so it must be cheap."""
    if not condition:
        raise ArgumentError(message)


def check_keys(value: Any, expected: Any, what: str) -> None:
    """Raises ArgumentError unless the value is a dict with exactly these keys."""
    require(isinstance(value, dict), f"{what} is not a JSON object")
    missing, unknown = sorted(set(expected) - set(value)), sorted(set(value) - set(expected))
    require(not missing, f"{what} lacks {', '.join(missing)}")
    if unknown:
        raise ArgumentError(f"{what} has the unknown key {shown(unknown[0])}")


def plain(value: Any, what: str, depth: int = 0) -> Any:
    """A copy of the value as JSON returns it: without numpy values, tuples or lone surrogates."""
    if depth > MAX_DEPTH:
        raise ArgumentError(f"{what} is nested more than {MAX_DEPTH} levels deep")
    if isinstance(value, str):
        return value if value.isascii() else value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, Mapping):
        require(all(isinstance(key, str) for key in value), f"{what} has a key that is not a string")
        return {plain(key, what): plain(item, what, depth + 1) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item, what, depth + 1) for item in value]
    if hasattr(value, "tolist"):  # a numpy number or array
        return plain(value.tolist(), what, depth)
    if isinstance(value, float):
        return value
    raise ArgumentError(f"{what} cannot hold {shown(value)}")


def _of(*kinds: type) -> Check:
    def check(value: Any, what: str) -> Any:
        names = " or ".join(kind.__name__ for kind in kinds)
        if type(value) not in kinds:
            raise ArgumentError(f"{what} is {shown(value)}, not {names}")
        return value

    return check


def _count(value: Any, what: str) -> int:
    if not (type(value) is int and 0 <= value < 2**53):
        raise ArgumentError(f"{what} is {shown(value)}, not a whole number of at least 0")
    return value


def _number(value: Any, what: str) -> float:
    """Always a float: JSON would write 0 and 0.0 differently, and one run would have two ids."""
    finite = isfinite(value) if type(value) is float else type(value) is int and abs(value) < 2**53
    if not finite:
        raise ArgumentError(f"{what} is {shown(value)}, not a finite number")
    return float(value)


def _or_none(check: Check) -> Check:
    return lambda value, what: None if value is None else check(value, what)


def list_of(kind: type | Check) -> Check:
    """The check of a list whose items have a type or pass a check."""

    def check(value: Any, what: str) -> list:
        if not isinstance(value, list):
            raise ArgumentError(f"{what} is {shown(value)}, not a list")
        if isinstance(kind, type):
            require(all(type(item) is kind for item in value), f"{what} may hold only {kind.__name__}")
            return value
        return [kind(item, f"{what}[{index}]") for index, item in enumerate(value)]

    return check


def as_dict(value: Any, what: str) -> dict:
    """The value, which must be a dict."""
    if not isinstance(value, dict):
        raise ArgumentError(f"{what} is {shown(value)}, not a dict")
    return value


def _free(value: Any, what: str) -> Any:
    """Anything that JSON can hold without a NaN or an infinity."""
    for item in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        _free(item, what)
    require(not isinstance(value, float) or isfinite(value), f"{what} holds {value}, which JSON cannot")
    if type(value) is int and abs(value) >= MAX_INT:
        raise ArgumentError(f"{what} holds a whole number of more than 64 bits")
    return value


def _free_dict(value: Any, what: str) -> dict:
    return _free(as_dict(value, what), what)


def _record(**checks: Check) -> Check:
    """A dict with exactly these keys."""

    def check(value: Any, what: str) -> dict:
        check_keys(value, checks, what)
        return {key: checks[key](value[key], f"{what}[{key!r}]") for key in checks}

    return check


def _one_of(*allowed: str) -> Check:
    def check(value: Any, what: str) -> str:
        if value not in allowed:
            raise ArgumentError(f"{what} is {shown(value)}, not {' or '.join(allowed)}")
        return value

    return check


def _config(value: Any, what: str) -> dict:
    check_config(_free_dict(value, what))
    return value


def _model(value: Any, what: str) -> dict:
    """The model entry. It has the key "adapter" only if an adapter is in force, "verified" only after verify_model."""
    present = value if isinstance(value, dict) else {}
    return _record(**_OF_MODEL, **{key: check for key, check in _OF_SOME_MODELS.items() if key in present})(value, what)


def _edit(value: Any, what: str) -> dict:
    require(type(_free_dict(value, what).get("identity")) is str, f"{what} lacks the string 'identity'")
    for key, check in _EDIT.items():
        if key in value:
            check(value[key], f"{what}[{key!r}]")
    return value


def _squared_norms(value: Any, what: str) -> list:
    norms = list_of(_at_least_0)(value, what)
    require(len(norms) == 2, f"{what} must be two numbers")
    return norms


def _numerics(value: Any, what: str) -> dict:
    dtype = _free_dict(value, what).get("dtype", "float32")
    _one_of("float64", "float32", "bfloat16", "float16")(dtype, f"{what}['dtype']")
    return value


def _replayed_routing(value: Any, what: str) -> dict:
    counts = _record(compared=_count, different=_count)(value, what)
    require(counts["different"] <= counts["compared"], f"{what} has more differences than comparisons")
    return counts


def _identity(value: Any, what: str) -> dict:
    """One line of the verification; a `max_error` that JSON cannot hold moves into `reason`."""
    if isinstance(value, dict) and isinstance(value.get("max_error"), float) and not isfinite(value["max_error"]):
        reason = f"{value.get('reason', '')} (the worst difference was {value['max_error']})".strip()
        value = value | {"max_error": None, "reason": reason}
    line = _VERIFICATION(value, what)
    error, tolerance = line["max_error"], line["tolerance"]
    if line["status"] == "holds" and error is not None and tolerance is not None and error > tolerance:
        raise ArgumentError(f"{what} holds, but its max_error {error} is above its tolerance {tolerance}")
    return line


def _tokens(value: Any, what: str) -> list[int]:
    list_of(int)(value, what)
    require(all(0 <= token < 2**31 for token in value), f"{what} contains a number that is not a token id")
    return value


def _vocab_text(value: Any, what: str) -> dict:
    for token, text in as_dict(value, what).items():
        if not (token.isascii() and token.isdigit() and len(token) < 10):
            raise ArgumentError(f"{what} has the key {shown(token)}, which is not a token id")
        if not isinstance(text, str):
            raise ArgumentError(f"{what}[{token}] is {shown(text)}, not a text")
    return value


def _trace_id(value: Any, what: str) -> str:
    if not (type(value) is str and TRACE_ID.fullmatch(value)):
        raise ArgumentError(f"{what} is {shown(value)}, not the id of a trace (32 hexadecimal digits)")
    return value


def _seed(value: Any, what: str) -> int:
    if not (type(value) is int and abs(value) < MAX_INT):
        raise ArgumentError(f"{what} is {shown(value)}, not a whole number of at most 64 bits")
    return value


def _at_least_0(value: Any, what: str) -> float:
    number = _number(value, what)
    if number < 0:
        raise ArgumentError(f"{what} is {shown(value)}; it must be at least 0")
    return number


def _share(value: Any, what: str) -> float:
    number = _number(value, what)
    if not 0 < number <= 1:
        raise ArgumentError(f"{what} is {shown(value)}; it must be above 0 and at most 1")
    return number


def _phases(value: Any, what: str) -> dict[str, float]:
    for phase in as_dict(value, what):
        _one_of(*PHASES)(phase, f"a key of {what}")
    return {phase: _at_least_0(seconds, f"{what}[{phase!r}]") for phase, seconds in value.items()}


def _energy(value: Any, what: str) -> dict[str, float]:
    require(0 < len(as_dict(value, what)) <= MAX_COUNTERS, f"{what} must be None or have 1 to {MAX_COUNTERS} counters")
    return {counter: _at_least_0(joules, f"{what}[{shown(counter)}]") for counter, joules in value.items()}


def _took(value: Any, what: str) -> dict:
    took = _TOOK(value, what)
    whole, total = took["seconds"], sum(took["phases"].values())
    if abs(total - whole) > 1e-6 * (1 + whole):
        raise ArgumentError(f"the phases of {what} add up to {total} seconds, not {whole}")
    first_token = took["first_token"]
    if first_token is not None and first_token > whole * (1 + 1e-6):
        raise ArgumentError(f"{what} has the first token after {first_token} of {whole} seconds")
    return took


def _stop(value: Any, what: str) -> list:
    if not (isinstance(value, list) and all(type(v) is str or (type(v) is int and 0 <= v < 2**31) for v in value)):
        raise ArgumentError(f"{what} is {shown(value)}, not a list of token ids and strings")
    return value


def checked_span(span: Any, count: int) -> Span:
    """The span, whose positions must be within `count` tokens, with plain texts."""
    if not isinstance(span, Span):
        raise ArgumentError(f"{shown(span)} is not a Span")
    for name in ("start", "stop", "content_start", "content_stop"):
        _count(getattr(span, name), f"span.{name}")
    ordered = span.start <= span.content_start <= span.content_stop <= span.stop <= count
    require(ordered, f"the span {span.start}:{span.stop} is not within the {count} tokens")
    require(type(span.role) is str and type(span.complete) is bool, "a span lacks its role or `complete`")
    labels = {name: getattr(span, name) for name in ("role", "channel", "recipient", "author", "content_type")}
    for name, text in labels.items():
        if not (text is None or type(text) is str):
            raise ArgumentError(f"span.{name} is {shown(text)}, not text")
    return replace(span, **{name: plain(text, name) for name, text in labels.items()})


_VERIFICATION = _record(
    identity=_of(str),
    status=_one_of("holds", "fails", "not checked"),
    max_error=_or_none(_at_least_0),
    tolerance=_or_none(_at_least_0),
    reason=_of(str),
)
_EDIT: dict[str, Check] = {  # the keys that `workbench.edits` writes; others may be there
    "glob": _of(str),
    "function": _of(str),
    "positions": _of(str, type(None)),
    "points": list_of(str),
    "n_calls": _count,
    "n_positions": _count,
    "n_changed_calls": _count,
    "relative_change": _at_least_0,
    "squared_norms": _squared_norms,
}
_OF_MODEL: dict[str, Check] = {
    "name": _of(str),
    "format": _of(str),
    "weights_digest": _of(str),
    "tokenizer_digest": _of(str, type(None)),
    "config": _config,
}
_OF_SOME_MODELS: dict[str, Check] = {
    "adapter": _record(name=_of(str), digest=_of(str), scale=_number, base=_of(str)),
    "verified": _record(date=_of(str), ok=_of(bool), workbench=_of(str)),
}
_TOOK = _record(
    seconds=_at_least_0,
    phases=_phases,
    first_token=_or_none(_at_least_0),
    n_prefilled=_count,
    n_decoded=_count,
    peak_memory=_or_none(_count),
    peak_device_memory=_or_none(_count),
    bytes_written=_count,
    energy=_or_none(_energy),
)
CHECKS: dict[str, Check] = {
    "schema": _of(int),
    "status": _one_of("complete", "partial"),
    "created": _of(str),
    "model": _model,
    "tokens": _tokens,
    "str_tokens": list_of(str),
    "follows": _or_none(_trace_id),
    "record": list_of(str),
    "edits": list_of(_edit),
    "generation": _or_none(
        _record(
            max_tokens=_or_none(_count),
            temperature=_or_none(_at_least_0),
            top_p=_or_none(_share),
            seed=_or_none(_seed),
            stop=_or_none(_stop),
            finish_reason=_of(str, type(None)),
        )
    ),
    "numerics": _numerics,
    "replayed_routing": _or_none(_replayed_routing),
    "verification": list_of(_identity),
    "omitted": list_of(str),
    "notes": list_of(str),
    "vocab_text": _vocab_text,
    "took": _or_none(_took),
}
