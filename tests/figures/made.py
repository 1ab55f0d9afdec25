"""Figures for the tests: one of every kind."""

from typing import Any

import numpy as np
import xarray as xr

from tests.figures.hostile import HOSTILE
from workbench import figures as f
from workbench.figures import Figure

RNG_SEED = 3


def curves(names: list[str]) -> xr.DataArray:
    values = np.random.default_rng(RNG_SEED).random((len(names), 7))
    attrs = {"long_name": names[0], "units": names[-1], "n": 12}
    return xr.DataArray(values, {"text": names}, ("text", "step"), attrs=attrs)


def every_kind(names: list[str] = HOSTILE[:6]) -> dict[str, Figure]:
    """One figure of each kind, with these as all of its texts."""
    array = curves(names)
    texts: dict[str, Any] = {"title": names[0], "note": names[1]}
    one = array[:, 0]
    square = xr.DataArray(np.tril(np.random.default_rng(0).random((len(names),) * 2), -1), dims=("step", "key_step"))
    return {
        "line": f.line(array, by="text", low=array - 0.1, high=array + 0.1, null=0.2, **texts),
        "bars": f.bars(one, low=one - 0.1, high=one + 0.1, null=0.2, **texts),
        "stacked": f.stacked(array, by="text", **texts),
        "heatmap": f.heatmap(array, marked=array.values > 0.8, marked_name=names[2], written=True, **texts),
        "scatter": f.scatter(one, one**2, groups=names, text=names, **texts),
        "step_matrix": f.step_matrix(square, names, truth=square.values > 0.5, **texts),
        "rule": Figure(
            panels=[f.Panel(marks=[f.Rule(at=1.0, text=names[3]), f.Rule(at=2.0, axis="x", text=names[4])])]
        ),
        "blocks": Figure(
            panels=[
                f.Panel(
                    marks=[
                        f.Blocks(start=range(0, 99, 9)[: len(names)], stop=range(9, 99, 9)[: len(names)], text=names)
                    ],
                    title=names[5],
                )
            ]
        ),
    }
