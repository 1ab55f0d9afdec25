"""The score sheet: lanes of a run over one token axis, and the display of a trace in Jupyter."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from itertools import pairwise
from typing import Any

import numpy as np
import xarray as xr

from workbench.analysis.lens import prediction_depth
from workbench.checks import check_choice, check_items, check_numbers, check_type
from workbench.errors import ArgumentError, HookNameError
from workbench.text import range_text, shown, visible
from workbench.traces import Trace
from workbench.traces.model_parts import has_router, has_sinks
from workbench.views import snapshot_html
from workbench.views.lane_scale import SCALES, scale_ends, scale_range
from workbench.views.outline import message_ribbon, message_texts, parts
from workbench.views.payload import Payload
from workbench.views.step_links import strongest
from workbench.views.steps_view import matrix_row
from workbench.views.view import View, fitted, lane

LANES = (
    "transcript",
    "forced_answer",
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
    """One lane: its name, and its values or a text on how to get them."""

    name: str
    label: str
    unit: str = ""
    kind: str = "bars"  # "bars" (pos), "heat" (row pos), "arcs" (step key_step), "text"
    values: np.ndarray | None = None
    missing: str = ""
    keep: str = "max"  # how tokens that share a column are pooled
    low: float | None = None
    high: float | None = None
    ramp: str = "blue"
    names: tuple[str, ...] = ()  # of the rows, if they are not layers

    def header(self) -> dict[str, Any]:
        rows = self.values.shape[0] if self.values is not None and self.values.ndim == 2 else 1
        keys = ("name", "label", "unit", "kind", "missing", "keep", "low", "high")
        return {key: getattr(self, key) for key in keys} | {
            "ramp": self.ramp,
            "names": list(self.names) or None,
            "rows": rows,
            "size": rows,
        }


class ScoreSheet(View):
    """The view that `score_sheet` makes."""

    module = "score_sheet_view"
    call = "wb.views.score_sheet(trace"

    def __init__(
        self,
        trace: Trace,
        lanes: Mapping[str, Lane],
        shown: Sequence[str],
        args: str,
        tall: int,
        scale: str = "generated",
        **place,
    ):
        super().__init__(trace, **place)
        self.scale = scale
        self.lanes, self.shown, self.args, self.tall = dict(lanes), tuple(shown), args, tall

    def payload(self) -> Payload:
        header, arrays = self.common()
        header |= {
            "args": self.args,
            "lanes": [each.header() for each in self.lanes.values()],
            "shown": list(self.shown),
            "tall": self.tall,
            "scale": self.scale,
        }
        for each in self.lanes.values():
            if each.values is not None and each.kind == "arcs":
                arrays[f"ends:{each.name}"], arrays[f"lane:{each.name}"] = strongest(each.values)
            elif each.values is not None:
                arrays[f"lane:{each.name}"] = each.values
        _add_predictions(self.trace, header, arrays)
        return header, arrays

    def snapshot(self) -> list[snapshot_html.Row]:
        texts = message_texts(self.trace, 600) if "transcript" in self.shown else []
        over = scale_range(self.scale, self.trace, self.window)
        lanes = [_lane_row(self.lanes[name], over) for name in self.shown if name != "transcript"]
        return [message_ribbon(self.trace), *texts, *lanes]


def score_sheet(
    trace: Trace,
    lanes: str | xr.DataArray | Sequence[str | xr.DataArray] | None = None,
    *,
    forced_answer: xr.Dataset | xr.DataArray | None = None,
    drift: xr.Dataset | xr.DataArray | None = None,
    arcs: xr.Dataset | xr.DataArray | None = None,
    scale: str = "generated",
    window: Sequence[int] | None = None,
    selected: int | None = None,
) -> ScoreSheet:
    """A view of a run over one token axis: the transcript, and below it the lanes in the order of `lanes`.

    Lanes from the trace: "transcript"; "logprob" of the token, in nats; "entropy" of the next token, in nats; "depth",
    the prediction depth (the layer from which on the lens predicts what the model predicts); "sink", the mass on the
    learned sinks, mean over heads; "margin" of the router, in logits; "norm", log₁₀ of the L2 norm of resid_post. Lanes
    that need an analysis: "forced_answer", "drift" (routing drift from the previous step, in bits) and "arcs" (links
    between steps). A lane that the trace does not have shows how to get it.

    The generated tokens set the scales of the lanes, because tokens of the prompt often are very unlikely; a menu
    changes that. Values beyond a scale are clipped: orange ends of bars, and the farthest value in orange beside them;
    "≤" and "≥" beside colors.

    Args:
        trace: the run.
        lanes: names of lanes or of recorded arrays, and arrays of your own, with the axes (pos) or (layer pos); a name
            alone is one lane. Without it, all lanes for which the model has the parts.
        forced_answer: the result of `wb.reasoning.forced_answer(model, trace)`.
        drift: the result of `wb.routing.routing_drift(trace)`.
        arcs: an array with step and key_step, for example the result of `wb.reasoning.suppression(model, trace)`.
        scale: the tokens that set the scales: "generated", "shown" (in the window, and not filtered out) or "run".
        window: the positions (first, stop) shown first.
        selected: the pinned position.

    Raises:
        ArgumentError: an unknown lane or scale, or an array that does not fit the trace.
        NotRecorded: a name that this trace does not hold.

    >>> sheet = wb.views.score_sheet(trace, ["transcript", "entropy", "sink"], selected=12)
    >>> sheet.selected, sheet
    ({'pos': 12}, <score_sheet of pocket: 64 tokens>)
    """
    check_type("views.score_sheet", trace, Trace)
    if isinstance(lanes, str | xr.DataArray):
        lanes = [lanes]
    check_choice("scale", scale, SCALES)
    lanes = None if lanes is None else check_items("lanes", lanes, low=0)
    n = len(trace)
    known = {each.name: each for each in _builtin_lanes(trace, forced_answer, drift, arcs)}
    if lanes is not None:
        lanes = [
            each if not isinstance(each, str) or each in known else _recorded(each, trace, known) for each in lanes
        ]
    own = [each for each in lanes or () if not isinstance(each, str)]
    names = _lanes_of_model(trace) if lanes is None else [each if isinstance(each, str) else "" for each in lanes]
    own_lanes = iter([_own_lane(array, number, trace) for number, array in enumerate(own)])
    named: dict[str, Lane] = {}
    for name in names:
        each = known[name] if name else next(own_lanes)
        named[each.name] = each
    arguments = {"forced_answer": forced_answer, "drift": drift, "arcs": arcs}
    args = "".join(f", {name}={name}" for name, value in arguments.items() if value is not None)
    tall = 260 if n <= 600 else 320
    offered = {name: known[name] for name in _lanes_of_model(trace)}
    return ScoreSheet(
        trace, named | offered | named, list(named), args, tall, scale=scale, window=window, selected=selected
    )


class Compact(ScoreSheet):
    """The display of a trace in Jupyter; its `repr` is that of the trace."""

    def __repr__(self) -> str:
        return repr(self.trace)


def compact(trace: Trace) -> ScoreSheet:
    """The score sheet that displays a trace in Jupyter: a few lanes, the others in its menu."""
    known = {each.name: each for each in _builtin_lanes(trace, None, None, None)}
    shown = [name for name in COMPACT if name == "transcript" or known[name].values is not None]
    offered = {name: known[name] for name in _lanes_of_model(trace)}
    return Compact(trace, offered, shown, "", 180)


# The lanes.


def _builtin_lanes(trace: Trace, forced_answer: Any, drift: Any, arcs: Any) -> list[Lane]:
    n, layers = len(trace), trace.config["n_layers"]

    def recorded(name: str, *shape: int) -> dict[str, Any]:
        absent = name == "margin" and not has_router(trace.config)
        return {
            "values": lane(trace, name, *shape),
            "missing": "this model has no router" if absent else _MISSING.format(name),
        }

    norm = recorded("resid_norm", layers, n)
    with np.errstate(divide="ignore", invalid="ignore"):
        norm["values"] = None if norm["values"] is None else _finite(np.log10(norm["values"]))
    return [
        Lane("transcript", "transcript", kind="text"),
        _forced_answer(forced_answer, n),
        Lane("logprob", "log-probability", "of the token, nats", **recorded("logprob", n), keep="min", high=0.0),
        Lane("entropy", "entropy", "of the next token, nats", **recorded("entropy", n), low=0.0),
        _depth(trace),
        Lane(
            "sink",
            "sink mass",
            "mean over heads",
            "heat",
            _sinks(trace),
            _MISSING.format("sink") if has_sinks(trace.config) else "this model has no sinks",
            low=0.0,
        ),
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


def _lanes_of_model(trace: Trace) -> list[str]:
    """The names of `LANES`, without those of parts that the model does not have."""
    absent = {"sink"} if not has_sinks(trace.config) else set()
    absent |= {"margin", "drift"} if not has_router(trace.config) else set()
    return [name for name in LANES if name not in absent]


_MISSING = 'not in this trace; every trace recorded by workbench has "{}"'


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
    options: dict[str, Any] = {"high": float(max(trace.config["n_layers"] - 1, 1)), "low": 0.0}
    label, unit = "prediction depth", "layer from which lens = model"
    if "lens_ids" not in trace:
        return Lane("depth", label, unit, missing='not in this trace; record="lens" records it', **options)
    try:
        return Lane("depth", label, unit, values=fitted(prediction_depth(trace).values, len(trace)), **options)
    except (IndexError, ValueError):  # its lens arrays have an unexpected shape
        return Lane(
            "depth", label, unit, missing="not in this trace: its lens arrays have an unexpected shape", **options
        )


def _variable(what: str, array: Any, name: str) -> xr.DataArray:
    """A labeled array of real numbers: `array` itself, or the variable `name` of a Dataset."""
    if isinstance(array, xr.Dataset):
        if name not in array:
            raise ArgumentError(f"{what} must have the variable {name!r}; this Dataset has {visible(str([*array]))}.")
        array = array[name]
    check_type(what, array, xr.DataArray)
    check_numbers(what, array)
    return array


def _forced_answer(curve: Any, n: int) -> Lane:
    options: dict[str, Any] = {
        "label": "forced answer",
        "unit": "p of the answer if the model has to answer here",
        "low": 0.0,
        "high": 1.0,
        "ramp": "purple",
    }
    if curve is None:
        return Lane(
            "forced_answer",
            missing="needs the model: score_sheet(trace, forced_answer=wb.reasoning.forced_answer(model, trace))",
            **options,
        )
    curve = _variable("forced_answer", curve, "p")
    if set(curve.dims) != {"step", "answer"} or "pos" not in curve.coords:
        raise ArgumentError(
            f"forced_answer must be the result of wb.reasoning.forced_answer(model, trace), with axes (step, answer), "
            f"got {curve.dims}."
        )
    values, ends = curve.transpose("answer", "step").values, [*curve["pos"].values.tolist(), n]
    rows = np.full((len(values), n), np.nan, "f4")
    for number, (start, stop) in enumerate(pairwise(ends)):
        rows[:, max(start, 0) : stop] = values[:, number, None]
    if len(rows) == 1:
        return Lane("forced_answer", values=rows[0], **options)
    names = tuple(visible(str(name), "↵") for name in curve["answer"].values)
    return Lane("forced_answer", kind="heat", values=rows, names=names, **options)


def _drift(trace: Trace, drift: Any) -> Lane:
    options: dict[str, Any] = {
        "label": "routing drift",
        "unit": "from the previous step, in bits",
        "kind": "heat",
        "ramp": "both",
    }
    if drift is None:
        return Lane(
            "drift", missing="takes a while: score_sheet(trace, drift=wb.routing.routing_drift(trace))", **options
        )
    drift = _variable("drift", drift, "drift")
    steps = parts(trace)
    if set(drift.dims) != {"layer", "step", "key_step"} or drift.sizes["step"] != len(steps):
        raise ArgumentError(
            f"drift must be the result of wb.routing.routing_drift(trace), with axes (layer, step, key_step) and "
            f"{len(steps)} steps, "
            f"got {dict(drift.sizes)}."
        )
    values = drift.transpose("layer", "step", "key_step").values
    rows = np.full((len(values), len(trace)), np.nan, "f4")
    for number, step in enumerate(steps[1:], 1):
        rows[:, step.start : step.stop] = values[:, number, number - 1, None]
    largest = float(np.nanmax(np.abs(rows), initial=0.0)) or 1.0
    return Lane("drift", values=rows, low=-largest, high=largest, **options)


def _arcs(trace: Trace, links: Any) -> Lane:
    if links is None:
        hint = "needs the model: score_sheet(trace, arcs=wb.reasoning.suppression(model, trace))"
        return Lane("arcs", "causal edges", "between steps", "arcs", missing=hint)
    edges = _variable("arcs", links, "effect")
    count = len(parts(trace))
    if set(edges.dims) != {"step", "key_step"} or edges.shape != (count, count):
        raise ArgumentError(
            f"arcs must have the axes (step, key_step), and this trace has {count} steps; got {dict(edges.sizes)}"
        )
    label = visible(str(edges.attrs.get("long_name", "causal edges")))
    unit = visible(str(edges.attrs.get("units", "nats")))
    values = _finite(edges.transpose("step", "key_step").values.astype("f4"))
    return Lane("arcs", label, f"between steps, {unit}", "arcs", np.nan_to_num(values))


def _recorded(name: str, trace: Trace, known: Iterable[str]) -> xr.DataArray:
    """The recorded array of a name that is not a lane's; ArgumentError with the nearest lanes for an unknown name."""
    try:
        return trace.array(name)
    except HookNameError:
        names = [*known, *(key for key in trace._ipython_key_completions_() if isinstance(key, str))]
    near = get_close_matches(name[:100], dict.fromkeys(names), 2)
    hint = f" Did you mean {' or '.join(map(repr, map(visible, near)))}?" if near else ""
    raise ArgumentError(
        f"lane {shown(name)} does not exist.{hint} Use {', '.join(known)}, a recorded name over (pos) or (layer pos), "
        "or an array of your own."
    )


def _own_lane(array: xr.DataArray, number: int, trace: Trace) -> Lane:
    n = len(trace)
    if not isinstance(array, xr.DataArray) or not 1 <= array.ndim <= 2 or array.sizes.get("pos") != n:
        raise ArgumentError(
            f"a lane of your own must be a DataArray (pos) or (layer pos) with {n} positions, as from "
            f"trace.array('entropy'); got {_type_or_sizes(array)}"
        )
    check_numbers("a lane of your own", array)
    name = visible(str(array.name or array.attrs.get("long_name") or f"own {number + 1}"))
    labels = (name, visible(str(array.attrs.get("long_name", name))), visible(str(array.attrs.get("units", ""))))
    if array.ndim == 1:
        return Lane(*labels, values=_finite(np.array(array.values, "f4")))
    [axis] = [str(dim) for dim in array.dims if dim != "pos"]
    values = _finite(np.array(array.transpose(axis, "pos").values, "f4"))
    if axis == "layer":
        return Lane(*labels, kind="heat", values=values)
    return Lane(*labels, kind="heat", values=values, names=tuple(f"{visible(axis)} {k}" for k in range(len(values))))


def _type_or_sizes(array: Any) -> str:
    return f"{dict(array.sizes)}" if isinstance(array, xr.DataArray) else type(array).__name__


def _add_predictions(trace: Trace, header: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
    """Add the three most likely next tokens at each position to the payload."""
    if "top_ids" not in trace or "top_logprobs" not in trace:
        return
    ids, logprobs = np.asarray(trace["top_ids"]), np.asarray(trace["top_logprobs"], np.float32)
    if ids.ndim != 2 or ids.shape != logprobs.shape or len(ids) > len(trace) or ids.shape[1] < 3:
        return
    vocab_text = trace.vocab_text
    token_ids, place = np.unique(ids[:, :3], return_inverse=True)
    texts = header["token_texts"]
    first = len(texts)
    texts += [visible(vocab_text[i], "\n") if i in vocab_text else f"#{i}" for i in token_ids.tolist()]
    arrays["top_text_ids"] = (first + place.reshape(-1, 3)).astype("u2" if len(texts) <= 0xFFFF else "u4")
    arrays["top_probability"] = np.nan_to_num(np.exp(logprobs[:, :3]))


def _lane_row(each: Lane, over: slice | np.ndarray) -> snapshot_html.Row:
    if each.values is None:
        return snapshot_html.Row(each.label, each.unit, text=each.missing)
    if each.kind == "arcs":
        return matrix_row(each.label, each.unit, "row: to, column: from", each.values)
    low, high = scale_ends(each.values, each.low, each.high, over)
    if each.kind == "bars":  # they start at 0
        low, high = min(low, 0.0) if each.low is None else low, max(high, 0.0) if each.high is None else high
    clipped = ", clipped" if (each.values < low).any() or (each.values > high).any() else ""
    scale = range_text(low, high) + clipped
    unit = each.unit + (f"; downsampled ({each.keep})" if each.values.shape[-1] > snapshot_html.WIDTH else "")
    if each.kind == "heat":
        picture = snapshot_html.heat(each.values, each.keep, low, high, each.ramp)
        return snapshot_html.Row(each.label, unit, picture, scale=scale, height=48)
    picture = snapshot_html.bars(each.values, each.keep, low, high)
    return snapshot_html.Row(each.label, unit, picture, scale=scale, height=32)
