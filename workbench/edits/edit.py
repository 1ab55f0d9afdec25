"""An edit: a tap that replaces the value at hook points by a function of it, and counts its calls and changes."""

import inspect
from collections.abc import Callable, Collection, Mapping
from copy import copy
from dataclasses import dataclass
from hashlib import sha256
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
    """The hook point at which an edit is called; its function gets it as `hook`."""

    name: str
    layer: int | None
    positions: range  # absolute; those of the queries if the value has a query and a key axis
    n_active: int  # experts that run for a token


@dataclass(slots=True)
class Tally:
    """What an edit did in one run: calls, edited positions, calls that changed the value, and size of the change."""

    n_calls: int = 0
    positions: int = 0
    n_changed_calls: int = 0
    before: float = 0.0  # sum of squares of the unedited values, over the entries that are finite before and after
    difference: float = 0.0  # sum of squares of the change, over the same entries

    def add(self, n: int, x: Tensor, y: Tensor | None) -> None:
        self.n_calls, self.positions = self.n_calls + 1, self.positions + n
        if y is not None:
            self.n_changed_calls += 1
            a, b = x.detach().double(), y.detach().double()
            finite = a.isfinite() & b.isfinite()
            self.before += float(a[finite].square().sum())
            self.difference += float((b - a)[finite].square().sum())

    def to_manifest(self) -> dict:
        """The manifest entry; `Tally.from_manifest` is the inverse.

        `relative_change` is the norm of the change divided by the norm of the unedited value, over the calls that
        changed the value and the entries that stayed finite. `squared_norms` are the two sums that it is computed from.
        Entries that an edit sets to -inf are therefore left out: the `relative_change` of a ban is 0.0, although
        `n_changed_calls` counts its calls.
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
    """Replaces the value at every hook point in `points` by `fn` of it.

    `fn(x)`, `fn(x, hook)` or `fn(x, *, hook)` gets its own copy of the value, which it may write into, and returns a
    tensor of the same shape. If the returned tensor equals the value bit for bit, the run continues with the original,
    otherwise with a copy of the result: the function may write into its tensors again later, for instance with `out=`.
    With `positions`, only those absolute positions get the new value.

    Raises EditError for a function with another signature.
    """

    def __init__(self, glob: str, fn: Callable, points: Collection[str], config: "Config", positions=None):
        self.glob, self.fn, self.points, self.config = glob, fn, frozenset(points), config
        self.positions = positions_of(positions)
        self.tally = Tally()  # of the current run, or of the last one
        self._total_calls = [0]  # calls in all runs; shared with copies, which run on other threads
        self._takes_hook = _takes_hook(fn)
        self._start = 0
        self._identity_before: str | None = None  # before the first call of the run

    def begin_run(self) -> None:
        """Called when a run starts: the identity that the edit has at its first call counts for the whole run."""
        self._identity_before = None

    @property
    def n_calls(self) -> int:
        """The number of calls, in all runs."""
        return self._total_calls[0]

    def for_row(self) -> "Edit":
        """The same edit for one text of a batch, with a tally of its own."""
        own = copy(self)
        own.tally = Tally()
        own.begin_run()
        return own

    def wants(self, name: str) -> bool:
        return name in self.points

    def reads(self, name: str) -> bool:
        return name in self.points

    def begin(self, start: int, n: int) -> None:
        self._start = start

    def __call__(self, name: str, x: Tensor, offset: int = 0) -> Tensor:
        if name not in self.points:
            return x
        axis = position_axis(name)
        start = self._start + offset
        span = range(start, start + x.shape[axis])
        selected = range(len(span)) if self.positions is None else [i for i, p in enumerate(span) if self.positions(p)]
        if not selected:
            return x
        hook = Hook(name, hooks.layer_of(name), span, self.config.n_active)
        if self._identity_before is None:
            self._identity_before = self.identity()
        y = self._new_value(x.clone(), hook)
        y = self._checked(name, x, y)
        if self.positions is not None:
            rows = torch.as_tensor(list(selected), device=x.device)
            y = x.index_copy(axis, rows, y.index_select(axis, rows))
        unchanged = torch.equal(x, y)
        self._total_calls[0] += 1
        self.tally.add(len(selected), x, None if unchanged else y)
        # equal bits are not enough with autograd: a detached value or an added zero with a gradient changes the graph
        if unchanged and not (x.requires_grad or y.requires_grad):
            return x
        # The function may write into its tensors again, with `out=` or after the run. index_copy has copied already.
        return y.clone() if self.positions is None else y

    def _new_value(self, x: Tensor, hook: Hook) -> Any:
        if self._takes_hook == "by keyword":
            return self.fn(x, hook=hook)
        return self.fn(x, hook) if self._takes_hook == "by position" else self.fn(x)

    def _checked(self, name: str, x: Tensor, y) -> Tensor:
        if not isinstance(y, Tensor) or (not y.is_nested and y.shape != x.shape):  # a nested tensor has no shape
            got = "None (did the function forget to return?)" if y is None else _shape(y)
            raise EditError(f"the edit at {name!r} must return a tensor of shape {tuple(x.shape)}, got {got}")
        if kind := _unusable(y, x):
            raise EditError(
                f"the edit at {name!r} returned {kind}. Return a plain tensor with the numbers themselves, of dtype "
                f"{_dtype(x)} or one that converts to it."
            )
        y = y.to(x)
        if x.is_floating_point() and y.isnan().any() and not x.isnan().any():
            raise EditError(f"the edit at {name!r} returned NaN. To rule out an expert, a key or a token, return -inf.")
        if not x.is_floating_point():
            if y.min() < 0 or y.max() >= self.config.n_experts:
                raise EditError(f"the edit at {name!r} returned an expert outside 0..{self.config.n_experts - 1}")
            if (y.sort(-1).values.diff(dim=-1) == 0).any():
                raise EditError(f"the edit at {name!r} returned the same expert twice for one position")
        return y

    def describe(self) -> dict:
        """The manifest entry: what was edited, by which function, and a digest that identifies the edit."""
        positions = None if self.positions is None else self.positions.text
        entry = {"glob": self.glob, "function": _label(self.fn), "positions": positions}
        before, after = self._identity_before, self.identity()
        if before in (None, after):
            return entry | {"identity": after}
        # The calls have changed the function's own state, so the state at the first call counts too.
        identity = sha256(f"{before} {after}".encode()).hexdigest()[:32]
        return entry | {"identity": identity, "identity_after": after}

    def identity(self) -> str:
        """A digest of the hook points, the positions and the function in its present state."""
        return fingerprint((self.glob, None if self.positions is None else self.positions.text, self.fn))


def _takes_hook(fn: Callable) -> str:
    """How a function takes its Hook: "by keyword", "by position" or "" (not at all).

    "by keyword": it has a parameter named `hook` (TransformerLens's convention) or accepts any keyword. "by position":
    it has another second parameter without a default.
    """
    if not callable(fn):
        raise EditError(f"an edit is a function of the value, fn(x) or fn(x, hook), got a {type(fn).__name__}")
    if isinstance(fn, torch.jit.ScriptModule | torch.jit.ScriptFunction):
        raise EditError(
            "an edit cannot be TorchScript, because a trace cannot record its code. Pass the Python function that it "
            "was compiled from."
        )
    function = fn.forward if isinstance(fn, torch.nn.Module) else fn  # a module's __call__ accepts any arguments
    try:
        signature = inspect.signature(function)
    except Exception:  # some C functions have no signature, and an object may raise anything
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
            f"an edit is called as fn(x), fn(x, hook) or fn(x, hook=hook), which {_label(fn)}{signature} does not "
            f"accept ({error}). Bind its other arguments first, with functools.partial or a lambda."
        ) from None
    return how


def _unusable(y: Tensor, x: Tensor) -> str | None:
    """Why a result cannot take the place of x, or None: its numbers would change or are not there."""
    if type(y) not in (Tensor, torch.nn.Parameter, type(x)):
        return f"a {type(y).__name__}, a subclass of Tensor"
    if y.is_meta:
        return "a tensor on the device meta, which has no numbers"
    if y.is_nested:
        return "a nested tensor"
    if y.is_quantized or y.layout != torch.strided:
        return f"a {'quantized' if y.is_quantized else _dtype(y.layout)} tensor"
    if y.is_complex():
        return f"complex numbers ({_dtype(y)}), of which only the real part would remain"
    if y.dtype == torch.bool:
        return "a tensor of bool (a mask?)"
    if y.is_floating_point() and not x.is_floating_point():
        return f"fractions ({_dtype(y)}) where expert indices are needed"
    return None


def _dtype(x) -> str:
    return str(x.dtype if isinstance(x, Tensor) else x).removeprefix("torch.")


def _shape(y) -> str:
    return f"shape {tuple(y.shape)}" if isinstance(y, Tensor) else f"a {type(y).__name__}"


def _label(fn: Callable) -> str:
    try:
        text = str(getattr(fn, "__qualname__", None) or repr(fn))
    except Exception:  # of the object's own __getattr__ or __repr__: a run must not be lost for a label
        text = f"<{type(fn).__name__}>"
    return text if len(text) < 200 else text[:197] + "…"
