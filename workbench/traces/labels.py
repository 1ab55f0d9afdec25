"""An array of a trace with its axes, the texts of its tokens, its label and its units."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from workbench import hooks
from workbench.units import labels

if TYPE_CHECKING:
    import xarray as xr

# Axis of positions -> the coordinate of their texts, and its label.
TEXTS = {"pos": "text", "query": "query_text", "key": "key_text"}
POSITIONS = {"pos": "position", "query": "position of the query", "key": "position of the key"}


def labeled(
    name: str, values: np.ndarray, axes: Sequence[str], str_tokens: Sequence[str], attrs: dict[str, Any]
) -> "xr.DataArray":
    """A DataArray over `axes`: their numbers and, where an axis has a place for each token, the tokens' texts.

    >>> array = labeled("entropy", np.zeros(2), ["pos"], ["a", "b"], {})
    >>> array["text"].values.tolist(), array.attrs["units"], array.attrs["n"]
    (['a', 'b'], 'nats', 2)
    """
    import xarray as xr

    sizes = dict(zip(axes, values.shape, strict=True))
    labels_of = {axis: {"long_name": label} for axis, label in POSITIONS.items()}
    coords: dict[str, Any] = {axis: (axis, np.arange(size), labels_of.get(axis)) for axis, size in sizes.items()}
    texts = np.array(list(str_tokens), object)
    coords |= {TEXTS[axis]: (axis, texts) for axis in axes if axis in TEXTS and sizes[axis] == len(texts)}
    return xr.DataArray(values, coords, tuple(axes), hooks.short_name(name), labels(name) | {"n": len(texts)} | attrs)
