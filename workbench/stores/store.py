"""A store: a folder of many traces that can be searched, added to by several processes, and scored."""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import numpy as np

from workbench.checks import check_choice, check_number, check_seed, check_text, check_type, check_whole, require
from workbench.errors import (
    ArgumentError,
    ArgumentTypeError,
    FileError,
    TraceCorrupt,
    TraceError,
    TraceExists,
    TraceNotFound,
)
from workbench.files import atomic_path, make_folder
from workbench.lazy_imports import upward
from workbench.paths import absolute, expanded
from workbench.stores import conditions, scores, sql
from workbench.stores.catch_up import add_scores, catch_up, read_again
from workbench.stores.check import StoreReport, checked, paths_of, same_content
from workbench.stores.folder import is_id, path_of, signature
from workbench.stores.index import PUBLIC_TABLES, Index, IndexLost
from workbench.stores.row import COLUMNS
from workbench.stores.tables import data_frame
from workbench.text import shown, visible
from workbench.traces import Trace, load
from workbench.traces.reader import MANIFEST, StoredArrays
from workbench.untrusted import file_names

if TYPE_CHECKING:
    import pandas as pd

TRIES = 5  # to find rows of which no manifest changes meanwhile, in an index that is not lost meanwhile
NAME = 200  # characters of a task, a sample and a score's name
_Method = TypeVar("_Method", bound=Callable[..., Any])


def _with_index(method: _Method) -> _Method:
    """The method, called again with a new index if the index is lost meanwhile."""

    @wraps(method)
    def again(self: "Store", *args: Any, **options: Any) -> Any:
        for _ in range(TRIES):
            try:
                return method(self, *args, **options)
            except IndexLost:
                with suppress(IndexLost):
                    catch_up(self._index, every_manifest=True)
        raise FileError(f"the index of {visible(str(self.folder))} is damaged again and again. Is the disk failing?")

    return cast(_Method, again)


class Store:
    """The traces in a folder. The folder is made if it is missing.

    `store.add(trace)` writes a trace, `store[id]` loads it (the first digits of the id are enough), `store.find(…)` is
    a table of the traces that match, `store.score(…)` keeps a number about a trace. Traces that others put into the
    folder, or into folders in it, belong to the store too, so `to="runs/first.trace"` of a run adds one.

    The traces and the scores are the data. The index, `index.sqlite`, is a cache of the manifests: it may be deleted,
    and is then made anew. Several processes may read and write at the same time. A trace that cannot be read is left
    out and listed by `verify`.

    >>> store = Store("out/runs")  # doctest: +SKIP
    >>> store.add(trace)  # doctest: +SKIP
    '9c41e0f2a6b34d5e8f7a1b2c3d4e5f60'
    >>> store.find(effort="high", verified=True)[["id", "question"]]  # doctest: +SKIP

    Raises FileError if the folder cannot be made or read, ArgumentError if it is a single trace.
    """

    def __init__(self, folder: os.PathLike[str] | str):
        self.folder = make_folder(absolute(folder, "folder"))
        if os.path.lexists(self.folder / MANIFEST):
            raise ArgumentError(
                f"{visible(str(self.folder))} is a single trace, not a folder of traces: open it with wb.load, or give "
                f"the folder that it is in."
            )
        file_names(self.folder, FileError)
        self._index = Index(self.folder)
        self.refresh()

    def __reduce__(self):
        """Pickled as its path."""
        return Store, (str(self.folder),)

    # Traces.

    @_with_index
    def add(self, trace: Trace) -> str:
        """The id of a trace, after it was written into the store. If the same trace is there already, nothing happens.

        A partial trace is replaced by the complete one of the same run.

        >>> store.add(trace)  # doctest: +SKIP
        '9c41e0f2a6b34d5e8f7a1b2c3d4e5f60'

        Raises TraceExists if a trace of the same id with other content is in the store (the error names it; nothing is
        written), TraceError if the disk is full or cannot be written.
        """
        check_type("store.add", trace, Trace, "store[id]")
        path = path_of(trace.id)
        elsewhere = [other for other in paths_of(self._index, trace.id) if other != path]
        if elsewhere and not os.path.lexists(self.folder / path):
            trace.save(self.folder / elsewhere[0])  # writes nothing if it is the same trace, and names it if not
            return trace.id
        trace.save(self.folder / path, overwrite=trace.status == "complete" and self._is_partial(path))
        with suppress(IndexLost, FileError):  # the trace is there: whoever opens the store next finds it
            read_again(self._index, [path])
        return trace.id

    def path_for(self, id: str) -> Path:
        """Where `add` writes the trace of an id; a run may write there itself: `model.generate(…, to=path)`.

        >>> store.path_for("9c41e0f2a6b34d5e8f7a1b2c3d4e5f60")  # doctest: +SKIP
        PosixPath('/home/me/runs/objects/9c/9c41e0f2a6b34d5e8f7a1b2c3d4e5f60')

        Raises ArgumentError unless it is a whole id, of 32 hex digits.
        """
        if not is_id(check_text("id", id)):
            raise ArgumentError(f"id must be the 32 hex digits of a trace's id, got {shown(id)}.")
        return self.folder / path_of(id)

    @_with_index
    def __getitem__(self, id: str) -> Trace:
        """The trace of an id, or of its first digits if no other id begins with them.

        Raises TraceNotFound for an id that is not in the store, ArgumentError for digits that begin several ids,
        TraceExists if several traces with other contents have the id (the error names them), TraceCorrupt and the other
        errors of `wb.load` for a trace that was changed.
        """
        for _ in range(TRIES):
            trace_id = self._resolved(id)
            paths = paths_of(self._index, trace_id)
            stale = self._stale(paths)
            if paths and not stale:
                break
            read_again(self._index, stale)
        else:
            raise TraceNotFound(f"the trace {shown(id)} is written again and again; load it when that has ended.")
        if len(paths) > 1 and not same_content(self._index, paths):
            raise TraceExists(
                f"{len(paths)} traces in the store have the id {trace_id} and other content: {', '.join(paths)}. Load "
                f"one of them by its path: wb.load({shown(str(self.folder / paths[0]))})"
            )
        return load(self.folder / paths[0])

    @_with_index
    def __contains__(self, id: object) -> bool:
        """Whether `store[id]` names one trace: a whole id, or the first digits of exactly one."""
        try:
            self._resolved(id)
        except (TraceNotFound, ArgumentError, TraceCorrupt):
            return False
        return True

    @_with_index
    def __len__(self) -> int:
        """The number of ids in the store."""
        self._catch_up()
        return self._index.rows("SELECT count(DISTINCT id) FROM traces")[0][0]

    @_with_index
    def __iter__(self) -> Iterator[str]:
        """The ids, the oldest trace first."""
        self._catch_up()
        query = "SELECT id FROM traces GROUP BY id ORDER BY min(created), id"
        return iter([trace_id for (trace_id,) in self._index.rows(query)])

    # Tables.

    @_with_index
    def find(
        self,
        *,
        text: str | None = None,
        prompt: "str | Trace | Sequence[int] | np.ndarray | None" = None,
        edit: str | None = None,
        score: Mapping[str, Any] | None = None,
        **columns: Any,
    ) -> "pd.DataFrame":
        """A table of the traces that match all arguments, the oldest first; without arguments, of all.

        A column is compared with a value, with each of a list of values, or with a range `(low, high)` of which an end
        may be None. In texts, `*` stands for any text: `model="*20b*"`. An unknown column is an error that lists the
        columns; `store.find().columns` does too.

        Args:
            text: words that occur one after the other in the question, the answer or the chain of thought.
            prompt: the question; or token ids, or a trace with the same ones.
            edit: a part of an edit's hook point or function, such as "ablate" or "blocks.2.*".
            score: name -> value, list or range, compared with the mean of the scores of that name; the table gets a
                column "score.NAME".
            **columns: values of the columns, such as model="pocket", effort=["low", "high"], edited=False, adapter="",
                status="complete", verified=True, n_tokens=(0, 500).

        >>> store.find(effort="high", n_tokens=(None, 500), score={"correct": 1})["id"]  # doctest: +SKIP

        The rows of manifests that were changed since they were indexed are read again first.

        Raises:
            ArgumentError: a column that there is not, or a value of another type.
        """
        given = [conditions.column_condition(name, value) for name, value in columns.items()]
        if text is not None:
            given.append(conditions.text_condition(text))
        if prompt is not None:
            given.append(conditions.prompt_condition(prompt))
        if edit is not None:
            given.append(conditions.edit_condition(edit))
        where, values = conditions.joined(given)
        of_scores = {} if score is None else conditions.score_conditions(score)
        means, joins, score_values = "", "", []
        for number, (name, (condition, parameters)) in enumerate(of_scores.items()):
            means += f", s{number}.mean"
            joins += (
                f" JOIN (SELECT * FROM (SELECT id, avg(value) AS mean FROM scores WHERE name = ? GROUP BY id) "
                f"WHERE {condition}) AS s{number} USING (id)"
            )
            score_values += [name, *parameters]
        names = ", ".join(f'traces."{name}"' for name in COLUMNS)
        query = f"SELECT signature, {names}{means} FROM traces{joins} WHERE {where} ORDER BY created, path"
        rows = self._current_rows(query, [*score_values, *values])
        kinds = {**COLUMNS, **{f"score.{name}": float for name in of_scores}}
        return data_frame(kinds, [row[1:] for row in rows])

    @_with_index
    def sql(self, query: str, parameters: Sequence[Any] | Mapping[str, Any] = ()) -> "pd.DataFrame":
        """The table of an SQL query that only reads, with the values of its question marks in `parameters`.

        The tables are `traces` (the columns of `find`), `scores` (id, task, sample, effort, repeat, name, value),
        `calls` to tools (id, n, tool, error, seconds),
        `texts` (question, answer, analysis; its rowid is `traces.key`, and `MATCH` searches words) and `problems`
        (path, problem). Texts have their hidden characters made visible.

        >>> store.sql("select model, avg(value) from traces join scores using (id) group by 1")  # doctest: +SKIP

        Raises ArgumentError for SQL that is wrong or would write, and with the tables and columns for an unknown name.
        """
        self._catch_up()
        names, rows = sql.selected(self._index, query, parameters)
        return data_frame(dict.fromkeys(names), rows)

    def to_parquet(self, path: os.PathLike[str] | str, table: str = "traces") -> Path:
        """Writes a table as Parquet with a checksum for each page, and returns the path. A file there is replaced.

        `table` is "traces", "scores", "calls" or "problems". Extra: [export].

        >>> store.to_parquet("traces.parquet")  # doctest: +SKIP
        PosixPath('traces.parquet')

        Raises MissingDependency if pyarrow is not installed, FileError if the file cannot be written.
        """
        allowed = [name for name in PUBLIC_TABLES if name != "texts"]
        check_choice("table", table, allowed)
        target = expanded(path)
        parquet, arrow = require("pyarrow.parquet", extra="export"), require("pyarrow", extra="export")
        frame = self.find() if table == "traces" else self.sql(f"SELECT {', '.join(PUBLIC_TABLES[table])} FROM {table}")
        with atomic_path(target) as staged:
            parquet.write_table(arrow.Table.from_pandas(frame, preserve_index=False), staged, write_page_checksum=True)
        return target

    # Scores.

    @_with_index
    def score(
        self,
        id: str,
        name: str,
        value: float,
        *,
        task: str = "",
        sample: str = "",
        effort: str | None = None,
        repeat: int = 0,
    ) -> None:
        """Keeps a number about a trace, such as whether its answer is right. It is on the disk when this returns.

        A later score of the same trace, task, sample, effort, repeat and name replaces it in tables. Scores are not
        part of the trace. They are lines of `scores.jsonl`, and deleting the index does not delete them.

        Args:
            id: of the trace, or its first digits.
            name: of the score, such as "correct".
            value: a finite number; True is 1 and False is 0.
            task: the task that the sample belongs to.
            sample: the question of the task.
            effort: the reasoning effort; by default that of the trace's prompt.
            repeat: the number of the run, if a sample has several.

        >>> store.score("9c41e0f2", "correct", True, task="sums", sample="17")  # doctest: +SKIP

        Raises:
            TraceNotFound: the store has no such trace.
            FileError: the file of the scores cannot be written.
        """
        for what, text in (
            ("name", name),
            ("task", task),
            ("sample", sample),
            ("effort", "" if effort is None else effort),
        ):
            if len(check_text(what, text)) > NAME:
                raise ArgumentError(f"{what} must have at most {NAME} characters, got {len(text):,}.")
        if not name:
            raise ArgumentError("name is empty; give the score a name, such as 'correct'.")
        number = float(value) if isinstance(value, bool | np.bool_) else check_number("value", value)
        repeat = check_whole("repeat", repeat, 0)
        trace_id = self._resolved(id)
        if effort is None:
            of_trace = self._index.rows("SELECT effort FROM traces WHERE id = ?", (trace_id,))[0][0]
        else:
            of_trace = visible(effort)
        given = scores.Score(trace_id, visible(task), visible(sample), of_trace, repeat, visible(name), number)
        scores.append(self.folder, given)
        with suppress(IndexLost, FileError):
            add_scores(self._index)

    # The index.

    @_with_index
    def refresh(self) -> None:
        """Compares every manifest with the index and reads those that changed. Opening a store does this too.

        Without it, traces that come and go are noticed, and of the traces that `find` lists those that were changed;
        not a damaged trace that was repaired in its place.
        """
        catch_up(self._index, every_manifest=True)

    @_with_index
    def reindex(self) -> None:
        """Makes the index anew from the manifests and the file of scores."""
        self._index.rebuild()
        self.refresh()

    @_with_index
    def verify(self, sample: int | None = None, *, seed: int = 0) -> StoreReport:
        """A report on the store: traces that cannot be read, equal ids with other content, and damaged scores.

        `sample` random traces (None: all) are read in full: every byte is compared with its hash, and the identities
        are checked on the numbers.

        >>> print(store.verify(sample=100))  # doctest: +SKIP
        2,000 traces; 100 verified (1.1 MB): every byte matches its hash, and no identity fails
        """
        if sample is not None:
            sample = check_whole("sample", sample, 0)
        return checked(self._index, sample, check_seed(seed))

    def __repr__(self) -> str:
        n, problems = len(self), self._index.rows("SELECT count(*) FROM problems")[0][0]
        unread = f", {problems:,} that cannot be read" if problems else ""
        memory = "; the index is in memory, because the folder cannot be written" if self._index.in_memory else ""
        return f"<Store {visible(str(self.folder))}: {n:,} traces{unread}{memory}>"

    def _ipython_display_(self) -> None:
        """Shows the runs as a table in a notebook; elsewhere `repr` is shown."""
        upward(__name__, "workbench.views.summary_view").summary(self)._ipython_display_()

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, str]:
        return upward(__name__, "workbench.views.summary_view").summary(self)._repr_mimebundle_(include, exclude)

    # Helpers.

    def _catch_up(self) -> None:
        catch_up(self._index, every_manifest=False)

    def _stale(self, paths: Sequence[str]) -> list[str]:
        """The paths whose manifests are not those that were indexed."""
        marks = ", ".join("?" * len(paths))
        known = self._index.rows(f"SELECT path, signature FROM traces WHERE path IN ({marks})", list(paths))
        return [path for path, before in known if signature(self.folder, path) != before]

    def _current_rows(self, query: str, values: list[Any]) -> list[tuple[Any, ...]]:
        """The rows of a query that selects the signature first, of which no manifest has changed since it was read."""
        self._catch_up()
        place = 1 + list(COLUMNS).index("path")
        fresh: list[tuple[Any, ...]] = []
        for _ in range(TRIES):
            rows = self._index.rows(query, values)
            fresh = [row for row in rows if signature(self.folder, row[place]) == row[0]]
            if len(fresh) == len(rows):
                break
            paths = {row[place] for row in rows} - {row[place] for row in fresh}
            read_again(self._index, sorted(paths))
        return fresh

    def _resolved(self, start: Any) -> str:
        """The id that begins with these digits. Raises TraceNotFound, ArgumentError or TraceCorrupt."""
        try:
            return self._whole_id(start)
        except (TraceNotFound, TraceCorrupt):  # it may be new
            self._catch_up()
            return self._whole_id(start)

    def _whole_id(self, start: Any) -> str:
        if not isinstance(start, str):
            raise ArgumentTypeError(f"an id must be text, got {shown(start)}.")
        if not start:
            raise ArgumentError("the id is empty; give the first digits of one.")
        query = "SELECT DISTINCT id FROM traces WHERE id >= ? AND id < ? LIMIT 5"
        ids = [trace_id for (trace_id,) in self._index.rows(query, (start, start + "g"))]
        if len(ids) > 1:
            raise ArgumentError(f"{shown(start)} begins several ids: {', '.join(ids)}. Give more digits.")
        if ids:
            return ids[0]
        if start.isascii() and start.isalnum():
            query = "SELECT path, problem FROM problems WHERE path GLOB 'objects/??/' || ? || '*' LIMIT 1"
            for path, problem in self._index.rows(query, (start,)):
                raise TraceCorrupt(f"the trace {path} cannot be read: {problem}")
        raise TraceNotFound(
            f"no trace in {visible(str(self.folder))} has an id that begins with {shown(start)}. "
            f"store.find() lists all of them"
        )

    def _is_partial(self, path: str) -> bool:
        try:
            return StoredArrays(self.folder / path).manifest.status == "partial"
        except TraceError:
            return False
