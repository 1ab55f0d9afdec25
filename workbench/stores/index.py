"""The index of a store: an SQLite file that is a cache. It can be deleted at any time; the folder is the truth.

An index of another version, with other tables or damaged, is made anew. On a disk that cannot be written, the index is
in memory. This module knows SQL and no traces: rows come in, rows go out.
"""

import os
import sqlite3
import stat
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

from workbench.errors import ArgumentError, FileError, MissingDependency
from workbench.files import kind_of, locked
from workbench.stores.row import COLUMNS, Row
from workbench.stores.scores import Read, Score
from workbench.text import printable, visible

FILE = "index.sqlite"
VERSION = 1  # of the tables below; a new column needs none, because the tables are compared too
BUSY_SECONDS = 60  # that a writer waits for another one
_TYPES = {str: "TEXT", int: "", float: "REAL", bool: "INTEGER"}  # INTEGER would round a text of more than 63 bits
_COLUMNS = ", ".join(f'"{name}" {_TYPES[kind]}'.strip() for name, kind in COLUMNS.items())
_TABLES = (
    f"CREATE TABLE traces (key INTEGER PRIMARY KEY, folder TEXT, signature TEXT, {_COLUMNS}, UNIQUE (path))",
    "CREATE TABLE problems (path TEXT PRIMARY KEY, folder TEXT, signature TEXT, problem TEXT)",
    "CREATE TABLE calls (key INTEGER, id TEXT, n INTEGER, tool TEXT, error TEXT, seconds REAL, PRIMARY KEY (key, n)) "
    "WITHOUT ROWID",
    "CREATE TABLE scores (id TEXT, task TEXT, sample TEXT, effort TEXT, repeat INTEGER, name TEXT, value REAL, "
    "PRIMARY KEY (id, task, sample, effort, repeat, name)) WITHOUT ROWID",
    "CREATE TABLE damaged_scores (position INTEGER PRIMARY KEY)",
    "CREATE TABLE folders (path TEXT PRIMARY KEY, changed INTEGER)",
    "CREATE TABLE score_file (signature TEXT, stop INTEGER, tail TEXT)",
    "CREATE VIRTUAL TABLE texts USING fts5 (question, answer, analysis)",
    "CREATE INDEX traces_by_id ON traces (id)",
    "CREATE INDEX traces_by_folder ON traces (folder)",
    "CREATE INDEX problems_by_folder ON problems (folder)",
    "CREATE INDEX traces_by_question ON traces (question)",
    "CREATE INDEX traces_by_model ON traces (model, effort)",
    "CREATE INDEX traces_by_created ON traces (created, path)",
    "CREATE INDEX scores_by_name ON scores (name)",
)
PUBLIC_TABLES = {  # what a query of a user may name, and the columns
    "traces": tuple(COLUMNS),
    "scores": Score._fields,
    "calls": ("id", "n", "tool", "error", "seconds"),
    "texts": ("question", "answer", "analysis"),
    "problems": ("path", "problem"),
}
_SHADOWS = ("texts_data", "texts_idx", "texts_content", "texts_docsize", "texts_config")  # tables of the FTS5 table
_OF_PARENTS: list[sqlite3.Connection] = []  # of the process before a fork: SQLite must never close them here
_T = TypeVar("_T")


class IndexLost(Exception):
    """The index was damaged, deleted or replaced while it was open. The one that is open now may lack rows."""


class Index:
    """The index of the store in a folder. May be used from several threads, and after a fork.

    Every method raises IndexLost if the index turns out to be another one than before; the caller must then bring it up
    to date and begin again. Raises FileError if it cannot be read or written.
    """

    def __init__(self, root: Path):
        self.root = root
        self.path = root / FILE
        self.lock = threading.RLock()
        self.in_memory = False
        self._connection: sqlite3.Connection | None = None
        self._opened: tuple[int, int, int] | None = None  # process, device and inode of the open file

    def __del__(self) -> None:
        self.close()

    def close(self) -> None:
        """Closes the file; the next use opens it again. Does nothing in a fork: SQLite must not close it there."""
        connection, self._connection = getattr(self, "_connection", None), None
        if connection is None or self._opened is None:
            return
        if self._opened[0] == os.getpid():
            connection.close()
        else:
            _OF_PARENTS.append(connection)

    # Reading and writing.

    def rows(self, query: str, parameters: Sequence[Any] | Mapping[str, Any] = ()) -> list[tuple[Any, ...]]:
        """The rows of a query."""
        return self._explained(lambda: self.connection().execute(query, parameters).fetchall())

    def put(self, rows: Iterable[tuple[str, str, Row]]) -> None:
        """Adds rows as (folder, signature, row), in place of earlier ones of their paths."""
        marks = ", ".join("?" * (len(COLUMNS) + 2))
        names = ", ".join(f'"{name}"' for name in COLUMNS)
        place, id_place = list(COLUMNS).index("path"), list(COLUMNS).index("id")

        def write(connection: sqlite3.Connection) -> None:
            for folder, signature, row in rows:
                _remove(connection, row.values[place])
                cursor = connection.execute(
                    f"INSERT INTO traces (folder, signature, {names}) VALUES ({marks})",
                    (folder, signature, *row.values),
                )
                connection.execute(
                    "INSERT INTO texts (rowid, question, answer, analysis) VALUES (?, ?, ?, ?)",
                    (cursor.lastrowid, row.question, row.answer, row.analysis),
                )
                trace_id = row.values[id_place]
                calls = [(cursor.lastrowid, trace_id, *call) for call in row.calls]
                connection.executemany("INSERT INTO calls VALUES (?, ?, ?, ?, ?, ?)", calls)

        rows = list(rows)
        self._write(write)

    def put_problem(self, folder: str, signature: str, path: str, problem: str) -> None:
        """Notes why a trace cannot be read, in place of an earlier row of its path."""

        def write(connection: sqlite3.Connection) -> None:
            _remove(connection, path)
            connection.execute("INSERT INTO problems VALUES (?, ?, ?, ?)", (path, folder, signature, problem))

        self._write(write)

    def remove(self, paths: Sequence[str]) -> None:
        """Removes the rows of traces that are gone."""
        if paths:
            self._write(lambda connection: [_remove(connection, path) for path in paths])

    def signatures(self, folder: str) -> dict[str, str]:
        """path -> signature, of all traces of a folder that were read, or could not be."""
        query = "SELECT path, signature FROM {} WHERE folder = ?"
        return dict(self.rows(f"{query.format('traces')} UNION ALL {query.format('problems')}", (folder, folder)))

    def all_signatures(self) -> dict[str, dict[str, str]]:
        """folder -> what `signatures` gives for it, for all folders at once."""
        found: dict[str, dict[str, str]] = {}
        for folder, path, signature in self.rows(
            "SELECT folder, path, signature FROM traces UNION ALL SELECT folder, path, signature FROM problems"
        ):
            found.setdefault(folder, {})[path] = signature
        return found

    def folders(self) -> dict[str, int]:
        """path -> when it had last changed, of the folders that were listed."""
        return dict(self.rows("SELECT path, changed FROM folders"))

    def put_folders(self, changed: Mapping[str, int], gone: Iterable[str] = ()) -> None:
        """Notes when folders had last changed, and forgets others."""
        lost = [(path,) for path in gone]

        def write(connection: sqlite3.Connection) -> None:
            connection.executemany("INSERT OR REPLACE INTO folders VALUES (?, ?)", list(changed.items()))
            connection.executemany("DELETE FROM folders WHERE path = ?", lost)

        if changed or lost:
            self._write(write)

    def score_file(self) -> str:
        """The signature of the file of scores when it was read; "" before."""
        rows = self.rows("SELECT signature FROM score_file")
        return rows[0][0] if rows else ""

    def put_scores(self, read: Callable[[int, str], Read], signature: str) -> None:
        """Adds the scores that `read(offset, tail)` gives; it is called while no other process adds them."""

        def write(connection: sqlite3.Connection) -> None:
            rows = connection.execute("SELECT stop, tail FROM score_file").fetchall()
            start, tail = rows[0] if rows else (0, "")
            found = read(start, tail)
            if found.start == 0:
                connection.execute("DELETE FROM scores")
                connection.execute("DELETE FROM damaged_scores")
            connection.executemany(
                "INSERT OR REPLACE INTO scores VALUES (?, ?, ?, ?, ?, ?, ?)",
                [[printable(v) if isinstance(v, str) else v for v in score] for score in found.scores],
            )
            connection.executemany("INSERT OR REPLACE INTO damaged_scores VALUES (?)", [(at,) for at in found.damaged])
            connection.execute("DELETE FROM score_file")
            connection.execute("INSERT INTO score_file VALUES (?, ?, ?)", (signature, found.stop, found.tail))

        self._write(write)

    # The connection.

    def connection(self) -> sqlite3.Connection:
        """The open index. It is opened anew in a forked process, and if its file was deleted or replaced."""
        if self._connection is not None and self._opened == self._there():
            return self._connection
        first = self._opened is None
        self.close()
        self._connection = self._open()
        self._opened = self._there()
        if not first and not self._connection.execute("SELECT 1 FROM folders LIMIT 1").fetchall():
            raise IndexLost
        return self._connection

    def rebuild(self) -> None:
        """Removes everything that the index holds."""
        self._write(_make_tables)

    def _there(self) -> tuple[int, int, int] | None:
        if self.in_memory:
            return os.getpid(), 0, 0
        try:
            info = self.path.lstat()
        except OSError:
            return None
        return os.getpid(), info.st_dev, info.st_ino

    def _open(self) -> sqlite3.Connection:
        start = time.monotonic()
        while time.monotonic() - start <= BUSY_SECONDS:
            try:
                return self._opened_file()
            except sqlite3.OperationalError as error:
                if _code(error) not in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
                    break  # the disk cannot be written
                time.sleep(0.01)  # SQLite does not wait itself while the file is made
            except sqlite3.DatabaseError:  # damaged
                self._discard()
        else:
            raise FileError(
                f"another process has locked {visible(str(self.path))} for more than {BUSY_SECONDS} s. Wait until it "
                f"has finished, or end it"
            )
        self.in_memory = True
        return self._copy_in_memory()

    def _opened_file(self) -> sqlite3.Connection:
        for path in self._files():
            self._require_regular(path)
        connection = sqlite3.connect(self.path, BUSY_SECONDS, isolation_level=None, check_same_thread=False)
        try:
            connection.execute("PRAGMA trusted_schema = OFF")
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = NORMAL")  # a cache: what a power cut takes is read again
            if not _is_current(connection):
                with _transaction(connection):
                    if not _is_current(connection):  # another process may have been faster
                        _make_tables(connection)
            with _transaction(connection):  # an error for a file that can only be read
                pass
        except BaseException:
            connection.close()
            raise
        return connection

    def _copy_in_memory(self) -> sqlite3.Connection:
        """An index in memory, from the file if there is one that is whole; otherwise empty."""
        connection = sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False)
        log = self.path.with_name(f"{FILE}-wal")
        with suppress(sqlite3.Error, OSError):
            if self.path.is_file() and not (log.exists() and log.stat().st_size):
                uri = f"{self.path.absolute().as_uri()}?mode=ro&immutable=1"
                with closing(sqlite3.connect(uri, uri=True)) as file:
                    file.backup(connection)
        try:
            current = _is_current(connection)
        except sqlite3.Error:
            current = False
        if not current:
            connection.close()
            connection = sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False)
            _make_tables(connection)
        return connection

    def _discard(self) -> None:
        """Removes the files of a damaged index, unless another process has replaced it meanwhile."""
        before = self._there()
        with locked(self.path):
            if self._there() == before:
                for path in self._files():
                    path.unlink(missing_ok=True)

    def _files(self) -> list[Path]:
        return [self.path.with_name(f"{FILE}{suffix}") for suffix in ("-wal", "-shm", "")]

    def _require_regular(self, path: Path) -> None:
        try:
            mode = path.lstat().st_mode
        except FileNotFoundError:
            return
        except OSError as error:
            raise FileError(f"{visible(str(path))} cannot be opened: {error.strerror}. Give another folder") from None
        if not stat.S_ISREG(mode):
            raise FileError(f"{visible(str(path))} is {kind_of(mode)}, not a file: remove it. It is only a cache")

    def _write(self, change: Callable[[sqlite3.Connection], Any]) -> None:
        def write() -> None:
            connection = self.connection()
            with _transaction(connection):
                change(connection)

        self._explained(write)

    def _explained(self, use: Callable[[], _T]) -> _T:
        """The result of `use`, which runs alone. Its errors are those of the class."""
        with self.lock:
            try:
                return use()
            except sqlite3.OperationalError as error:
                if _code(error) == sqlite3.SQLITE_ERROR:
                    raise ArgumentError(f"SQLite refuses the query: {error}. Give a simpler condition.") from None
                raise FileError(
                    f"the index {visible(str(self.path))} cannot be used: {error}. It is only a cache: free some "
                    f"space, or delete it, and open the store again"
                ) from None
            except sqlite3.DatabaseError as error:
                self.check_damage(error)
                raise

    def check_damage(self, error: Exception) -> None:
        """Discards the index and raises IndexLost if an error of SQLite says that its file is damaged."""
        if _code(error) in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
            with self.lock:
                self.close()
                if not self.in_memory:
                    self._discard()
            raise IndexLost from None


def _code(error: Exception) -> int:
    """The kind of an error of SQLite, without its details."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF


@contextmanager
def _transaction(connection: sqlite3.Connection) -> Iterator[None]:
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        with suppress(sqlite3.Error):
            connection.execute("ROLLBACK")
        raise


def _remove(connection: sqlite3.Connection, path: str) -> None:
    connection.execute("DELETE FROM texts WHERE rowid = (SELECT key FROM traces WHERE path = ?)", (path,))
    connection.execute("DELETE FROM calls WHERE key = (SELECT key FROM traces WHERE path = ?)", (path,))
    connection.execute("DELETE FROM traces WHERE path = ?", (path,))
    connection.execute("DELETE FROM problems WHERE path = ?", (path,))


def _is_current(connection: sqlite3.Connection) -> bool:
    """Whether an index has exactly the tables of this version: a stranger's file could have triggers, for instance."""
    [(version,)] = connection.execute("PRAGMA user_version").fetchall()
    found = connection.execute("SELECT name, sql FROM sqlite_master").fetchall()
    return version == VERSION and {sql for name, sql in found if sql and name not in _SHADOWS} == set(_TABLES)


def _make_tables(connection: sqlite3.Connection) -> None:
    """Replaces all that a database holds by the empty tables of this version."""
    try:
        for kind in ("trigger", "view", "virtual", "table"):
            for name, sql in connection.execute("SELECT name, sql FROM sqlite_master").fetchall():
                if sql and sql.upper().startswith(f"CREATE {kind.upper()} ") and not name.startswith("sqlite_"):
                    what = "table" if kind == "virtual" else kind
                    quoted = name.replace('"', '""')
                    connection.execute(f'DROP {what} IF EXISTS "{quoted}"')
    except sqlite3.OperationalError as error:  # a file of somebody else
        raise sqlite3.DatabaseError(str(error)) from error
    try:
        for table in _TABLES:
            connection.execute(table)
    except sqlite3.OperationalError as error:
        if "fts5" not in str(error):
            raise
        raise MissingDependency(
            "the SQLite of this Python was built without FTS5 (search for words), which a store needs. Use a Python "
            "from python.org, conda-forge or uv"
        ) from None
    connection.execute(f"PRAGMA user_version = {VERSION}")
