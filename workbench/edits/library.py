"""Ready-made edits for `model.edit(where, …)`. Each is a small frozen callable, so that a manifest can identify it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Never

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from workbench import hooks
from workbench.checks import check_expert, check_index, check_number, check_numbers, check_type
from workbench.edits.positions import whole_numbers
from workbench.errors import EditError
from workbench.text import shown, visible
from workbench.traces import Trace


def _indices(name: str, value: int | Sequence[int]) -> tuple[int, ...]:
    try:
        indices = tuple(whole_numbers(value))
    except TypeError:
        indices = ()
    if not indices or min(indices) < 0:
        raise EditError(f"{name} must be one or more whole numbers of at least 0, got {shown(value)}")
    return indices


@dataclass(frozen=True)
class Ban:
    """The edit that `ban` returns."""

    experts: tuple[int, ...]

    def __call__(self, x: Tensor, hook) -> Tensor:
        _at_router(hook)
        n = x.shape[-1]
        check_expert(max(self.experts), n)
        if n - len(set(self.experts)) < hook.n_active:
            raise EditError(
                f"cannot ban {len(set(self.experts))} of {n} experts: {hook.n_active} must run for each token"
            )
        x[..., list(self.experts)] = -torch.inf
        return x


@dataclass(frozen=True)
class Force:
    """The edit that `force` returns."""

    experts: tuple[int, ...]
    margin: float

    def __call__(self, x: Tensor, hook) -> Tensor:
        _at_router(hook)
        check_expert(max(self.experts), x.shape[-1])
        if len(set(self.experts)) > hook.n_active:
            raise EditError(f"cannot force {len(set(self.experts))} experts: only {hook.n_active} run for each token")
        x[..., list(self.experts)] = x.amax(-1, keepdim=True) + self.margin
        return x


@dataclass(frozen=True)
class Ablate:
    """The edit that `ablate` returns."""

    component: str  # "head" or "expert"
    indices: tuple[int, ...]

    def __call__(self, x: Tensor, hook) -> Tensor:
        ending = "attn.hook_z" if self.component == "head" else "mlp.hook_expert_weights"
        if not hook.name.endswith(ending):
            raise EditError(f"ablate({self.component}=…) works at 'blocks.*.{ending}' only, got {hook.name!r}")
        axis = -2 if self.component == "head" else -1
        check_index(self.component, max(self.indices), x.shape[axis])
        return x.index_fill(axis, torch.tensor(self.indices, device=x.device), 0)


@dataclass(frozen=True, eq=False)
class Steer:
    """The edit that `steer` returns."""

    vector: np.ndarray
    scale: float

    def __call__(self, x: Tensor, hook) -> Tensor:
        if x.shape[-1] != len(self.vector):
            raise EditError(
                f"the vector for {hook.name!r} must have {x.shape[-1]} entries, the width of that hook point, "
                f"got {len(self.vector)}"
            )
        return x + self.scale * torch.as_tensor(self.vector, device=x.device).to(x.dtype)


@dataclass(frozen=True, eq=False)
class PatchFrom:
    """The edit that `patch` returns: `model.edit` reads the values at its hook points and makes a `Patch` of them."""

    source: Trace


class Patch:
    """Replaces values by those of another run, by hook point. It keeps the trace's id, which identifies the edit."""

    def __init__(self, values: dict[str, Tensor], source: str):
        self.values, self.source = values, source

    def __repr__(self) -> str:
        return f"patch from trace {visible(self.source)}"

    def __call__(self, x: Tensor, hook) -> Tensor:
        recorded = self.values[hook.name].to(x)
        axes = hooks.axes(hook.name)
        n_recorded = recorded.shape[axes.index("query" if "query" in axes else "pos")]
        start = hook.positions.start
        rows = slice(0, max(0, min(hook.positions.stop, n_recorded) - start))  # rows of x; row 0 is position `start`
        positions = slice(start, start + rows.stop)
        if "query" not in axes:
            self._check_shape(recorded.shape[1:], x.shape[2:], hook.name)
            x[:, rows] = recorded[positions]
            return x
        recorded = recorded[:, positions]
        if "key" in axes:
            n_keys = min(recorded.shape[-1], x.shape[-1])
            self._check_shape(recorded.shape[:1], x.shape[1:2], hook.name)
            x[:, :, rows, :n_keys] = recorded[..., :n_keys]
        else:
            x[:, :, rows] = recorded
        return x

    @staticmethod
    def _check_shape(recorded: Sequence[int], expected: Sequence[int], name: str) -> None:
        if tuple(recorded) != tuple(expected):
            raise EditError(
                f"the patch at {name!r} has shape {tuple(recorded)} per position, this model has {tuple(expected)}. "
                f"Patch from a trace of a model with the same config."
            )


def _at_router(hook) -> None:
    if not hook.name.endswith("router.hook_out"):
        raise EditError(
            f"ban and force work at 'blocks.*.mlp.router.hook_out', not at {hook.name!r}. Edit there instead."
        )


def ban(expert: int | Sequence[int]) -> Ban:
    """An edit for `router_logits` that excludes experts; the next best run instead, and the weights are recomputed.

    >>> with model.edit("blocks.1.mlp.router.hook_out", wb.ban(expert=7)): trace = model.generate("What is 12+30?")
    >>> bool((trace["expert_indices", 1] == 7).any())
    False

    Raises, when the edited model runs, SelectionError for an expert that the model does not have, and EditError if too
    few experts would remain to run.
    """
    return Ban(_indices("expert", expert))


def force(expert: int | Sequence[int], margin: float = 0.01) -> Force:
    """An edit for `router_logits` that always selects experts: their logits become the largest logit plus `margin`.

    >>> with model.edit("blocks.1.mlp.router.hook_out", wb.force(expert=7)): trace = model.generate("What is 12+30?")
    >>> bool((trace["expert_indices", 1] == 7).any(-1).all())
    True

    The rule is that of SteerMoE (arXiv 2509.09660).

    Raises, when the edited model runs, SelectionError for an expert that the model does not have, and EditError for
    more experts than run for each token.
    """
    return Force(_indices("expert", expert), check_number("margin", margin, above=0))


def ablate(
    *unnamed: Never, head: int | Sequence[int] | None = None, expert: int | Sequence[int] | None = None
) -> Ablate:
    """An edit that zeroes heads (at `z`) or experts (at `expert_weights`; the others keep their weights).

    >>> with model.edit("blocks.2.attn.hook_z", wb.ablate(head=3)): trace = model.generate(question)

    Raises EditError unless exactly one of `head` and `expert` is given, by name.
    """
    if unnamed:
        example = ", ".join(map(shown, unnamed))
        raise EditError(f"ablate needs head= or expert=: wb.ablate(head={example}) or wb.ablate(expert={example})")
    if (head is None) == (expert is None):
        raise EditError("ablate either heads or experts: wb.ablate(head=3) or wb.ablate(expert=[1, 7])")
    component, indices = ("head", head) if expert is None else ("expert", expert)
    assert indices is not None
    return Ablate(component, _indices(component, indices))


def patch(source: Trace) -> PatchFrom:
    """An edit that replaces values by those of another trace at the same hook point and positions.

    Positions that the trace does not have keep their own values.

    >>> other = model.trace(question, record="z")
    >>> with model.edit("blocks.2.attn.hook_z", wb.patch(other)): patched = model.trace(question)
    >>> patched.edits[0]["n_changed_calls"]  # patching a run with itself changes nothing
    0

    `model.edit` raises NotRecorded if the trace lacks the hook point. The edited model raises EditError if the recorded
    value has another width.
    """
    check_type("patch", source, Trace)
    return PatchFrom(source)


def steer(vector: ArrayLike, scale: float = 1.0) -> Steer:
    """An edit that adds `scale * vector` (d_model) to a residual stream or a layer output; scale 0 changes no bit.

    >>> away = trace["resid_post", 2][60] - trace["resid_post", 2][50]
    >>> with model.edit("blocks.2.hook_resid_post", wb.steer(away, 0.5)): steered = model.trace(trace)
    >>> steered.edits[0]["n_positions"] == len(trace)
    True

    Raises EditError unless `vector` is one row of finite numbers, and where the hook point has another width.
    """
    vector = check_numbers("vector", vector).astype(np.float32)
    if vector.ndim != 1 or not len(vector) or not np.isfinite(vector).all():
        raise EditError(f"a steering vector is one row of finite numbers, got an array of shape {vector.shape}")
    return Steer(vector, check_number("scale", scale))
