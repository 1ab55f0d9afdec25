"""From step to step: any labelled array (step key_step), as a matrix and as arcs over the tokens."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr

from workbench.analysis.heads import step_attention
from workbench.errors import NotRecorded
from workbench.traces import Trace
from workbench.views import still
from workbench.views.payload import Payload
from workbench.views.view import View, parts
from workbench.visible import visible

Array = xr.DataArray | xr.Dataset


@dataclass(frozen=True, slots=True)
class Edges:
    """One array from step to step: values (layer step key_step), one layer if it has none."""

    label: str
    unit: str
    over: str  # what a mean was taken over
    values: np.ndarray

    def header(self) -> dict[str, Any]:
        return {"label": self.label, "unit": self.unit, "over": self.over, "layers": len(self.values)}


class Steps(View):
    """What `steps` gives."""

    module = "steps"
    call = "wb.views.steps(trace"

    def __init__(self, trace: Trace, edges: list[Edges], args: str, **place: Any):
        super().__init__(trace, **place)
        self.edges, self.args = edges, args

    def payload(self) -> Payload:
        header, arrays = self.common()
        header |= {"args": self.args, "edges": [each.header() for each in self.edges]}
        return header, arrays | {f"edges:{number}": each.values for number, each in enumerate(self.edges)}

    def still(self) -> list[still.Row]:
        return [_still(each) for each in self.edges]


def steps(
    trace: Trace,
    arrays: Array | Mapping[str, Array] | None = None,
    *,
    window: tuple[int, int] | None = None,
    picked: int | None = None,
) -> Steps:
    """How the steps of a chain of thought bear on each other: a matrix (step key_step), and arcs over the tokens.

    `arrays` is any labelled array with step and key_step, or several by name, among which the reader chooses: attention
    (`wb.step_attention(trace)`, which it is unless given), suppression (`wb.suppression(model, trace)`), the shift of
    routes (`wb.routing_drift(trace)`). An axis "layer" is chosen by arrow keys, and its mean shown at first; of an axis
    "head" it is the mean. The scale leaves out the diagonal.

    >>> trace = wb.trace("What is 12+30?", record="steps")
    >>> wb.views.steps(trace, {"attention": wb.step_attention(trace)})
    <steps of pocket: 51 tokens>

    Raises ValueError for an array without those axes, or of another number of steps; NotRecorded without steps or, if
    no array is given, without record="steps".
    """
    count = len(parts(trace))
    if not count:
        raise NotRecorded("the trace has no steps, for nothing was thought in it: this view shows one to another")
    args = "" if arrays is None else ", arrays"
    found = step_attention(trace) if arrays is None else arrays
    named = found.items() if isinstance(found, Mapping) and not isinstance(found, xr.Dataset) else [("", found)]
    edges = [_edges(name, array, count) for name, array in named]
    if not edges:
        raise ValueError("arrays is empty; give one labelled array (step key_step), or several by name")
    return Steps(trace, edges, args, window=window, picked=picked)


def _edges(name: str, array: Array, count: int) -> Edges:
    if isinstance(array, xr.Dataset):
        there = [each for each in array.data_vars.values() if {"step", "key_step"} <= set(each.dims)]
        array = there[0] if there else xr.DataArray()
    if not isinstance(array, xr.DataArray) or not {"step", "key_step"} <= set(array.dims):
        what = f"the axes {array.dims}" if isinstance(array, xr.DataArray) else f"a {type(array).__name__}"
        raise ValueError(f"{visible(name) or 'arrays'} has {what}; it takes a labelled array (step key_step)")
    extra = set(array.dims) - {"layer", "head", "step", "key_step"}
    if extra or array.sizes["step"] != count or array.sizes["key_step"] != count:
        raise ValueError(
            f"{visible(name) or 'arrays'} is {dict(array.sizes)}; it takes (step key_step), with layer and head if you "
            f"like, and this trace has {count} steps"
        )
    over = f", mean over {array.sizes['head']} heads" if "head" in array.dims else ""
    attrs = array.attrs
    label = visible(str(name or attrs.get("long_name") or array.name or "from step to step"))
    array = array.mean("head") if over else array
    array = array if "layer" in array.dims else array.expand_dims("layer")
    values = array.transpose("layer", "step", "key_step").values.astype("f4")
    return Edges(label, visible(str(attrs.get("units", ""))), over, np.where(np.isfinite(values), values, np.nan))


def _still(each: Edges) -> still.Row:
    layers = len(each.values)
    known = np.isfinite(each.values)
    total = np.where(known, each.values, 0).sum(0)
    mean = np.where(known.any(0), total / np.maximum(known.sum(0), 1), np.nan)
    off = mean[~np.eye(len(mean), dtype=bool) & np.isfinite(mean)]
    most = float(np.abs(off).max(initial=0.0)) or 1.0
    sided = bool((off < 0).any())
    picture = still.heat(mean[::-1], "max", -most if sided else 0.0, most, "both" if sided else "blue", 160)
    unit = f"row: step, column: key_step{each.over}" + (f", mean over {layers} layers" if layers > 1 else "")
    scale = f"{'−' if sided else ''}{most if sided else 0:.3g} to {most:.3g} {each.unit}"
    return still.Row(each.label, unit, picture, scale=scale, height=160)
