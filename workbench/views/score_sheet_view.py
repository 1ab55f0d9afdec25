"""The score sheet: a whole run over one token axis, lane under lane; how a trace shows itself."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import xarray as xr

from workbench.analysis.lens import prediction_depth
from workbench.errors import ArgumentError
from workbench.text import range_text, visible
from workbench.traces import Trace
from workbench.views import snapshot_html
from workbench.views.outline import message_ribbon, message_texts, parts
from workbench.views.payload import Payload
from workbench.views.step_links import strongest
from workbench.views.steps_view import matrix_row
from workbench.views.view import View, fitted, lane

LANES = (
    "transcript",
    "belief",
    "logprob",
    "entropy",
    "depth",
    "sink",
    "margin",
    "drift",
    "norm",
    "arcs",
)
COMPACT = ("transcript", "logprob", "entropy", "sink", "margin")


@dataclass(frozen=True, slots=True)
class Lane:
    """One lane: what it is called, its numbers if there are any, and what would give them if not."""

    name: str
    label: str
    unit: str = ""
    kind: str = "bars"  # "bars" (pos), "heat" (row pos), "arcs" (step key_step), "text"
    values: np.ndarray | None = None
    missing: str = ""
    keep: str = "max"  # of tokens that share a column
    low: float | None = None
    high: float | None = None
    ramp: str = "blue"
    names: tuple[str, ...] = ()  # of the rows, where they are not layers

    def header(self) -> dict[str, Any]:
        rows = self.values.shape[0] if self.values is not None and self.values.ndim == 2 else 1
        said = {key: getattr(self, key) for key in ("name", "label", "unit", "kind", "missing", "keep", "low", "high")}
        return said | {"ramp": self.ramp, "names": list(self.names) or None, "rows": rows, "size": rows}


class ScoreSheet(View):
    """What `score_sheet` gives."""

    module = "score_sheet_view"
    call = "wb.views.score_sheet(trace"

    def __init__(self, trace: Trace, lanes: Mapping[str, Lane], shown: Sequence[str], args: str, tall: int, **place):
        super().__init__(trace, **place)
        self.lanes, self.shown, self.args, self.tall = dict(lanes), tuple(shown), args, tall

    def payload(self) -> Payload:
        header, arrays = self.common()
        header |= {
            "args": self.args,
            "lanes": [each.header() for each in self.lanes.values()],
            "shown": list(self.shown),
            "tall": self.tall,
        }
        for each in self.lanes.values():
            if each.values is not None and each.kind == "arcs":
                arrays[f"ends:{each.name}"], arrays[f"lane:{each.name}"] = strongest(each.values)
            elif each.values is not None:
                arrays[f"lane:{each.name}"] = each.values
        _expect(self.trace, header, arrays)
        return header, arrays

    def snapshot(self) -> list[snapshot_html.Row]:
        texts = message_texts(self.trace, 600) if "transcript" in self.shown else []
        lanes = [_lane_row(self.lanes[name]) for name in self.shown if name != "transcript"]
        return [message_ribbon(self.trace), *texts, *lanes]


def score_sheet(
    trace: Trace,
    lanes: Sequence[str | xr.DataArray] | None = None,
    *,
    belief: xr.Dataset | xr.DataArray | None = None,
    drift: xr.Dataset | xr.DataArray | None = None,
    arcs: xr.Dataset | xr.DataArray | None = None,
    window: Sequence[int] | None = None,
    selected: int | None = None,
) -> ScoreSheet:
    """A run over one token axis: the transcript, and under it the lanes that are named, in that order.

    The lanes are "transcript", "logprob" (of the token, nats), "entropy" (of the next, nats), "depth" (the layer from
    which on the lens says what the model says), "sink" (mass on the learned sinks, mean over heads), "margin" (of the
    router, logits), "norm" (log₁₀ of the L2 norm of resid_post); and what takes an experiment: "belief" (give
    `belief=wb.reasoning.forced_answer(model, trace)`), "drift" (of routing from the step before, bits;
    `drift=wb.routing.routing_drift(trace)`), "arcs" (from step to step: `arcs=wb.reasoning.suppression(model, trace)`,
    or any array with step and key_step). An array of your own, (pos) or (layer pos), is a lane too. A lane that the
    trace lacks says what would record it. `window` is the stretch shown first, `selected` the position that is pinned.

    >>> sheet = wb.views.score_sheet(trace, ["transcript", "entropy", "sink"], selected=12)
    >>> sheet.selected, sheet
    ({'pos': 12}, <score_sheet of pocket: 64 tokens>)

    Raises ArgumentError for a lane that there is not, or an array that does not fit the trace.
    """
    n, own = len(trace), [each for each in lanes or () if not isinstance(each, str)]
    known = {each.name: each for each in _known(trace, belief, drift, arcs)}
    names = list(LANES) if lanes is None else [each if isinstance(each, str) else "" for each in lanes]
    wrong = [name for name in names if name and name not in known]
    if wrong:
        raise ArgumentError(
            f"there is no lane {visible(repr(wrong[0]))}; there are {', '.join(known)}, and your own arrays"
        )
    mine = iter([_own(array, number, trace) for number, array in enumerate(own)])
    named: dict[str, Lane] = {}
    for name in names:
        each = known[name] if name else next(mine)
        named[each.name] = each
    given = {"belief": belief, "drift": drift, "arcs": arcs}
    args = "".join(f", {name}={name}" for name, value in given.items() if value is not None)
    tall = 260 if n <= 600 else 320
    return ScoreSheet(trace, named | known | named, list(named), args, tall, window=window, selected=selected)


class Compact(ScoreSheet):
    """A trace, as it shows itself."""

    def __repr__(self) -> str:
        return repr(self.trace)


def compact(trace: Trace) -> ScoreSheet:
    """The few lanes that a trace shows of itself in Jupyter; the others are in its menu."""
    known = {each.name: each for each in _known(trace, None, None, None)}
    shown = [name for name in COMPACT if name == "transcript" or known[name].values is not None]
    return Compact(trace, known, shown, "", 180)


# The lanes.


def _known(trace: Trace, belief: Any, drift: Any, arcs: Any) -> list[Lane]:
    n, layers = len(trace), trace.config["n_layers"]

    def recorded(name: str, *shape: int) -> dict[str, Any]:
        return {"values": lane(trace, name, *shape), "missing": _EVERY.format(name)}

    norm = recorded("resid_norm", layers, n)
    with np.errstate(divide="ignore", invalid="ignore"):
        norm["values"] = None if norm["values"] is None else _finite(np.log10(norm["values"]))
    return [
        Lane("transcript", "transcript", kind="text"),
        _belief(belief, n),
        Lane("logprob", "log-probability", "of the token, nats", **recorded("logprob", n), keep="min", high=0.0),
        Lane("entropy", "entropy", "of the next token, nats", **recorded("entropy", n), low=0.0),
        _depth(trace),
        Lane("sink", "sink mass", "mean over the heads", "heat", _sinks(trace), _EVERY.format("sink"), low=0.0),
        Lane(
            "margin",
            "router margin",
            "last chosen − first not chosen, logits",
            "heat",
            **recorded("margin", layers, n),
            keep="min",
            low=0.0,
            ramp="brown",
        ),
        _drift(trace, drift),
        Lane("norm", "residual norm", "log₁₀ of the L2 norm of resid_post", "heat", **norm, ramp="green"),
        _arcs(trace, arcs),
    ]


_EVERY = 'not in this trace; every recording of workbench has "{}"'


def _finite(values: np.ndarray) -> np.ndarray:
    return np.where(np.isfinite(values), values, np.nan).astype("f4")


def _sinks(trace: Trace) -> np.ndarray | None:
    """Mean over the heads (layer pos); NaN in layers that were not recorded."""
    n, layers = len(trace), trace.config["n_layers"]
    rows = np.full((layers, n), np.nan, "f4")
    for layer in range(layers):
        if ("sink", layer) in trace:
            mass = np.asarray(trace["sink", layer], np.float32)
            row = fitted(mass.mean(0), n) if mass.ndim == 2 and len(mass) else None
            if row is not None:
                rows[layer] = row
    return rows if np.isfinite(rows).any() else None


def _depth(trace: Trace) -> Lane:
    about: dict[str, Any] = {"high": float(max(trace.config["n_layers"] - 1, 1)), "low": 0.0}
    label, unit = "settles at layer", "from where on lens = model"
    if "lens_ids" not in trace:
        return Lane("depth", label, unit, missing='not in this trace; record="lens" records it', **about)
    try:
        return Lane("depth", label, unit, values=fitted(prediction_depth(trace).values, len(trace)), **about)
    except (IndexError, ValueError):  # of another size than a lens
        return Lane("depth", label, unit, missing="not in this trace: its lens has another size", **about)


def _belief(found: Any, n: int) -> Lane:
    about: dict[str, Any] = {
        "label": "belief",
        "unit": "p of the answer if it stopped here",
        "low": 0.0,
        "high": 1.0,
        "ramp": "purple",
    }
    if found is None:
        return Lane(
            "belief",
            missing="an experiment: score_sheet(trace, belief=wb.reasoning.forced_answer(model, trace))",
            **about,
        )
    curve = found["p"] if isinstance(found, xr.Dataset) else found
    if set(curve.dims) != {"step", "answer"} or "pos" not in curve.coords:
        raise ArgumentError(
            f"belief must be what wb.reasoning.forced_answer(model, trace) gives, (step answer), got {curve.dims}."
        )
    values, ends = curve.transpose("answer", "step").values, [*curve["pos"].values.tolist(), n]
    rows = np.full((len(values), n), np.nan, "f4")
    for number, (start, stop) in enumerate(pairwise(ends)):
        rows[:, max(start, 0) : stop] = values[:, number, None]
    if len(rows) == 1:
        return Lane("belief", values=rows[0], **about)
    names = tuple(visible(str(name), " ") for name in curve["answer"].values)
    return Lane("belief", kind="heat", values=rows, names=names, **about)


def _drift(trace: Trace, found: Any) -> Lane:
    about: dict[str, Any] = {
        "label": "routing drift",
        "unit": "from the step before, in bits",
        "kind": "heat",
        "ramp": "both",
    }
    if found is None:
        return Lane(
            "drift", missing="costs a while: score_sheet(trace, drift=wb.routing.routing_drift(trace))", **about
        )
    drift = found["drift"] if isinstance(found, xr.Dataset) else found
    pieces = parts(trace)
    if set(drift.dims) != {"layer", "step", "key_step"} or drift.sizes["step"] != len(pieces):
        raise ArgumentError(
            f"drift must be wb.routing.routing_drift(trace), with (layer, {len(pieces)} steps, …), "
            f"got {dict(drift.sizes)}."
        )
    values = drift.transpose("layer", "step", "key_step").values
    rows = np.full((len(values), len(trace)), np.nan, "f4")
    for number, piece in enumerate(pieces[1:], 1):
        rows[:, piece.start : piece.stop] = values[:, number, number - 1, None]
    most = float(np.nanmax(np.abs(rows), initial=0.0)) or 1.0
    return Lane("drift", values=rows, low=-most, high=most, **about)


def _arcs(trace: Trace, found: Any) -> Lane:
    if found is None:
        hint = "an experiment: score_sheet(trace, arcs=wb.reasoning.suppression(model, trace))"
        return Lane("arcs", "causal edges", "from step to step", "arcs", missing=hint)
    edges = found["effect"] if isinstance(found, xr.Dataset) else found
    count = len(parts(trace))
    if set(edges.dims) != {"step", "key_step"} or edges.shape != (count, count):
        raise ArgumentError(f"arcs is {dict(edges.sizes)}; it takes (step, key_step), and this trace has {count} steps")
    label = visible(str(edges.attrs.get("long_name", "causal edges")))
    unit = visible(str(edges.attrs.get("units", "nats")))
    values = _finite(edges.transpose("step", "key_step").values.astype("f4"))
    return Lane("arcs", label, f"from step to step, {unit}", "arcs", np.nan_to_num(values))


def _own(array: xr.DataArray, number: int, trace: Trace) -> Lane:
    n = len(trace)
    if not isinstance(array, xr.DataArray) or not 1 <= array.ndim <= 2 or array.sizes.get("pos") != n:
        raise ArgumentError(
            f"a lane of your own must be a DataArray (pos) or (layer pos) with {n} positions, not {_what(array)}"
        )
    name = visible(str(array.name or array.attrs.get("long_name") or f"own {number + 1}"))
    about = (name, visible(str(array.attrs.get("long_name", name))), visible(str(array.attrs.get("units", ""))))
    if array.ndim == 1:
        return Lane(*about, values=_finite(np.array(array.values, "f4")))
    [axis] = [str(dim) for dim in array.dims if dim != "pos"]
    values = _finite(np.array(array.transpose(axis, "pos").values, "f4"))
    if axis == "layer":
        return Lane(*about, kind="heat", values=values)
    return Lane(*about, kind="heat", values=values, names=tuple(f"{visible(axis)} {k}" for k in range(len(values))))


def _what(array: Any) -> str:
    return f"{dict(array.sizes)}" if isinstance(array, xr.DataArray) else type(array).__name__


def _expect(trace: Trace, header: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
    """Adds the three likeliest next tokens of each position."""
    if "top_ids" not in trace or "top_logprobs" not in trace:
        return
    ids, chances = np.asarray(trace["top_ids"]), np.asarray(trace["top_logprobs"], np.float32)
    if ids.ndim != 2 or ids.shape != chances.shape or len(ids) > len(trace) or ids.shape[1] < 3:
        return
    words = trace.vocab_text
    different, place = np.unique(ids[:, :3], return_inverse=True)
    first = len(header["words"])
    header["words"] += [visible(words[i], "\n") if i in words else f"#{i}" for i in different.tolist()]
    arrays["top"] = (first + place.reshape(-1, 3)).astype("u2" if len(header["words"]) <= 0xFFFF else "u4")
    arrays["chance"] = np.nan_to_num(np.exp(chances[:, :3]))


def _lane_row(each: Lane) -> snapshot_html.Row:
    if each.values is None:
        return snapshot_html.Row(each.label, each.unit, text=each.missing)
    finite = each.values[np.isfinite(each.values)]
    least, most = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 0.0)
    low, high = each.low if each.low is not None else least, each.high if each.high is not None else most
    scale = range_text(low, high)
    shared = (
        f"; downsampled ({each.keep})" if each.values.shape[-1] > snapshot_html.WIDTH and each.kind != "arcs" else ""
    )
    if each.kind == "arcs":
        return matrix_row(each.label, each.unit, "row: to, column: from", each.values)
    if each.kind == "heat":
        picture = snapshot_html.heat(each.values, each.keep, low, high, each.ramp)
        return snapshot_html.Row(each.label, each.unit + shared, picture, scale=scale, height=48)
    low = min(low, 0.0) if each.low is None else low
    return snapshot_html.Row(
        each.label, each.unit + shared, snapshot_html.bars(each.values, each.keep, low, high), scale=scale, height=32
    )
