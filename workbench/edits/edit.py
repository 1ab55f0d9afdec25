"""An edit: a tap that replaces the value at hook points by what a function makes of it, and counts what it did."""

import inspect
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from workbench import hooks
from workbench.edits.fingerprint import fingerprint
from workbench.edits.positions import positions_of
from workbench.errors import EditError
from workbench.taps import Tap, position_axis

if TYPE_CHECKING:
    from workbench.model.config import Config


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

    n_calls: int = 0
    positions: int = 0
    n_changed_calls: int = 0
    before: float = 0.0  # sums of squared_norms over entries that were finite before and after
    difference: float = 0.0

    def add(self, n: int, x: Tensor, y: Tensor | None) -> None:
        self.n_calls, self.positions = self.n_calls + 1, self.positions + n
        if y is not None:
            self.n_changed_calls += 1
            a, b = x.detach().double(), y.detach().double()
            finite = a.isfinite() & b.isfinite()
            self.before += float(a[finite].square().sum())
            self.difference += float((b - a)[finite].square().sum())

    def to_manifest(self) -> dict:
        """For the manifest; `Tally.from_manifest` takes it back.

        `relative_change` is the norm of the change over the norm of what was there, over the calls that changed
        something and the entries that stayed finite; `squared_norms` are the sums that it comes from.
        """
        return {
            "n_calls": self.n_calls,
            "n_positions": self.positions,
            "n_changed_calls": self.n_changed_calls,
            "relative_change": (self.difference / self.before) ** 0.5 if self.before > 0 else 0.0,
            "squared_norms": [self.before, self.difference],
        }

    @classmethod
    def from_manifest(cls, entry: Mapping[str, Any]) -> "Tally":
        return cls(entry["n_calls"], entry["n_positions"], entry["n_changed_calls"], *entry["squared_norms"])


class Edit(Tap):
    """Replaces the value at every hook point in `points` by what `fn` makes of it.

    `fn(x)`, `fn(x, hook)` or `fn(x, *, hook)` gets its own copy and may write into it; it returns a tensor of the same
    shape. If that is bit for bit what was there, the run goes on as if nothing had been edited. With `positions`, only
    those absolute positions take the new value.

    Raises EditError for a function that cannot be called so.
    """

    def __init__(self, glob: str, fn: Callable, points: Collection[str], config: "Config", positions=None):
        self.glob, self.fn, self.points, self.config = glob, fn, frozenset(points), config
        self.positions = positions_of(positions)
        self.tally = Tally()  # of the run under way, or of the last one
        self._fired = [0]  # ever; shared with copies, which run on other threads
        self._takes_hook = _takes_hook(fn)
        self._start = 0

    @property
    def n_calls(self) -> int:
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
