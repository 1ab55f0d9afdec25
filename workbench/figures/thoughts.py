"""Figures of a text: lanes that share the token axis, and what the steps of a thought do to each other."""

from collections.abc import Mapping, Sequence

import numpy as np
import xarray as xr

from workbench.errors import FigureError
from workbench.figures.arrays import _label, _note, rings
from workbench.figures.marks import Arcs, Bars, Blocks, Cells, Mark
from workbench.figures.spec import WIDTHS, Axis, Figure, Panel, Tick
from workbench.traces import Trace
from workbench.traces.steps import steps

READABLE = 110  # tokens whose texts fit below a page
ALONG = ("pos", "query", "key")  # axes that are positions
CHANNELS = {"analysis": 0, "final": 1, "commentary": 3}  # the colours of messages; 6, grey, for all others


def strip(
    lanes: Mapping[str, xr.DataArray],
    trace: Trace,
    where: slice | None = None,
    *,
    title: str = "",
    note: str = "",
    width: float = WIDTHS["page"],
    height: float | None = None,
) -> Figure:
    """One lane for each array, one column for each token: the messages and steps above, the texts of the tokens below.

    The arrays have one axis, of positions; columns are bars, because nothing was measured between two tokens. `where`
    is a stretch of the text. Texts stand below if there is room for them, positions otherwise.

    >>> figure = strip({"entropy": xr.DataArray(np.asarray(trace["entropy"]), dims="pos")}, trace)
    >>> [mark.kind for panel in figure.panels for mark in panel.marks]
    ['blocks', 'blocks', 'bars']

    Raises FigureError for an array whose one axis is not the text's, or if nothing is left of it.
    """
    shown = range(len(trace))[where or slice(None)]
    if not lanes or not shown:
        raise FigureError("a strip has one lane at least, and one token: give arrays over positions, and a stretch")
    axis = Axis(low=shown[0] - 0.5, high=shown[-1] + 0.5, hidden=True)
    messages = [(s.start, s.stop, s.channel or s.role) for s in trace.spans]
    panels = [_blocks(messages, shown, axis, colors=[CHANNELS.get(text, 6) for *_, text in messages])]
    thought = [(step.start, step.stop, str(number)) for number, step in enumerate(steps(trace))]
    if any(start in shown for start, *_ in thought):
        panels.append(_blocks(thought, shown, axis, colors=[0] * len(thought)))
    for name, array in lanes.items():
        if array.ndim != 1 or str(array.dims[0]) not in ALONG or array.size != len(trace):
            raise FigureError(
                f"lane {name!r} must have one axis of {len(trace)} positions; this array has "
                f"{dict(array.sizes)}: choose a layer or a head, or take a mean"
            )
        y = np.asarray(array.values, float)[list(shown)]
        bars = Bars(x=np.array(shown), y=y, width=1.0, color=0)
        units = str(array.attrs.get("units") or "")
        panels.append(Panel(marks=[bars], x=axis, y=Axis(label=units if units != "1" else ""), title=name))
    panels[-1] = Panel(marks=panels[-1].marks, x=_tokens(trace, shown), y=panels[-1].y, title=panels[-1].title)
    rows = [0.35 if isinstance(panel.marks[0], Blocks) else 1.0 for panel in panels]
    return Figure(
        panels=panels, title=title, note=note, width=width, height=height or 12 + 16 * sum(rows) + 8, rows=rows
    )


def step_matrix(
    effect: xr.DataArray,
    texts: Sequence[str],
    *,
    truth: xr.DataArray | np.ndarray | None = None,
    strongest: int | None = None,
    title: str = "",
    note: str = "",
    width: float = WIDTHS["text"],
    height: float | None = None,
) -> Figure:
    """What each step does to each later one (step key_step): a matrix, and above it arcs for the strongest effects.

    `texts` are the steps as they were written. `truth` (step key_step) rings what is known to depend on what, where it
    is known, and then as many arcs are drawn as there are true ones; otherwise `strongest`, or one for each step.

    >>> effect = xr.DataArray(np.tril(np.ones((3, 3)), -1), dims=("step", "key_step"), attrs={"units": "nats"})
    >>> figure = step_matrix(effect, ["a=3.", " b=a+4.", " c=b*2."], strongest=2)
    >>> [mark.kind for panel in figure.panels for mark in panel.marks], len(figure.panels[0].marks[0].weight)
    (['arcs', 'cells'], 2)

    Raises FigureError unless the array is square, and the texts are as many as its steps.
    """
    if effect.ndim != 2 or len(set(effect.shape)) != 1 or len(texts) != len(effect):
        raise FigureError(
            f"a step matrix is square with a text for each step; this is {dict(effect.sizes)}, {len(texts)} texts"
        )
    n = len(effect)
    values = np.array(effect.values, float)
    values[np.triu_indices(n)] = np.nan  # a step does nothing to those before it
    if strongest is None:
        strongest = int(np.asarray(truth, bool).sum()) if truth is not None else n
    order = [(i, j) for i, j in zip(*np.unravel_index(np.argsort(-np.nan_to_num(values), None, "stable"), (n, n)))]
    best = [(int(i), int(j)) for i, j in order[:strongest] if values[i, j] > 0]
    places: list[Tick] = [(float(i), str(i)) for i in range(n)]
    marks: list[Mark] = [Cells(values=values, label=_label(effect) or "effect"), *rings(truth, (n, n), "truly used")]
    written: list[Tick] = [(float(i), f"{_short(text)}  {i}") for i, text in enumerate(texts)]
    matrix = Panel(
        marks=marks,
        x=Axis(label="the step that is hidden", ticks=places),
        y=Axis(ticks=written, flipped=True),
    )
    panels, rows = [matrix], [1.0]
    if best:
        arcs = Arcs(
            source=[j for _, j in best], target=[i for i, _ in best], weight=[values[i, j] for i, j in best], color=0
        )
        bounds = Axis(low=-0.5, high=n - 0.5, hidden=True)
        panels, rows = [Panel(marks=[arcs], x=bounds, y=Axis(hidden=True, low=0)), matrix], [0.4, 1.0]
    height = height or float(np.clip(30 + 9 * n, 60, 160))
    return Figure(panels=panels, title=title, note=_note(effect, note), width=width, height=height, rows=rows)


def _blocks(spans: Sequence[tuple[int, int, str]], shown: range, axis: Axis, colors: Sequence[int]) -> Panel:
    kept = [(max(a, shown[0]), min(b, shown[-1] + 1), text, c) for (a, b, text), c in zip(spans, colors)]
    kept = [one for one in kept if one[0] < one[1]]
    blocks = Blocks(
        start=[a - 0.5 for a, *_ in kept],
        stop=[b - 0.5 for _, b, *_ in kept],
        text=[text for *_, text, _ in kept],
        colors=[color for *_, color in kept],
    )
    return Panel(marks=[blocks], x=axis, y=Axis(low=0, high=1, hidden=True))


def _tokens(trace: Trace, shown: range) -> Axis:
    low, high = shown[0] - 0.5, shown[-1] + 0.5
    if len(shown) > READABLE:
        return Axis(label="position", whole=True, low=low, high=high)
    return Axis(ticks=[(float(pos), token(trace.str_tokens[pos])) for pos in shown], small=True, low=low, high=high)


def token(piece: str) -> str:
    """A token as a label: its spaces can be seen."""
    return piece.replace(" ", "␣") or "⟨empty⟩"


def _short(text: str, most: int = 26) -> str:
    text = text.strip()
    return text if len(text) <= most else text[: most - 1] + "…"
