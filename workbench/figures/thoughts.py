"""Figures of a text: rows over its tokens, and the effects of the steps of a chain of thought on each other."""

from collections.abc import Mapping, Sequence

import numpy as np
import xarray as xr

from workbench.checks import check_outcomes, check_slice, check_text, check_texts, check_type, check_whole
from workbench.errors import ArgumentTypeError, FigureError
from workbench.figures.arrays import _label, _note, check_labeled, rings
from workbench.figures.labels import token
from workbench.figures.marks import Arcs, Bars, Blocks, Cells, Mark
from workbench.figures.spec import WIDTHS, Axis, Figure, Panel, Tick
from workbench.text import shown
from workbench.traces import Trace
from workbench.traces.steps import steps

MAX_TOKEN_LABELS = 110  # tokens whose texts fit below a page
POSITION_AXES = ("pos", "query", "key")
# the colors of messages, those of the views; all others are 6, gray
CHANNELS = {"analysis": 7, "final": 2, "commentary": 3, "user": 5, "tool": 4}


def strip(
    lanes: Mapping[str, xr.DataArray] | Sequence[str],
    trace: Trace,
    where: slice | None = None,
    *,
    title: str = "",
    note: str = "",
    width: float = WIDTHS["page"],
    height: float | None = None,
) -> Figure:
    """One lane for each array, one column for each token, with messages and steps above and token texts below.

    Columns are bars rather than a curve, because there are no values between two tokens. If the tokens are too many for
    their texts, positions are shown instead.

    Args:
        lanes: title of a lane -> array over the positions of the text; or recorded names, such as ["entropy"]
        trace: the text
        where: the slice of positions to show; all by default
        title, note: the texts above and below
        width, height: in mm

    Raises:
        FigureError: an array has another axis than the positions of the text, or no position is shown
        NotRecorded, HookNameError: the trace has no array of a name

    >>> figure = strip(["entropy"], trace)
    >>> [mark.kind for panel in figure.panels for mark in panel.marks], figure.panels[-1].title
    (['blocks', 'blocks', 'bars'], 'entropy of the next token')
    """
    check_type("figures.strip", trace, Trace)
    if isinstance(lanes, str) or (isinstance(lanes, Sequence) and all(isinstance(name, str) for name in lanes)):
        arrays = [trace.array(name) for name in ([lanes] if isinstance(lanes, str) else lanes)]
        lanes = {str(array.attrs.get("long_name", array.name)): array for array in arrays}
    if not isinstance(lanes, Mapping):
        raise ArgumentTypeError(
            f"lanes must be a dict, as {{'entropy': trace.array('entropy')}}, or recorded names, got {shown(lanes)}."
        )
    for name, array in lanes.items():
        check_text("the title of a lane", name)
        check_labeled("figures.strip", array)
    positions = range(len(trace))[slice(None) if where is None else check_slice("where", where)]
    if not lanes or not positions:
        raise FigureError(
            "a strip needs at least one lane and one token: give arrays over positions, and a slice that is not empty"
        )
    axis = Axis(low=positions[0] - 0.5, high=positions[-1] + 0.5, hidden=True)
    messages = [(s.start, s.stop, s.channel or s.role) for s in trace.spans]
    panels = [_blocks(messages, positions, axis, colors=[CHANNELS.get(text, 6) for *_, text in messages])]
    step_blocks = [(step.start, step.stop, str(number)) for number, step in enumerate(steps(trace))]
    if any(start in positions for start, *_ in step_blocks):
        panels.append(_blocks(step_blocks, positions, axis, colors=[0] * len(step_blocks)))
    for name, array in lanes.items():
        if array.ndim != 1 or str(array.dims[0]) not in POSITION_AXES or array.size != len(trace):
            raise FigureError(
                f"lane {name!r} must have one axis of {len(trace)} positions; this array has "
                f"{dict(array.sizes)}: choose a layer or a head, or take a mean"
            )
        y = np.asarray(array.values, float)[list(positions)]
        bars = Bars(x=np.array(positions), y=y, width=1.0, color=0)
        units = str(array.attrs.get("units") or "")
        panels.append(Panel(marks=[bars], x=axis, y=Axis(label=units if units != "1" else ""), title=name))
    panels[-1] = Panel(marks=panels[-1].marks, x=_tokens(trace, positions), y=panels[-1].y, title=panels[-1].title)
    rows = [0.35 if isinstance(panel.marks[0], Blocks) else 1.0 for panel in panels]
    return Figure(
        panels=panels,
        title=title,
        note=note,
        width=width,
        height=12 + 16 * sum(rows) + 8 if height is None else height,
        rows=rows,
    )


def step_matrix(
    effect: xr.DataArray,
    texts: Sequence[str] | Trace,
    *,
    truth: xr.DataArray | np.ndarray | None = None,
    strongest: int | None = None,
    title: str = "",
    note: str = "",
    width: float = WIDTHS["text"],
    height: float | None = None,
) -> Figure:
    """The effect of each step on each later one (step key_step): a matrix, with arcs above it for the largest effects.

    Args:
        effect: the effects, of `key_step` on `step`
        texts: the texts of the steps, or the trace that has them
        truth: true where a step is known to depend on another (step key_step); these cells get a ring
        strongest: how many arcs are drawn; by default as many as `truth` has, or one for each step
        title, note: the texts above and below; if `attrs` has `n`, the note ends with it
        width, height: in mm

    Raises:
        FigureError: the array is not square, or there is not one text for each step

    >>> effect = xr.DataArray(np.tril(np.ones((3, 3)), -1), dims=("step", "key_step"), attrs={"units": "nats"})
    >>> figure = step_matrix(effect, ["a=3.", " b=a+4.", " c=b*2."], strongest=2)
    >>> [mark.kind for panel in figure.panels for mark in panel.marks], len(figure.panels[0].marks[0].weight)
    (['arcs', 'cells'], 2)
    """
    check_labeled("figures.step_matrix", effect)
    if isinstance(texts, Trace):
        texts = ["".join(texts.str_tokens[step.start : step.stop]) for step in steps(texts)]
    texts = check_texts("texts", texts)
    strongest = None if strongest is None else check_whole("strongest", strongest, 0)
    if effect.ndim != 2 or len(set(effect.shape)) != 1 or len(texts) != len(effect):
        raise FigureError(
            f"a step matrix must be square with one text for each step; got {dict(effect.sizes)} and {len(texts)} texts"
        )
    n = len(effect)
    values = np.array(effect.values, float)
    values[np.triu_indices(n)] = np.nan  # a step has no effect on itself and on earlier ones
    if strongest is None:
        strongest = int((check_outcomes("truth", truth) != 0).sum()) if truth is not None else n
    order = zip(*np.unravel_index(np.argsort(-np.nan_to_num(values), None, "stable"), (n, n)))
    pairs = [(int(i), int(j)) for i, j in list(order)[:strongest] if values[i, j] > 0]
    numbers: list[Tick] = [(float(i), str(i)) for i in range(n)]
    marks: list[Mark] = [
        Cells(values=values, label=_label(effect) or "effect"),
        *rings(truth, (n, n), "true dependency"),
    ]
    labels: list[Tick] = [(float(i), f"{_short(text)}  {i}") for i, text in enumerate(texts)]
    matrix = Panel(
        marks=marks,
        x=Axis(label="hidden step", ticks=numbers),
        y=Axis(ticks=labels, flipped=True),
    )
    panels, rows = [matrix], [1.0]
    if pairs:
        arcs = Arcs(
            source=[j for _, j in pairs], target=[i for i, _ in pairs], weight=[values[i, j] for i, j in pairs], color=0
        )
        bounds = Axis(low=-0.5, high=n - 0.5, hidden=True)
        panels, rows = [Panel(marks=[arcs], x=bounds, y=Axis(hidden=True, low=0)), matrix], [0.4, 1.0]
    height = float(np.clip(30 + 9 * n, 60, 160)) if height is None else height
    return Figure(panels=panels, title=title, note=_note(effect, note), width=width, height=height, rows=rows)


def _blocks(spans: Sequence[tuple[int, int, str]], positions: range, axis: Axis, colors: Sequence[int]) -> Panel:
    clipped = [
        (max(start, positions[0]), min(stop, positions[-1] + 1), text, color)
        for (start, stop, text), color in zip(spans, colors)
    ]
    clipped = [span for span in clipped if span[0] < span[1]]
    blocks = Blocks(
        start=[start - 0.5 for start, *_ in clipped],
        stop=[stop - 0.5 for _, stop, *_ in clipped],
        text=[text for *_, text, _ in clipped],
        colors=[color for *_, color in clipped],
    )
    return Panel(marks=[blocks], x=axis, y=Axis(low=0, high=1, hidden=True))


def _tokens(trace: Trace, positions: range) -> Axis:
    low, high = positions[0] - 0.5, positions[-1] + 0.5
    if len(positions) > MAX_TOKEN_LABELS:
        return Axis(label="position", whole=True, low=low, high=high)
    str_tokens = trace.str_tokens
    return Axis(ticks=[(float(pos), token(str_tokens[pos])) for pos in positions], small=True, low=low, high=high)


def _short(text: str, max_length: int = 26) -> str:
    text = text.strip()
    return text if len(text) <= max_length else text[: max_length - 1] + "…"
