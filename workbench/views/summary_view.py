"""The summary: the runs of a store as a table with lanes that sorts and filters; a click opens a score sheet."""

from collections.abc import Mapping
from copy import copy
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from workbench.checks import check_index, check_items, check_texts, check_type
from workbench.errors import ArgumentError, ArgumentTypeError, WorkbenchError
from workbench.stores import Store
from workbench.text import html, html_of_shown, printable, shown, visible
from workbench.traces import Trace
from workbench.views.page import PageParts
from workbench.views.payload import Payload
from workbench.views.request import index_in
from workbench.views.score_sheet_view import score_sheet
from workbench.views.snapshot_html import Row, table
from workbench.views.view import View

if TYPE_CHECKING:
    import os

    import pandas as pd

MAX_ROWS = 20_000  # of one view: the browser holds all of them
SNAPSHOT_ROWS = 20
BINS = 96  # columns of a lane
ROWS_AT_ONCE = 200  # rows of which the browser may request the lanes at once

# Column -> its title and the kind of its cells, in the order of the table. Others of a caller's table follow.
SHOWN = {
    "id": ("id", "id"),
    "question": ("question", "text"),
    "answer": ("answer", "text"),
    "model": ("model", "text"),
    "effort": ("effort", "text"),
    "n_generated": ("generated", "number"),
    "finish": ("finish", "text"),
    "edits": ("edits", "text"),
    "status": ("status", "text"),
    "verified": ("verified", "flag"),
    "created": ("recorded", "text"),
}
ONLY_IF_DIFFERENT = ("model", "finish", "edits", "status", "effort")  # left out if all runs have the same value
# Lane -> its unit, the two ends of its scale, which are the same for all runs, and what a column of several tokens
# shows: the extreme, because a mean would hide the token of interest.
LANES = {"logprob": ("nats", -6.0, 0.0, "min"), "entropy": ("nats", 0.0, 3.0, "max")}


class Summary(View):
    """The view that `summary` makes. `selected` is the selected run, as {"pos": row}; `selected_trace` its Trace."""

    module = "summary_view"
    call = "wb.views.summary(store"

    def __init__(self, store: Store, frame: "pd.DataFrame", selected: Any):
        self.store = store
        self.ids = check_texts("the ids of frame", list(frame["id"]))
        self.columns = _columns(frame)
        self.sent_lanes: np.ndarray | None = None  # those that a page contains
        self._begin(self.checked_place(selected))

    @property
    def selected_trace(self) -> Trace | None:
        """The trace of the selected run; None if none is selected."""
        place = self.selected
        return None if place is None else self.store[self.ids[place["pos"]]]

    def checked_place(self, value: Any) -> dict[str, int] | None:
        """A row, as a number, as {"pos": number} or as the id of its trace."""
        if value is None:
            return None
        if isinstance(value, str):
            if value not in self.ids:
                raise ArgumentError(f"selected must be the id of a trace in the table, got {shown(value)}.")
            return {"pos": self.ids.index(value)}
        if isinstance(value, Mapping):
            if set(value) != {"pos"}:
                raise ArgumentError(f"selected must be a row, as {{'pos': 3}}, got {shown(dict(value))}.")
            value = value["pos"]
        return {"pos": check_index("selected", value, len(self.ids))}

    def checked_range(self, value: Any) -> slice | None:
        """A summary has no range of tokens."""
        if value is not None:
            raise ArgumentTypeError("a summary has no range of tokens; selected_range can only be None.")
        return None

    def payload(self) -> Payload:
        header: dict[str, Any] = {
            "view": "summary",
            "call": self.call,
            "args": "",
            "trace": "runs:" + sha256(" ".join(self.ids).encode()).hexdigest()[:32],
            "foot": f"workbench · {visible(str(self.store.folder))}",
            "hint": f"{len(self.ids):,} runs. Click a run to open its score sheet; ↑ ↓ to move, Enter to open, / to "
            "filter, c to copy its id, Escape to close.",
            "layers": 0,
            "written": [],
            "token_texts": [],
            "messages": [],
            "steps": [],
            "window": None,
            "selected": self._selected,
            "selected_range": None,
            "ids": [printable(each) for each in self.ids],
            "bins": BINS,
            "lanes": [
                {"name": name, "unit": unit, "low": low, "high": high, "keep": keep}
                for name, (unit, low, high, keep) in LANES.items()
            ],
            "columns": [],
        }
        arrays: dict[str, np.ndarray] = {"token_text_ids": np.zeros(0, "u2")}
        for number, (name, title, kind, values) in enumerate(self.columns):
            column: dict[str, Any] = {"name": name, "title": title, "kind": kind}
            if kind == "number":
                arrays[f"column:{number}"] = values
            else:
                texts: dict[str, int] = {}
                places = [texts.setdefault(value, len(texts)) for value in values]
                arrays[f"column:{number}"] = np.array(places, "u4")
                column["texts"] = list(texts)
            header["columns"].append(column)
        if self.sent_lanes is not None:
            arrays["lanes"] = self.sent_lanes
        return header, arrays

    def query(self, kind: str, request: Mapping[str, Any]) -> Payload:
        """The lanes of some rows, the score sheet of a row, or what that score sheet requests."""
        if kind == "lanes":
            rows = check_items("rows", request.get("rows") if isinstance(request, Mapping) else None)
            if len(rows) > ROWS_AT_ONCE:
                raise ArgumentError(f"the lanes of at most {ROWS_AT_ONCE} rows are sent at once, got {len(rows)}.")
            return {}, {"lanes": self.lanes([check_index("row", row, len(self.ids)) for row in rows])}
        if kind == "sheet":
            return score_sheet(self.store[self.ids[index_in(request, "row", len(self.ids))]]).payload()
        return super().query(kind, request)

    def lanes(self, rows: list[int]) -> np.ndarray:
        """The lanes of some rows (row lane bin), as levels 1 to 255 of their scales; 0 where nothing was recorded."""
        levels = np.zeros((len(rows), len(LANES), BINS), np.uint8)
        for place, row in enumerate(rows):
            try:
                trace = self.store[self.ids[row]]
                for lane, (name, (_, low, high, keep)) in enumerate(LANES.items()):
                    if name in trace:
                        levels[place, lane] = pooled(trace[name], low, high, keep)
            except WorkbenchError:
                continue  # damaged or gone: its row stays, and opening it says why
        return levels

    def snapshot(self) -> list[Row]:
        rows = [Row("runs", text=f"{len(self.ids):,} in {visible(str(self.store.folder))}")]
        texts = {name: values for name, _, _, values in self.columns}
        for place, trace_id in enumerate(self.ids[:SNAPSHOT_ROWS]):
            parts = [texts[name][place] for name in ("effort", "question", "answer") if name in texts]
            rows.append(Row(trace_id[:8], text=" · ".join(part for part in parts if part)))
        if len(self.ids) > SNAPSHOT_ROWS:
            rows.append(Row("…", text=f"{len(self.ids) - SNAPSHOT_ROWS:,} more"))
        return rows

    def page_parts(self) -> PageParts:
        title = f"{len(self.ids):,} runs"
        header = f'<header>\n<p class="kind">{html(str(self.store.folder))}</p>\n<h1>{title}</h1>\n</header>'
        head = "".join(f"<th>{html_of_shown(each[1])}</th>" for each in self.columns)
        cells = zip(*(_as_texts(kind, values) for _, _, kind, values in self.columns))
        body = "".join("<tr>" + "".join(f"<td>{html_of_shown(text)}</td>" for text in row) + "</tr>" for row in cells)
        whole = f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>" if body else table([])
        return PageParts(title, header, whole, "")

    def to_html(self, path: "os.PathLike[str] | str") -> Path:
        """Write the table as one page with the lanes of all its runs, and return its path; score sheets need Python.

        An existing file at `path` is replaced atomically.
        """
        from workbench.views.page import save_page

        whole = copy(self)
        whole.sent_lanes = self.lanes(list(range(len(self.ids))))
        return save_page(whole, path)

    def __repr__(self) -> str:
        return f"<summary of {visible(str(self.store.folder))}: {len(self.ids):,} runs>"


def pooled(values: np.ndarray, low: float, high: float, keep: str) -> np.ndarray:
    """A lane as levels 1 to 255 of its scale in `BINS` columns; 0 where there is no value.

    Fewer tokens than columns share the width equally. A column of several tokens shows their minimum or maximum.

    >>> np.unique(pooled(np.array([0.0, -6.0, np.nan, -9.0]), -6, 0, "min")).tolist()
    [0, 1, 255]
    """
    values = np.asarray(values, np.float64).ravel()
    n = len(values)
    if not n:
        return np.zeros(BINS, np.uint8)
    if n <= BINS:
        columns = values[np.arange(BINS) * n // BINS]
    else:
        start = np.arange(BINS) * n // BINS
        empty = np.inf if keep == "min" else -np.inf
        finite = np.where(np.isnan(values), empty, values)
        columns = (np.minimum if keep == "min" else np.maximum).reduceat(finite, start)
        columns = np.where(columns == empty, np.nan, columns)
    share = np.clip((columns - low) / (high - low), 0, 1)
    return np.where(np.isnan(share), 0, 1 + np.round(254 * np.nan_to_num(share))).astype(np.uint8)


def _columns(frame: "pd.DataFrame") -> list[tuple[str, str, str, Any]]:
    """(name, title, kind, values) of each column of the table; the values are texts, or numbers as float64."""
    columns = []
    others = [name for name in frame.columns if isinstance(name, str) and name.startswith("score.")]
    for name in [*(name for name in SHOWN if name in frame), *others]:
        title, kind = SHOWN.get(name, (visible(name), "number"))
        values = frame[name]
        if name in ONLY_IF_DIFFERENT and len(set(values)) < 2:
            continue
        if kind == "number":
            try:
                numbers = values.to_numpy("float64", na_value=np.nan)
            except (TypeError, ValueError):
                raise ArgumentError(f"the column {shown(name)} of frame must hold numbers.") from None
            columns.append((name, title, kind, numbers))
        elif kind == "flag":
            columns.append((name, title, kind, ["yes" if value is True else "no" for value in values.tolist()]))
        elif name == "id":
            columns.append((name, title, kind, [printable(str(value))[:8] for value in values]))
        elif name == "created":
            columns.append((name, title, kind, [printable(str(value))[:16].replace("T", " ") for value in values]))
        else:
            columns.append((name, title, kind, [printable(str(value), " ") for value in values]))
    return columns


def _as_texts(kind: str, values: Any) -> list[str]:
    return [f"{value:g}" for value in values] if kind == "number" else list(values)


def summary(store: Store, frame: "pd.DataFrame | None" = None, *, selected: int | str | None = None) -> Summary:
    """The runs of a store as a table, with the log-probability and the entropy along each text.

    The table sorts by a click on a title and filters by words. A click on a run selects it and opens its score sheet
    below; `view.selected_trace` is then its trace. Summaries of the same runs share the selection.

    Args:
        store: the store.
        frame: the runs, as a table of `store.find` with a column `id`, in its order; by default all. Its columns
            "score.NAME" are shown.
        selected: the selected run: the number of its row, or its id.

    Raises:
        ArgumentError: the table has no column `id`, or more than 20,000 rows.

    >>> wb.views.summary(store, store.find(effort="high"))  # doctest: +SKIP
    <summary of runs: 12 runs>
    """
    check_type("views.summary", store, Store, 'wb.Store("runs")')
    if frame is None:
        frame = store.find()
    if not hasattr(frame, "columns") or "id" not in getattr(frame, "columns", ()):
        raise ArgumentTypeError(f"frame must be a table of store.find with a column 'id', got {shown(frame)}.")
    if len(frame) > MAX_ROWS:
        raise ArgumentError(
            f"a summary shows at most {MAX_ROWS:,} runs, got {len(frame):,}. Select some with store.find, or "
            f"frame.head({MAX_ROWS})."
        )
    return Summary(store, frame, selected)
