"""The residual stream itself: how far each layer turns it, and single activations that dwarf all others."""

import numpy as np
import xarray as xr

from workbench.checks import check_number, check_type
from workbench.traces import Trace


def resid_cosine(trace: Trace) -> xr.DataArray:
    """Cosine similarity of the residual stream before and after each layer (layer pos); 1: direction unchanged.

    >>> cosine = resid_cosine(wb.trace("What is 12+30?", record="residuals"))
    >>> cosine.dims, bool((abs(cosine) <= 1 + 1e-6).all())
    (('layer', 'pos'), True)

    Raises NotRecorded if the trace was not recorded with record="residuals".
    """
    check_type("resid_cosine", trace, Trace)
    before, after = (np.asarray(trace[name], np.float64) for name in ("resid_pre", "resid_post"))
    with np.errstate(divide="ignore", invalid="ignore"):
        values = (before * after).sum(-1) / np.linalg.norm(before, axis=-1) / np.linalg.norm(after, axis=-1)
    coords = {"layer": np.arange(len(values)), "pos": np.arange(len(trace))}
    return xr.DataArray(values, coords, ("layer", "pos"), attrs={"long_name": "cosine", "units": "1"})


def massive_activations(trace: Trace, *, min_value: float = 100.0, min_ratio: float = 1000.0) -> xr.DataArray:
    """Massive activations (arXiv 2402.17762): single entries of the residual stream that dwarf all others (activation).

    An entry is listed if its absolute value exceeds both `min_value` and `min_ratio` times the median absolute value of
    its layer. The values are the activations, in units of the residual stream; the coordinates `layer`, `pos` and
    `d_model` say where each one is. The defaults are those of the paper.

    >>> massive = massive_activations(wb.trace("What is 12+30?", record="residuals"))
    >>> massive.dims, massive.sizes["activation"]
    (('activation',), 0)

    Raises NotRecorded if the trace was not recorded with record="residuals".
    """
    check_type("massive_activations", trace, Trace)
    min_value, min_ratio = check_number("min_value", min_value, low=0), check_number("min_ratio", min_ratio, low=0)
    resid = np.asarray(trace["resid_post"], np.float64)
    threshold = np.maximum(min_value, min_ratio * np.median(np.abs(resid), axis=(1, 2)))
    layer, pos, dim = np.nonzero(np.abs(resid) > threshold[:, None, None])
    coords = {"layer": ("activation", layer), "pos": ("activation", pos), "d_model": ("activation", dim)}
    attrs = {"long_name": "massive activations", "units": "1", "min_value": min_value, "min_ratio": min_ratio}
    return xr.DataArray(resid[layer, pos, dim], coords, ("activation",), attrs=attrs)
