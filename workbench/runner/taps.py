"""Taps: what the forward pass calls at each hook point. A tap may look at a value, replace it, or both."""

import hashlib
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from workbench import names
from workbench.errors import EditError


class Tap:
    """Wants nothing, changes nothing. Values have a batch axis before the axes that `workbench.names` lists."""

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
            if self.keep_grad and x.requires_grad:
                x.retain_grad()
            kept = x if self.keep_grad else x.detach().to(self.device)
            self.seen.setdefault(name, []).append(kept)
        return x

    def __getitem__(self, name: str) -> Tensor:
        """All pieces of one hook point, joined along positions: batch and the axes of the hook point."""
        pieces = self.seen[name]
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces, position_axis(name))


def position_axis(name: str) -> int:
    """The axis of a tapped value (batch first) that counts positions."""
    known = names.axes(name)
    return 1 + known.index("query" if "query" in known else "pos")


@dataclass(frozen=True, slots=True)
class Hook:
    """Where an edit is called: what a function of two arguments gets as its second."""

    name: str
    layer: int | None
    positions: range  # absolute; the queries, where a value has queries and keys


@dataclass(slots=True)
class Tally:
    """What an edit did: calls, positions met, calls that changed a bit, and the relative size of the change."""

    fired: int = 0
    positions: int = 0
    changed: int = 0
    _before: float = 0.0  # sums of squares over finite entries
    _difference: float = 0.0
    reached: set[str] = field(default_factory=set)

    def add(self, name: str, n: int, x: Tensor, y: Tensor | None) -> None:
        self.fired, self.positions = self.fired + 1, self.positions + n
        self.reached.add(name)
        if y is not None:
            self.changed += 1
            a, b = x.detach().double(), y.detach().double()
            finite = a.isfinite() & b.isfinite()
            self._before += float(a[finite].square().sum())
            self._difference += float((b - a)[finite].square().sum())

    @property
    def relative_change(self) -> float:
        """Norm of the change over norm of what was there, over the calls that changed something."""
        return (self._difference / self._before) ** 0.5 if self._before else 0.0


class Edit(Tap):
    """Replaces the value at every hook point in `points` by what `fn` makes of it.

    `fn(x)` or `fn(x, hook)` gets its own copy and may write into it; it returns a tensor of the same shape. If that is
    bit for bit what was there, the run goes on as if nothing had been edited. With `positions`, only those absolute
    positions take the new value.
    """

    def __init__(self, glob: str, fn: Callable, points: Collection[str], n_experts: int, positions=None):
        self.glob, self.fn, self.points, self.n_experts = glob, fn, frozenset(points), n_experts
        self.positions = _positions(positions)
        self.tally = Tally()
        self._takes_hook = _arguments(fn) >= 2
        self._start = 0

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
        y = self.fn(given, Hook(name, names.layer_of(name), at)) if self._takes_hook else self.fn(given)
        y = self._checked(name, x, y)
        if self.positions is not None and y is not x:
            rows = torch.as_tensor(list(here), device=x.device)
            y = x.index_copy(axis, rows, y.index_select(axis, rows))
        y = x if torch.equal(x, y) else y
        self.tally.add(name, len(here), x, None if y is x else y)
        return y

    def _checked(self, name: str, x: Tensor, y) -> Tensor:
        if not isinstance(y, Tensor) or y.shape != x.shape:
            got = "None (did the function forget to return?)" if y is None else _shape(y)
            raise EditError(f"the edit at {name!r} must return a tensor of shape {tuple(x.shape)}, got {got}")
        y = y.to(x)
        if x.is_floating_point() and y.isnan().any() and not x.isnan().any():
            raise EditError(f"the edit at {name!r} returned NaN; -inf is allowed where a choice is to be excluded")
        if not x.is_floating_point() and (y.min() < 0 or y.max() >= self.n_experts):
            raise EditError(f"the edit at {name!r} named an expert outside 0..{self.n_experts - 1}")
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
    if positions is None or positions == slice(None):
        return None
    if isinstance(positions, slice):
        if positions.step not in (None, 1) or min(positions.start or 0, positions.stop or 0) < 0:
            raise EditError(f"positions must be counted from the start and without a step, got {positions}")
        return _Positions(None, positions, f"{positions.start or 0}:{'' if positions.stop is None else positions.stop}")
    wanted = [positions] if isinstance(positions, int) else [int(p) for p in positions]
    if not wanted or min(wanted) < 0:
        raise EditError(f"positions must be whole numbers counted from the start, got {positions!r}")
    return _Positions(frozenset(wanted), None, ",".join(map(str, sorted(set(wanted)))))


def _arguments(fn: Callable) -> int:
    import inspect

    try:
        kinds = inspect.signature(fn).parameters.values()
    except (TypeError, ValueError):  # some C functions have no signature
        return 1
    required = [p for p in kinds if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD) and p.default is p.empty]
    if any(p.kind is p.VAR_POSITIONAL for p in kinds):
        return 2
    return len(required)


def _shape(y) -> str:
    return f"shape {tuple(y.shape)}" if isinstance(y, Tensor) else f"a {type(y).__name__}"


def _label(fn: Callable) -> str:
    text = getattr(fn, "__qualname__", None) or repr(fn)
    return text if len(text) < 200 else text[:197] + "…"


def fingerprint(thing) -> str:
    """A digest of a function with all it closes over: the same code with the same values gives the same digest."""
    h = hashlib.sha256()
    _feed(h, thing, set())
    return h.hexdigest()[:32]


def _feed(h, thing, met: set[int]) -> None:
    h.update(type(thing).__name__.encode() + b"\0")
    if id(thing) in met:
        return
    if isinstance(thing, Tensor):
        plain = thing.detach().cpu().contiguous()
        h.update(f"{plain.dtype}{tuple(plain.shape)}".encode() + plain.flatten().view(torch.uint8).numpy().tobytes())
    elif isinstance(thing, np.ndarray):
        h.update(f"{thing.dtype}{thing.shape}".encode() + np.ascontiguousarray(thing).tobytes())
    elif isinstance(thing, (list, tuple)):
        for part in thing:
            _feed(h, part, met)
    elif isinstance(thing, dict):
        for key, part in thing.items():
            _feed(h, (key, part), met)
    elif hasattr(thing, "__code__"):
        met = met | {id(thing)}
        closure = [cell.cell_contents for cell in thing.__closure__ or ()]
        used = {name: thing.__globals__[name] for name in thing.__code__.co_names if name in thing.__globals__}
        _feed(h, _code(thing.__code__), met)
        _feed(h, (closure, thing.__defaults__, thing.__kwdefaults__), met)
        _feed(h, {k: v for k, v in used.items() if isinstance(v, (int, float, str, Tensor, np.ndarray))}, met)
    elif hasattr(thing, "__dataclass_fields__"):
        _feed(h, [getattr(thing, name) for name in thing.__dataclass_fields__], met)
    elif hasattr(thing, "__func__"):
        _feed(h, [thing.__func__, repr(type(thing.__self__))], met)
    else:
        text = repr(thing)
        h.update((type(thing).__qualname__ if " at 0x" in text else text).encode())


def _code(code) -> tuple:
    """What a code object does, without where it stands."""
    consts = tuple(_code(c) if hasattr(c, "co_code") else repr(c) for c in code.co_consts)
    return (code.co_code.hex(), consts, code.co_names, code.co_varnames)
