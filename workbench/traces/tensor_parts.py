"""Joins the pieces of a tensor: a run is written in parts, and each part holds the positions that it added."""

from collections.abc import Sequence

import numpy as np

from workbench.errors import ArgumentError
from workbench.traces.format import DTYPES


def position_axis(axes: Sequence[str]) -> int | None:
    """The axis along which pieces are joined: "pos", or "query" where there is no "pos".

    >>> position_axis(("layer", "pos")), position_axis(("head", "query", "key")), position_axis(("layer", "head"))
    (1, 1, None)
    """
    for name in ("pos", "query"):
        if name in axes:
            return list(axes).index(name)
    return None


def key_axis(axes: Sequence[str]) -> int | None:
    """The axis that is padded to the longest piece: earlier queries have fewer keys. None if there is no key axis."""
    return list(axes).index("key") if "key" in axes else None


def joined_shape(axes: Sequence[str], shapes: Sequence[Sequence[int]]) -> tuple[int, ...]:
    """The shape of the whole tensor. Raises ArgumentError if its pieces do not fit together.

    >>> joined_shape(("head", "query", "key"), [(4, 10, 10), (4, 1, 11)])
    (4, 11, 11)
    """
    if len(shapes) == 1:
        return tuple(shapes[0])
    joined_axis, padded_axis = position_axis(axes), key_axis(axes)
    if joined_axis is None:
        raise ArgumentError(
            f"a tensor with the axes ({' '.join(axes)}) has no position axis, so it can be written only once"
        )
    whole = []
    for axis, sizes in enumerate(zip(*shapes, strict=True)):
        if axis == joined_axis:
            whole.append(sum(sizes))
        elif axis == padded_axis or len(set(sizes)) == 1:
            whole.append(max(sizes))
        else:
            raise ArgumentError(
                f"pieces of shapes {list(map(list, shapes))[:4]} cannot be joined along the axes ({' '.join(axes)})"
            )
    return tuple(whole)


def join(name: str, dtype: str, axes: Sequence[str], arrays: Sequence[np.ndarray]) -> np.ndarray:
    """The whole tensor, read-only. Keys that an earlier piece lacks get 0 in patterns and -inf in scores."""
    if len(arrays) == 1:
        return arrays[0]
    shape = joined_shape(axes, [array.shape for array in arrays])
    joined_axis, padded_axis = position_axis(axes), key_axis(axes)
    fill = -np.inf if name.endswith("hook_attn_scores") and DTYPES[dtype].kind not in "iub" else 0
    whole = np.full(shape, fill, DTYPES[dtype])
    start = 0
    for array in arrays:
        place = [slice(None)] * len(shape)
        if padded_axis is not None:
            place[padded_axis] = slice(array.shape[padded_axis])
        if joined_axis is not None:
            place[joined_axis] = slice(start, start := start + array.shape[joined_axis])
        whole[tuple(place)] = array
    whole.flags.writeable = False
    return whole
