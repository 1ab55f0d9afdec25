"""Two runs beside each other: their tokens aligned by text, their lanes over one axis, and what differs."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr

from workbench.errors import ArgumentError
from workbench.text import range_text, visible, visible_pieces
from workbench.traces import Trace
from workbench.views import snapshot_html
from workbench.views.diff import common
from workbench.views.payload import Payload
from workbench.views.view import View

Pair = tuple[xr.DataArray, xr.DataArray]


@dataclass(frozen=True, slots=True)
class Both:
    """A lane of both runs: one number for each token of each."""

    label: str
    unit: str
    a: np.ndarray
    b: np.ndarray

    @property
    def keep(self) -> str:
        """Of tokens that share a column: the largest, or the smallest of what is never above 0."""
        finite = self.a[np.isfinite(self.a)]
        return "min" if finite.size and finite.max() <= 0 else "max"


class Compare(View):
    """What `compare` gives. Positions are those of the first run."""

    module = "compare_view"
    call = "wb.views.compare(trace, other"

    def __init__(self, trace: Trace, other: Trace, lanes: list[Both], args: str, names: tuple[str, str], **place: Any):
        super().__init__(trace, **place)
        self.other, self.lanes, self.args, self.names = other, lanes, args, names
        self.left, self.right = aligned(trace.str_tokens, other.str_tokens)

    def payload(self) -> Payload:
        header, arrays = self.common()
        texts = visible_pieces(self.other.str_tokens, "\n")
        places = {text: place for place, text in enumerate(header["words"])}
        piece = [places.setdefault(text, len(places)) for text in texts]
        header["words"] = list(places)
        lanes = [
            {"name": str(k), "label": lane.label, "unit": lane.unit, "keep": lane.keep}
            for k, lane in enumerate(self.lanes)
        ]
        header |= {"args": self.args, "names": list(self.names), "other": self.other.id, "lanes": lanes}
        header["summary"] = self.summary()
        header["hint"] = (
            "Hover, click to pin, ← → to move, d and D to the next difference, Page ↑ ↓ for more rows, / to search, "
            "+ − 0 to zoom."
        )
        arrays |= {"left": self.left, "right": self.right, "piece2": np.array(piece, "u4")}
        for number, lane in enumerate(self.lanes):
            arrays |= {f"a:{number}": lane.a, f"b:{number}": lane.b}
        return header, arrays

    def summary(self) -> str:
        """How many tokens both have, and how many only one."""
        same, first, second = self._counts()
        return (
            f"{same:,} tokens in both, {first:,} only in {self.names[0]} (blue), "
            f"{second:,} only in {self.names[1]} (amber)"
        )

    def snapshot(self) -> list[snapshot_html.Row]:
        rows = [snapshot_html.Row("tokens", text=self.summary())]
        differ = np.flatnonzero(~self._same())
        if len(differ):
            at = slice(max(0, int(differ[0]) - 12), int(differ[0]) + 24)
            for name, trace, side in ((self.names[0], self.trace, self.left), (self.names[1], self.other, self.right)):
                text = "".join(trace.str_tokens[i] for i in side[at].tolist() if i >= 0)
                rows.append(snapshot_html.Row(name, "where they part first", text=f"…{visible(text)}…"))
        for lane in self.lanes:
            gap = self._gap(lane)
            most = float(np.nanmax(np.abs(gap), initial=0.0)) or 1.0
            shared = f"; downsampled ({lane.keep})" if len(self.trace) > snapshot_html.WIDTH else ""
            finite = np.concatenate([lane.a, lane.b])
            low, high = float(np.nanmin(finite, initial=0.0)), float(np.nanmax(finite, initial=0.0))
            for name, values in zip(self.names, (lane.a, lane.b), strict=True):
                picture = snapshot_html.bars(values, lane.keep, low, high)
                scale = range_text(low, high)
                rows.append(
                    snapshot_html.Row(f"{lane.label}, {name}", lane.unit + shared, picture, scale=scale, height=32)
                )
            picture = snapshot_html.bars(np.abs(gap), "max", 0.0, most)
            rows.append(
                snapshot_html.Row("size of the difference", lane.unit, picture, scale=f"0 to {most:.3g}", height=32)
            )
        return rows

    def _same(self) -> np.ndarray:
        a, b = self.trace.str_tokens, self.other.str_tokens
        pairs = zip(self.left.tolist(), self.right.tolist(), strict=True)
        return np.array([i >= 0 and j >= 0 and a[i] == b[j] for i, j in pairs], bool)

    def _counts(self) -> tuple[int, int, int]:
        same = int(self._same().sum())
        return same, len(self.trace) - same, len(self.other) - same

    def _gap(self, lane: Both) -> np.ndarray:
        """Second less first, where both have the token (pos)."""
        gap, same = np.full(len(lane.a), np.nan, "f4"), self._same()
        gap[self.left[same]] = lane.b[self.right[same]] - lane.a[self.left[same]]
        return gap


def compare(
    trace: Trace,
    other: Trace,
    lanes: Sequence[str | Pair] = ("logprob", "entropy"),
    *,
    names: tuple[str, str] | None = None,
    window: tuple[int, int] | None = None,
    selected: int | None = None,
) -> Compare:
    """Two runs, of one model or of two, side by side: aligned by the texts of their tokens, over the first one's axis.

    Each lane is shown for both and as a difference, second less first, where both have the token: names of lanes
    (pos), or a pair of arrays of your own, one for each run. Below are the texts, one above the other, coloured where
    they part; `d` goes from difference to difference. What is pointed at in one run is pointed at in all views of the
    other. `names` are the models' names unless given.

    >>> trace = wb.trace("What is 12+30?")
    >>> view = wb.views.compare(trace, wb.trace("What is 12+31?"))
    >>> view.summary().split(" tokens")[0].isdigit(), view
    (True, <compare of pocket: 51 tokens>)

    Raises NotRecorded if a run lacks a lane, ArgumentError for a lane that is not one number for each token.
    """
    own = [trace.manifest.model["name"], other.manifest.model["name"]]
    said = names or (own if own[0] != own[1] else ("first", "second"))
    both = [_both(lane, trace, other) for lane in lanes]
    plain = all(isinstance(lane, str) for lane in lanes)
    args = "" if tuple(lane.label for lane in both) == ("logprob", "entropy") and plain else ", lanes"
    if plain and args:
        args = f", lanes={[str(lane) for lane in lanes]!r}"
    return Compare(trace, other, both, args, (visible(said[0]), visible(said[1])), window=window, selected=selected)


def aligned(first: Sequence[str], second: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Positions that stand above each other, -1 where a text has none: each appears once, in order.

    As many tokens as possible stand above one with the same text, however long the texts are.

    >>> aligned(["a", "b", "c"], ["a", "c", "d"])
    (array([ 0,  1,  2, -1], dtype=int32), array([ 0, -1,  1,  2], dtype=int32))
    """
    left: list[int] = []
    right: list[int] = []
    i = j = 0
    for i_next, j_next in [*common(first, second), (len(first), len(second))]:
        size = max(i_next - i, j_next - j)  # what differs stands above what differs
        left += [i + k if i + k < i_next else -1 for k in range(size)]
        right += [j + k if j + k < j_next else -1 for k in range(size)]
        left.append(i_next)
        right.append(j_next)
        i, j = i_next + 1, j_next + 1
    return np.array(left[:-1], "i4"), np.array(right[:-1], "i4")


def _both(lane: str | Pair, trace: Trace, other: Trace) -> Both:
    pair = (trace[lane], other[lane]) if isinstance(lane, str) else lane
    attrs = pair[0].attrs if isinstance(pair[0], xr.DataArray) else {}
    label = visible(
        lane if isinstance(lane, str) else str(attrs.get("long_name") or getattr(pair[0], "name", "") or "own")
    )
    unit = visible(str(attrs.get("units", "nats" if lane in ("logprob", "entropy") else "")))
    arrays = []
    for values, run in zip(pair, (trace, other), strict=True):
        array = np.array(values, "f4")
        if array.shape != (len(run),):
            raise ArgumentError(
                f"{label} must be one number for each of the {len(run)} tokens, got the shape {array.shape}."
            )
        arrays.append(np.where(np.isfinite(array), array, np.nan).astype("f4"))
    return Both(label, unit, *arrays)
