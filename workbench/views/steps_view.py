"""Relations between steps: any labeled array (step key_step), as a matrix and as arcs over the tokens."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr

from workbench.analysis.heads import step_attention
from workbench.checks import check_numbers, check_text, check_type, check_whole
from workbench.errors import ArgumentError, NotRecorded, SelectionError
from workbench.text import range_text, visible
from workbench.traces import Trace
from workbench.views import snapshot_html
from workbench.views.outline import parts
from workbench.views.payload import Payload
from workbench.views.request import index_in, range_in
from workbench.views.snapshot_svg import Axis, Scale, heat_map
from workbench.views.step_links import pooled, strongest
from workbench.views.view import View

Array = xr.DataArray | xr.Dataset


CELLS = 760  # rows and columns sent at most, each one or several steps: two for each pixel of the matrix
HEIGHT = 160  # of a snapshot, in cells
INITIAL_BYTES = 4_000_000  # of the matrices sent with the view; the others are sent on demand


@dataclass(frozen=True, slots=True)
class Edges:
    """One array between steps: values (layer step key_step), and their mean over the layers (step key_step)."""

    label: str
    unit: str
    over: str  # the axis that was averaged, for the title
    layers: tuple[int, ...]  # the layer numbers; empty if the array has no layer axis
    values: np.ndarray
    mean: np.ndarray

    def header(self) -> dict[str, Any]:
        return {"label": self.label, "unit": self.unit, "over": self.over, "layers": list(self.layers)}

    def of(self, layer: int) -> np.ndarray:
        """The matrix (step key_step) of a layer; -1 is the mean over layers."""
        if layer != -1 and layer not in self.layers:
            raise SelectionError(f"layer {layer} is not in this array; it has layers {_numbers(self.layers)}")
        return self.mean if layer == -1 else self.values[self.layers.index(layer)]


class Steps(View):
    """The view that `steps` makes."""

    module = "steps_view"
    call = "wb.views.steps(trace"

    def __init__(self, trace: Trace, edges: list[Edges], layer: int, args: str, **place: Any):
        super().__init__(trace, **place)
        self.edges, self.layer, self.args = edges, layer, args

    def payload(self) -> Payload:
        header, arrays = self.common()
        count = len(header["steps"])
        numbers = sorted({layer for each in self.edges for layer in each.layers})
        header |= {"args": self.args, "edges": [each.header() for each in self.edges], "layer": self.layer}
        header |= {"numbers": numbers, "matrices": []}
        first = (0, self.layer if self.layer in (-1, *self.edges[0].layers) else -1)
        all_matrices = [(array, layer) for array, each in enumerate(self.edges) for layer in (-1, *each.layers)]
        fits = max(1, INITIAL_BYTES // (4 * min(count, CELLS) ** 2))
        for number, (array, layer) in enumerate(list(dict.fromkeys([first, *all_matrices]))[:fits]):
            cells_header, cells = self._cells(array, layer, 0, count)
            header["matrices"].append(cells_header | {"array": array, "layer": layer})
            arrays |= {f"{number}:{name}": values for name, values in cells.items()}
        return header, arrays

    def query(self, kind: str, request: Mapping[str, Any]) -> Payload:
        """The reply to a query for "cells": the steps from:to of an array and a layer (-1: the mean over layers)."""
        if kind != "cells":
            return super().query(kind, request)
        array = index_in(request, "array", len(self.edges))
        layer = -1 if request.get("layer") == -1 else index_in(request, "layer", self.trace.config["n_layers"])
        return self._cells(array, layer, *range_in(request, len(self.edges[array].mean)))

    def snapshot(self) -> list[snapshot_html.Row]:
        return [_edges_row(each, self.layer if self.layer in each.layers else -1) for each in self.edges]

    def _cells(self, array: int, layer: int, start: int, stop: int) -> Payload:
        """At most `CELLS` rows and columns of the steps start:stop, the strongest links among them, and their scale."""
        matrix = self.edges[array].of(layer)
        part = matrix[start:stop, start:stop]
        high, signed = _scale(part)[0], _scale(matrix)[1]
        factor = max(1, -(-len(part) // CELLS))
        ends, values = strongest(part)
        header = {"start": start, "factor": factor, "high": high, "signed": signed}
        return header, {"cells": pooled(part, factor), "ends": ends + np.int32(start), "strength": values}


def steps(
    trace: Trace,
    arrays: Array | Mapping[str, Array] | None = None,
    layer: int | None = None,
    *,
    window: tuple[int, int] | None = None,
    selected: int | None = None,
) -> Steps:
    """A view of relations between the steps of a chain of thought: a matrix (step key_step), and arcs over the tokens.

    Examples of arrays are attention (`wb.attention.step_attention(trace)`, the default), suppression
    (`wb.reasoning.suppression(model, trace)`) and routing drift (`wb.routing.routing_drift(trace)`). An axis "head" is
    averaged. For an axis "layer" the view shows the mean or one layer; the menu and the arrow keys change it. Steps are
    numbered from 0, as in `wb.steps(trace)`. The color scale ignores the diagonal. A cell shared by several steps shows
    their value of largest magnitude, labeled "downsampled"; zoomed in, it is exact. A saved page contains up to 4 MB of
    matrices; other layers need Python.

    Args:
        trace: a trace with steps.
        arrays: a labeled array with the axes step and key_step, or several by name, from which the reader chooses.
        layer: the layer shown first; without it, the mean over layers.
        window: the positions (first, stop) shown first.
        selected: the pinned position.

    Raises:
        ArgumentError: an array does not have these axes, or has another number of steps.
        SelectionError: no array has that layer.
        NotRecorded: the trace has no steps, or no array was passed and it was recorded without record="steps".

    >>> trace = wb.trace("What is 12+30?", record="steps")
    >>> wb.views.steps(trace, {"attention": wb.attention.step_attention(trace)})
    <steps of pocket: 51 tokens>
    """
    check_type("views.steps", trace, Trace)
    count = len(parts(trace))
    if not count:
        raise NotRecorded(
            "the trace has no steps, because it has no chain of thought; this view needs at least one step"
        )
    args = "" if arrays is None else ", arrays"
    shown = step_attention(trace) if arrays is None else arrays
    named = (
        [(check_text("a name of arrays", n), a) for n, a in shown.items()]
        if isinstance(shown, Mapping) and not isinstance(shown, xr.Dataset)
        else [("", shown)]
    )
    edges = [_edges(name, array, count) for name, array in named]
    if not edges:
        raise ArgumentError("arrays is empty; pass a labeled array (step key_step), or several by name")
    layers = sorted({each for one in edges for each in one.layers})
    number = None if layer is None else check_whole("layer", layer)
    if number is not None and number not in layers:
        available = f"they have layers {_numbers(layers)}" if layers else "no array has an axis layer"
        raise SelectionError(f"layer={layer} is in none of the arrays; {available}")
    return Steps(trace, edges, -1 if number is None else number, args, window=window, selected=selected)


def _edges(name: str, array: Array, count: int) -> Edges:
    if isinstance(array, xr.Dataset):
        candidates = [each for each in array.data_vars.values() if {"step", "key_step"} <= set(each.dims)]
        array = candidates[0] if candidates else xr.DataArray()
    if not isinstance(array, xr.DataArray) or not {"step", "key_step"} <= set(array.dims):
        got = f"the axes {array.dims}" if isinstance(array, xr.DataArray) else f"a {type(array).__name__}"
        raise ArgumentError(f"{visible(name) or 'arrays'} must be a labeled array (step key_step), got {got}")
    check_numbers(visible(name) or "arrays", array)
    extra = set(array.dims) - {"layer", "head", "step", "key_step"}
    if extra or array.sizes["step"] != count or array.sizes["key_step"] != count:
        raise ArgumentError(
            f"{visible(name) or 'arrays'} must have the axes step and key_step, and optionally layer and head; "
            f"this trace has {count} steps, got {dict(array.sizes)}"
        )
    over = f", mean over {array.sizes['head']} heads" if "head" in array.dims else ""
    attrs = array.attrs
    label = visible(str(name or attrs.get("long_name") or array.name or "between steps"))
    each = array if "layer" in array.dims else array.expand_dims("layer")
    numbers = array["layer"].values if "layer" in array.dims else np.array([], int)
    layers = tuple((numbers if numbers.dtype.kind in "iu" else np.arange(len(numbers))).tolist())
    values = np.empty((each.sizes["layer"], count, count), "f4")
    total, known = np.zeros((count, count)), np.zeros((count, count), "i4")
    for place in range(len(values)):  # one layer at a time: all heads of all layers at once need many times the memory
        one = each.isel(layer=place)
        one = (one.mean("head") if over else one).transpose("step", "key_step").values
        finite = np.isfinite(one)
        values[place] = np.where(finite, one, np.nan)
        total += np.where(finite, one, 0)
        known += finite
    mean = np.where(known > 0, total / np.maximum(known, 1), np.nan).astype("f4")
    return Edges(label, visible(str(attrs.get("units", ""))), over, layers, values, mean)


def _scale(matrix: np.ndarray) -> tuple[float, bool]:
    """The largest magnitude off the diagonal (1.0 if all are 0), and whether any of those values is negative."""
    off = matrix[~np.eye(len(matrix), dtype=bool) & np.isfinite(matrix)]
    return float(np.abs(off).max(initial=0.0)) or 1.0, bool((off < 0).any())


def _numbers(layers: Sequence[int]) -> str:
    first, last = min(layers, default=0), max(layers, default=-1)
    return f"{first} to {last}" if len(layers) == last - first + 1 else ", ".join(map(str, layers))


def matrix_row(label: str, unit: str, axes: str, matrix: np.ndarray) -> snapshot_html.Row:
    """A row of a snapshot: the matrix (step key_step), step 0 at the top left."""
    largest, signed = _scale(matrix)
    factor = -(-len(matrix) // HEIGHT)
    cells = pooled(matrix, factor)
    later = np.triu_indices(len(cells), 1)
    if not np.nan_to_num(cells[later]).any():
        cells = cells.copy()
        cells[later] = np.nan  # a step has no links to later ones: empty, not zero
    numbers = [str(step) for step in range(0, len(matrix), factor)]
    picture = heat_map(
        cells,
        Axis("step", numbers),
        Axis("key_step", numbers),
        Scale(-largest if signed else 0.0, largest, "both" if signed else "blue", unit),
    )
    axes += f"; steps 0 to {len(matrix) - 1}"
    axes += f"; downsampled, {factor} × {factor} steps a cell" if factor > 1 else ""
    scale = f"{range_text(-largest if signed else 0.0, largest)} {unit}"
    return snapshot_html.Row(label, axes, scale=scale, drawing=picture)


def _edges_row(each: Edges, layer: int) -> snapshot_html.Row:
    where = f", layer {layer}" if layer >= 0 else f", mean over {len(each.layers)} layers" if each.layers else ""
    return matrix_row(each.label, each.unit, f"row: step, column: key_step{each.over}{where}", each.of(layer))
