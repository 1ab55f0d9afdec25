"""Notices weights that were changed in place after they were loaded: they are those of another model then."""

from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from secrets import token_hex
from typing import Any

from torch import Tensor

from workbench.model.checkpoints.tensors import Weights

CHANGED = "changed-"


def versions(weights: Weights) -> tuple[int, ...]:
    """The counters with which torch counts the changes of each tensor."""
    return tuple(map(version, _tensors(weights)))


def version(tensor: Tensor) -> int:
    """The number of changes in place that torch has counted; -1 for an inference tensor, where it counts none."""
    return -1 if tensor.is_inference() else tensor._version


def current_digest(digest: str, before: tuple[int, ...], now: tuple[int, ...]) -> str:
    """The digest, if the weights have not changed since; otherwise a new one, which no other model has.

    >>> current_digest("sha256:ab", (0, 0), (0, 0)), current_digest("sha256:ab", (0, 0), (1, 0))[:8]
    ('sha256:ab', 'changed-')
    """
    return digest if before == now else f"{CHANGED}{token_hex(32)}"


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif is_dataclass(value):
        for field in fields(value):
            yield from _tensors(getattr(value, field.name))
    elif isinstance(value, list | tuple):  # blocks, and packed matrices
        for item in value:
            yield from _tensors(item)
