"""Taps: what the forward pass calls at each hook point. A tap may look at a value, replace it, or both."""

import functools
import hashlib
import inspect
import operator
import secrets
import types
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from workbench import hooks
from workbench.errors import EditError
from workbench.model.config import Config


class Tap:
    """Wants nothing, changes nothing. Values have a batch axis before the axes that `workbench.hooks` lists."""

    def wants(self, name: str) -> bool:
        """Whether to compute what exists only on request: patterns, scores, results by head, expert outputs."""
        return False

    def begin(self, start: int, n: int) -> None:
        """A pass over the absolute positions start : start + n is about to run."""

    def __call__(self, name: str, x: Tensor, offset: int = 0) -> Tensor:
        """The value to go on with. `offset`: where x begins within the pass, for points that come in pieces."""
        return x

    def pattern_rows(self, here: str) -> Callable[[Tensor, int, int], None] | None:
        """What to call with every block of the pattern: (batch head query key, its first query, its first key)."""
        return None


class Chain(Tap):
    """Several taps as one: each sees what the one before gave."""

    def __init__(self, *taps: Tap):
        self.taps = taps

    def wants(self, name: str) -> bool:
        return any(tap.wants(name) for tap in self.taps)

    def begin(self, start: int, n: int) -> None:
        for tap in self.taps:
            tap.begin(start, n)

    def __call__(self, name: str, x: Tensor, offset: int = 0) -> Tensor:
        for tap in self.taps:
            x = tap(name, x, offset)
        return x

    def pattern_rows(self, here: str) -> Callable[[Tensor, int, int], None] | None:
        seers = [see for tap in self.taps if (see := tap.pattern_rows(here))]

        def all_see(pattern: Tensor, first_query: int, first_key: int) -> None:
            for see in seers:
                see(pattern, first_query, first_key)

        return all_see if seers else None


class Recorder(Tap):
    """Keeps the values at the wanted hook points, one piece per pass, on `device`.

    The forward pass never writes into a value that a tap has seen, so on the same device nothing is copied.
    With `keep_grad`, values stay in the graph and their `.grad` is there after a backward pass.
    """

    def __init__(self, wanted: Iterable[str], device: str | torch.device = "cpu", keep_grad: bool = False):
        self.wanted = frozenset(wanted)
        self.device = torch.device(device)
        self.keep_grad = keep_grad
        self.seen: dict[str, list[Tensor]] = {}

    def wants(self, name: str) -> bool:
        return name in self.wanted

    def __call__(self, name: str, x: Tensor, offset: int = 0) -> Tensor:
        if name in self.wanted:
            if self.keep_grad:
                x = x.view_as(x)  # a tensor of its own: the pass goes on from it, also where it had not used x
                if x.requires_grad:
                    x.retain_grad()
            self.seen.setdefault(name, []).append(x if self.keep_grad else x.detach().to(self.device))
        return x

    def __getitem__(self, name: str) -> Tensor:
        """All pieces of one hook point, joined along positions: batch and the axes of the hook point."""
        pieces = self.seen[name]
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces, position_axis(name))


def position_axis(name: str) -> int:
    """The axis of a tapped value (batch first) that counts positions."""
    known = hooks.axes(name)
    return 1 + known.index("query" if "query" in known else "pos")


@dataclass(frozen=True, slots=True)
class Hook:
    """Where an edit is called: what its function gets as `hook`."""

    name: str
    layer: int | None
    positions: range  # absolute; the queries, where a value has queries and keys
    n_active: int  # experts that run for a token


@dataclass(slots=True)
class Tally:
    """What an edit did in one run: calls, positions met, calls that changed a bit, and the size of the change."""

    fired: int = 0
    positions: int = 0
    changed: int = 0
    before: float = 0.0  # sums of squares over entries that were finite before and after
    difference: float = 0.0

    def add(self, n: int, x: Tensor, y: Tensor | None) -> None:
        self.fired, self.positions = self.fired + 1, self.positions + n
        if y is not None:
            self.changed += 1
            a, b = x.detach().double(), y.detach().double()
            finite = a.isfinite() & b.isfinite()
            self.before += float(a[finite].square().sum())
            self.difference += float((b - a)[finite].square().sum())

    def told(self) -> dict:
        """For the manifest; `Tally.again` takes it back.

        `relative_change` is the norm of the change over the norm of what was there, over the calls that changed
        something and the entries that stayed finite; `squares` are the sums that it comes from.
        """
        return {
            "fired": self.fired,
            "positions_met": self.positions,
            "changed": self.changed,
            "relative_change": (self.difference / self.before) ** 0.5 if self.before > 0 else 0.0,
            "squares": [self.before, self.difference],
        }

    @classmethod
    def again(cls, told: Mapping[str, Any]) -> "Tally":
        return cls(told["fired"], told["positions_met"], told["changed"], *told["squares"])


class Edit(Tap):
    """Replaces the value at every hook point in `points` by what `fn` makes of it.

    `fn(x)`, `fn(x, hook)` or `fn(x, *, hook)` gets its own copy and may write into it; it returns a tensor of the same
    shape. If that is bit for bit what was there, the run goes on as if nothing had been edited. With `positions`, only
    those absolute positions take the new value.

    Raises EditError for a function that cannot be called so.
    """

    def __init__(self, glob: str, fn: Callable, points: Collection[str], config: Config, positions=None):
        self.glob, self.fn, self.points, self.config = glob, fn, frozenset(points), config
        self.positions = _positions(positions)
        self.tally = Tally()  # of the run under way, or of the last one
        self._fired = [0]  # ever; shared with copies, which run on other threads
        self._takes_hook = _takes_hook(fn)
        self._start = 0

    @property
    def fired(self) -> int:
        """How often it was called, in all runs."""
        return self._fired[0]

    def wants(self, name: str) -> bool:
        return name in self.points

    def begin(self, start: int, n: int) -> None:
        self._start = start

    def __call__(self, name: str, x: Tensor, offset: int = 0) -> Tensor:
        if name not in self.points:
            return x
        axis = position_axis(name)
        start = self._start + offset
        at = range(start, start + x.shape[axis])
        here = range(len(at)) if self.positions is None else [i for i, p in enumerate(at) if self.positions(p)]
        if not here:
            return x
        given = x.clone()
        hook = Hook(name, hooks.layer_of(name), at, self.config.n_active)
        y = self._new_value(given, hook)
        y = self._checked(name, x, y)
        if self.positions is not None and y is not x:
            rows = torch.as_tensor(list(here), device=x.device)
            y = x.index_copy(axis, rows, y.index_select(axis, rows))
        same = torch.equal(x, y)
        self._fired[0] += 1
        self.tally.add(len(here), x, None if same else y)
        # a tensor in a graph is a change of the graph even if no bit differs: detach, or a delta of zeros
        return x if same and not (x.requires_grad or y.requires_grad) else y

    def _new_value(self, x: Tensor, hook: Hook) -> Any:
        if self._takes_hook == "by keyword":
            return self.fn(x, hook=hook)
        return self.fn(x, hook) if self._takes_hook == "by position" else self.fn(x)

    def _checked(self, name: str, x: Tensor, y) -> Tensor:
        if not isinstance(y, Tensor) or y.shape != x.shape:
            got = "None (did the function forget to return?)" if y is None else _shape(y)
            raise EditError(f"the edit at {name!r} must return a tensor of shape {tuple(x.shape)}, got {got}")
        y = y.to(x)
        if x.is_floating_point() and y.isnan().any() and not x.isnan().any():
            raise EditError(f"the edit at {name!r} returned NaN; -inf is allowed where a choice is to be excluded")
        if not x.is_floating_point():
            if y.min() < 0 or y.max() >= self.config.n_experts:
                raise EditError(f"the edit at {name!r} named an expert outside 0..{self.config.n_experts - 1}")
            if (y.sort(-1).values.diff(dim=-1) == 0).any():
                raise EditError(f"the edit at {name!r} chose an expert twice for one position")
        return y

    def describe(self) -> dict:
        """For the manifest: what was edited, by what, and how to tell this edit from another."""
        where = None if self.positions is None else self.positions.text
        about = {"glob": self.glob, "function": _label(self.fn), "positions": where}
        return about | {"identity": fingerprint((self.glob, where, self.fn))}


@dataclass(frozen=True)
class _Positions:
    wanted: frozenset[int] | None
    span: slice | None
    text: str

    def __call__(self, p: int) -> bool:
        if self.wanted is not None:
            return p in self.wanted
        assert self.span is not None
        return (self.span.start or 0) <= p and (self.span.stop is None or p < self.span.stop)


def _positions(positions) -> _Positions | None:
    """Absolute positions from an int, a slice with step 1, or several ints; None means all."""
    if positions is None:
        return None
    if isinstance(positions, slice):
        if positions == slice(None):
            return None
        if positions.step not in (None, 1) or min(positions.start or 0, positions.stop or 0) < 0:
            raise EditError(f"positions must be counted from the start and without a step, got {positions}")
        return _Positions(None, positions, f"{positions.start or 0}:{'' if positions.stop is None else positions.stop}")
    try:
        wanted = whole_numbers(positions)
    except TypeError:
        wanted = []
    if not wanted or min(wanted) < 0:
        raise EditError(f"positions must be whole numbers counted from the start, got {positions!r}")
    return _Positions(frozenset(wanted), None, ",".join(map(str, sorted(set(wanted)))))


def whole_numbers(given: Any) -> list[int]:
    """One whole number or several, of Python or numpy, as a list. Raises TypeError for anything else."""
    try:
        return [operator.index(given)]
    except TypeError:
        return [operator.index(g) for g in given]


def _takes_hook(fn: Callable) -> str:
    """How a function takes its Hook: "by keyword" if it has a parameter of that name (TransformerLens's convention) or
    takes any keyword, "by position" if it has another second parameter that must be given, or "" if it takes none.
    """
    if not callable(fn):
        raise EditError(f"an edit is a function of the value, fn(x) or fn(x, hook), got a {type(fn).__name__}")
    if isinstance(fn, torch.jit.ScriptModule | torch.jit.ScriptFunction):
        raise EditError("an edit cannot be TorchScript, whose code no trace can name; give what it was compiled from")
    called = fn.forward if isinstance(fn, torch.nn.Module) else fn  # a module's __call__ takes anything
    try:
        signature = inspect.signature(called)
    except (TypeError, ValueError):  # some C functions have no signature
        return ""
    parameters = list(signature.parameters.values())
    kinds = {p.kind for p in parameters}
    named = [p for p in parameters[1:] if p.name == "hook"]
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    required = [p for p in positional if p.default is p.empty]
    if named and named[0].kind in (named[0].POSITIONAL_OR_KEYWORD, named[0].KEYWORD_ONLY):
        how = "by keyword"
    elif named or len(required) >= 2 or inspect.Parameter.VAR_POSITIONAL in kinds:
        how = "by position"
    else:
        how = "by keyword" if inspect.Parameter.VAR_KEYWORD in kinds else ""
    x, hook = object(), object()
    try:
        signature.bind(x, *([hook] if how == "by position" else []), **({"hook": hook} if how == "by keyword" else {}))
    except TypeError as error:
        raise EditError(
            f"an edit is called as fn(x), fn(x, hook) or fn(x, hook=hook), and {_label(fn)}{signature} cannot be "
            f"({error}). Bind its other arguments first, with functools.partial or a lambda."
        ) from None
    return how


def _shape(y) -> str:
    return f"shape {tuple(y.shape)}" if isinstance(y, Tensor) else f"a {type(y).__name__}"


def _label(fn: Callable) -> str:
    text = getattr(fn, "__qualname__", None) or repr(fn)
    return text if len(text) < 200 else text[:197] + "…"


def fingerprint(thing) -> str:
    """A digest of a function with all that it reads: the same code with the same values gives the same digest.

    What cannot be looked into (a C function with state, an open file) counts as new every time: two runs may then get
    two ids although they are one, but never one id although they are two.
    """
    h = hashlib.sha256()
    _feed(h, thing, frozenset())
    return h.hexdigest()[:32]


def _feed(h, thing, met: frozenset[int]) -> None:
    h.update(f"{type(thing).__module__}.{type(thing).__qualname__}\0".encode())
    if id(thing) in met:
        return
    if thing is None or isinstance(thing, bool | int | float | complex | str | bytes | range | slice | torch.dtype):
        h.update(repr(thing).encode() + b"\0")
        return
    if isinstance(thing, types.ModuleType | types.BuiltinFunctionType | type):
        h.update(f"{getattr(thing, '__module__', '')}.{getattr(thing, '__qualname__', thing.__name__)}\0".encode())
        return
    met = met | {id(thing)}
    for part in _parts(thing):
        if isinstance(part, bytes):
            h.update(part + b"\0")
        else:
            _feed(h, part, met)


def _parts(thing) -> list:
    """What makes a thing what it is, in order."""
    if isinstance(thing, Tensor):
        plain = thing.detach().cpu().contiguous()
        return [f"{plain.dtype}{tuple(plain.shape)}", plain.flatten().view(torch.uint8).numpy().tobytes()]
    if isinstance(thing, np.ndarray):
        return [f"{thing.dtype}{thing.shape}", np.ascontiguousarray(thing).tobytes()]
    if isinstance(thing, np.generic):
        return [thing.item()]
    if isinstance(thing, list | tuple):
        return [len(thing), *thing]
    if isinstance(thing, dict):
        return [len(thing), *(part for item in thing.items() for part in item)]
    if isinstance(thing, set | frozenset):
        return sorted(map(fingerprint, thing))
    if isinstance(thing, functools.partial):
        return [thing.func, thing.args, thing.keywords]
    if isinstance(thing, types.MethodType):
        return [thing.__func__, thing.__self__]
    if isinstance(thing, types.FunctionType):
        closure = [cell.cell_contents for cell in thing.__closure__ or ()]
        read = {name: thing.__globals__[name] for name in _names(thing.__code__) if name in thing.__globals__}
        return [_code(thing.__code__), closure, thing.__defaults__, thing.__kwdefaults__, read]
    if isinstance(thing, torch.nn.Module):
        return [thing.training, dict(thing.state_dict()), type(thing).forward]
    if hasattr(thing, "__dict__"):
        call = vars(type(thing)).get("__call__")
        return [vars(thing), *([call] if isinstance(call, types.FunctionType) else [])]
    return [secrets.token_bytes(16)]


def _names(code) -> list[str]:
    """The global names that a code object may read, those of functions inside it included."""
    inner = [name for const in code.co_consts if hasattr(const, "co_code") for name in _names(const)]
    return sorted({*code.co_names, *inner})


def _code(code) -> tuple:
    """What a code object does, without where it stands."""
    consts = tuple(_code(c) if hasattr(c, "co_code") else repr(c) for c in code.co_consts)
    return (code.co_code.hex(), consts, code.co_names, code.co_varnames)
