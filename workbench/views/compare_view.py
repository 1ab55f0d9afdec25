"""Two runs side by side: their tokens aligned by text, their values over one axis, and the differences."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr

from workbench.checks import check_choice, check_items, check_numbers, check_texts, check_type
from workbench.errors import ArgumentError
from workbench.text import range_text, visible, visible_pieces
from workbench.traces import Trace
from workbench.traces.listing import reasoning_effort
from workbench.views import snapshot_html
from workbench.views.diff import common
from workbench.views.lane_scale import SCALES, scale_ends, scale_range
from workbench.views.payload import Payload
from workbench.views.view import View, writers_header

Pair = tuple[xr.DataArray, xr.DataArray]
NAME = 20  # letters of a question that names a run


@dataclass(frozen=True, slots=True)
class PairedLane:
    """A lane of both runs: one number per token of each run."""

    label: str
    unit: str
    a: np.ndarray
    b: np.ndarray

    @property
    def keep(self) -> str:
        """How tokens that share a column are pooled: "max", or "min" if no value is above 0."""
        finite = self.a[np.isfinite(self.a)]
        return "min" if finite.size and finite.max() <= 0 else "max"


class Compare(View):
    """The view that `compare` makes. Positions are those of the first run."""

    module = "compare_view"
    call = "wb.views.compare(trace, other"

    def __init__(
        self,
        trace: Trace,
        other: Trace,
        lanes: list[PairedLane],
        args: str,
        names: tuple[str, str],
        *,
        scale: str = "generated",
        **place: Any,
    ):
        super().__init__(trace, **place)
        self.scale = scale
        self.other, self.lanes, self.args, self.names = other, lanes, args, names
        self.first_positions, self.second_positions = aligned(trace.str_tokens, other.str_tokens)

    def payload(self) -> Payload:
        header, arrays = self.common()
        texts = visible_pieces(self.other.str_tokens, "\n")
        text_ids = {text: text_id for text_id, text in enumerate(header["token_texts"])}
        other_ids = [text_ids.setdefault(text, len(text_ids)) for text in texts]
        header["token_texts"] = list(text_ids)
        lanes = [
            {"name": str(k), "label": lane.label, "unit": lane.unit, "keep": lane.keep}
            for k, lane in enumerate(self.lanes)
        ]
        header |= {
            "args": self.args,
            "names": list(self.names),
            "other": self.other.id,
            "lanes": lanes,
            "scale": self.scale,
            "other_written": writers_header(self.other),
        }
        header["summary"] = self.summary()
        header["hint"] = (
            "Hover, click to pin, ← → to move, d and D to the next difference, Page ↑ ↓ for more rows, / to search, "
            "+ − 0 to zoom."
        )
        arrays |= {"first_positions": self.first_positions, "second_positions": self.second_positions}
        arrays["other_token_text_ids"] = np.array(other_ids, "u4")
        for number, lane in enumerate(self.lanes):
            arrays |= {f"a:{number}": lane.a, f"b:{number}": lane.b}
        return header, arrays

    def summary(self) -> str:
        """A sentence: how many tokens both runs share, and how many only one of them has."""
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
            runs = (self.trace, self.other), (self.first_positions, self.second_positions)
            for name, trace, positions in zip(self.names, *runs, strict=True):
                str_tokens = trace.str_tokens
                text = "".join(str_tokens[i] for i in positions[at].tolist() if i >= 0)
                rows.append(snapshot_html.Row(name, "first difference", text=f"…{visible(text)}…"))
        for lane in self.lanes:
            gap = self._gap(lane)
            low, high, largest = self._scale(lane, gap)
            downsampled = f"; downsampled ({lane.keep})" if len(self.trace) > snapshot_html.WIDTH else ""
            for name, values in zip(self.names, (lane.a, lane.b), strict=True):
                clipped = ", clipped" if (values < low).any() or (values > high).any() else ""
                picture = snapshot_html.bars(values, lane.keep, low, high)
                scale = range_text(low, high) + clipped
                rows.append(
                    snapshot_html.Row(f"{lane.label}, {name}", lane.unit + downsampled, picture, scale=scale, height=32)
                )
            clipped = ", clipped" if (np.abs(gap) > largest).any() else ""
            picture = snapshot_html.bars(np.abs(gap), "max", 0.0, largest)
            scale = f"0 to {largest:.3g}{clipped}"
            rows.append(snapshot_html.Row("absolute difference", lane.unit, picture, scale=scale, height=32))
        return rows

    def _same(self) -> np.ndarray:
        a, b = self.trace.str_tokens, self.other.str_tokens
        pairs = zip(self.first_positions.tolist(), self.second_positions.tolist(), strict=True)
        return np.array([i >= 0 and j >= 0 and a[i] == b[j] for i, j in pairs], bool)

    def _counts(self) -> tuple[int, int, int]:
        same = int(self._same().sum())
        return same, len(self.trace) - same, len(self.other) - same

    def _scale(self, lane: PairedLane, gap: np.ndarray) -> tuple[float, float, float]:
        """The ends of the scale of both runs, which has 0 in it, and the end of the scale of their difference.

        That scale is at least a hundredth as wide, because rounding must not look like a difference.
        """
        over = scale_range(self.scale, self.trace, self.window)
        b, over_b = lane.b, scale_range(self.scale, self.other, None)
        if self.scale == "shown":  # the tokens that the first run has too
            b, over_b = self._aligned(lane), over
        ends = scale_ends(lane.a, None, None, over) + scale_ends(b, None, None, over_b)
        low, high = min(0.0, *ends), max(0.0, *ends)
        largest = max((high - low) / 100, *map(abs, scale_ends(gap, None, None, over)))
        return low, high, largest or 1.0

    def _gap(self, lane: PairedLane) -> np.ndarray:
        """Second run minus first (pos), NaN where only one run has the token."""
        return self._aligned(lane) - lane.a

    def _aligned(self, lane: PairedLane) -> np.ndarray:
        """The second run's values at the tokens of the first (pos), NaN where only one run has the token."""
        values, same = np.full(len(lane.a), np.nan, "f4"), self._same()
        values[self.first_positions[same]] = lane.b[self.second_positions[same]]
        return values


def compare(
    trace: Trace,
    other: Trace,
    lanes: str | Sequence[str | Pair] = ("logprob", "entropy"),
    *,
    names: tuple[str, str] | None = None,
    scale: str = "generated",
    window: tuple[int, int] | None = None,
    selected: int | None = None,
) -> Compare:
    """A view of two runs, of one model or of two, aligned by the texts of their tokens over the first run's axis.

    Each lane is shown for both runs and as a difference (second minus first) at the tokens that both have. The texts
    are below, one above the other, colored where they differ. The key `d` goes to the next difference, `D` to the
    previous one. Hover and pin mark the aligned token in all views of the other run. Values beyond a scale are clipped,
    and their bars have marked ends.

    Args:
        trace: the first run; its positions are the axis.
        other: the second run.
        lanes: names of recorded lanes (pos), or pairs of your own arrays, one array per run.
        names: what to call the runs; without it what differs: the models, the reasoning efforts or the questions,
            otherwise "first" and "second".
        scale: the tokens that set the scales: "generated", "shown" (in the window, and not filtered
            out) or "run".
        window: the positions (first, stop) shown first.
        selected: the pinned position.

    Raises:
        NotRecorded: a run does not have a lane.
        ArgumentError: a lane is not one number per token, or an unknown scale.

    >>> trace = wb.trace("What is 12+30?")
    >>> view = wb.views.compare(trace, wb.trace("What is 12+31?"))
    >>> view.summary().split(" tokens")[0].isdigit(), view
    (True, <compare of pocket: 51 tokens>)
    """
    check_type("views.compare", trace, Trace)
    check_type("views.compare", other, Trace)
    check_choice("scale", scale, SCALES)
    lanes = check_items("lanes", [lanes] if isinstance(lanes, str) else lanes, low=0)
    names = None if names is None else _checked_names(names)
    run_names = names or _different_names(trace, other)
    paired = [_paired_lane(lane, trace, other) for lane in lanes]
    all_named = all(isinstance(lane, str) for lane in lanes)
    args = "" if tuple(lane.label for lane in paired) == ("logprob", "entropy") and all_named else ", lanes"
    if all_named and args:
        args = f", lanes={[str(lane) for lane in lanes]!r}"
    texts = visible(run_names[0]), visible(run_names[1])
    return Compare(trace, other, paired, args, texts, scale=scale, window=window, selected=selected)


def _checked_names(names: Any) -> tuple[str, str]:
    texts = check_texts("names", names)
    if len(texts) != 2:
        raise ArgumentError(f"names must be two texts, one for each run, got {len(texts)}.")
    return texts[0], texts[1]


def _different_names(first: Trace, second: Trace) -> tuple[str, str]:
    """Short names of two runs: the first of model, reasoning effort and question in which they differ."""
    for name in (lambda run: run.manifest.model["name"], _effort, _short_question):
        a, b = name(first), name(second)
        if a and b and a != b:
            return a, b
    return "first", "second"


def _effort(trace: Trace) -> str:
    """The reasoning effort that the system message asks for, such as "effort high"; '' if it has none."""
    effort = reasoning_effort(trace.manifest)
    return f"effort {effort}" if effort else ""


def _short_question(trace: Trace) -> str:
    text = " ".join(trace.question.split())
    return text if len(text) <= NAME else f"{text[: NAME - 1]}…"


def aligned(first: Sequence[str], second: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Aligned positions of two texts (column); -1 where one has no token. Each position appears once, in order.

    The number of columns with equal texts is the largest possible, for texts of any length.

    >>> aligned(["a", "b", "c"], ["a", "c", "d"])
    (array([ 0,  1,  2, -1], dtype=int32), array([ 0, -1,  1,  2], dtype=int32))
    """
    first_positions: list[int] = []
    second_positions: list[int] = []
    i = j = 0
    for i_next, j_next in [*common(first, second), (len(first), len(second))]:
        size = max(i_next - i, j_next - j)  # tokens between two common ones are paired in order
        first_positions += [i + k if i + k < i_next else -1 for k in range(size)]
        second_positions += [j + k if j + k < j_next else -1 for k in range(size)]
        first_positions.append(i_next)
        second_positions.append(j_next)
        i, j = i_next + 1, j_next + 1
    return np.array(first_positions[:-1], "i4"), np.array(second_positions[:-1], "i4")


def _paired_lane(lane: str | Pair, trace: Trace, other: Trace) -> PairedLane:
    pair = (trace.array(lane), other.array(lane)) if isinstance(lane, str) else check_items("a lane", lane)
    if len(pair) != 2:
        raise ArgumentError(f"a lane must be a name or a pair of arrays, one per run, got {len(pair)} entries.")
    attrs = pair[0].attrs if isinstance(pair[0], xr.DataArray) else {}
    label = visible(
        lane if isinstance(lane, str) else str(attrs.get("long_name") or getattr(pair[0], "name", "") or "own")
    )
    unit = visible(str(attrs.get("units", "")))
    arrays = []
    for values, run in zip(pair, (trace, other), strict=True):
        array = check_numbers(f"lane {label!r}", values).astype("f4")
        if array.shape != (len(run),):
            raise ArgumentError(
                f"lane {label!r} must be one number for each of the {len(run)} tokens, got shape {array.shape}."
            )
        arrays.append(np.where(np.isfinite(array), array, np.nan).astype("f4"))
    return PairedLane(label, unit, *arrays)
