"""Queries of users in SQL, on a connection that cannot write: a read-only file, and an authorizer besides."""

import re
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from typing import Any

from workbench.checks import check_text
from workbench.errors import ArgumentError, ArgumentTypeError
from workbench.stores.index import BUSY_SECONDS, PUBLIC_TABLES, Index
from workbench.text import shown

STEPS = 100_000  # of SQLite's machine between two looks for Ctrl-C: less than 10 ms
_ALLOWED = {sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_FUNCTION, sqlite3.SQLITE_RECURSIVE}
_FORBIDDEN_FUNCTIONS = {"load_extension", "fts3_tokenizer", "zeroblob", "randomblob"}
_TABLES = "; ".join(f"{table} ({', '.join(columns)})" for table, columns in PUBLIC_TABLES.items())
_NO_SUCH = re.compile(r"no such (column|table)")


def selected(
    index: Index, query: Any, parameters: Sequence[Any] | Mapping[str, Any]
) -> tuple[list[str], list[tuple[Any, ...]]]:
    """The names of the columns of a query, and its rows.

    Raises ArgumentError for SQL that is wrong, names what there is not, or would write. Ctrl-C ends a long query.
    """
    check_text("query", query)
    if not isinstance(parameters, list | tuple | Mapping):
        raise ArgumentTypeError(f"parameters must be a list of values or a dict, got {shown(parameters)}.")
    with _read_only(index) as connection:
        connection.execute("SELECT 1 FROM texts LIMIT 0")  # FTS5 makes its tables known before the authorizer looks
        connection.set_authorizer(_authorized)
        connection.set_progress_handler(lambda: 0, STEPS)  # Python handles signals in it
        try:
            cursor = connection.execute(query, parameters)
            rows = cursor.fetchall()
            if cursor.description is None:
                raise ArgumentError("the query selects nothing; give one SELECT.")
            return [column[0] for column in cursor.description], rows
        except ArgumentError:  # which is a ValueError too
            raise
        except (sqlite3.Error, sqlite3.Warning, OverflowError, UnicodeError, ValueError, TypeError) as error:
            if isinstance(error, sqlite3.OperationalError) and "interrupted" in str(error):
                raise KeyboardInterrupt from None
            index.check_damage(error)
            raise _explained(error) from None
        finally:
            connection.set_authorizer(None)
            connection.set_progress_handler(None, 0)


@contextmanager
def _read_only(index: Index) -> Iterator[sqlite3.Connection]:
    """A connection of its own to the file; for an index in memory, its only one."""
    with index.lock:
        index.rows("SELECT 1 FROM folders LIMIT 0")  # opens it
        if index.in_memory:
            yield index.connection()
            return
    with closing(sqlite3.connect(f"{index.path.absolute().as_uri()}?mode=ro", BUSY_SECONDS, uri=True)) as file:
        yield file


def _authorized(action: int, first: str | None, second: str | None, *_: Any) -> int:
    if action == sqlite3.SQLITE_FUNCTION and second in _FORBIDDEN_FUNCTIONS:
        return sqlite3.SQLITE_DENY
    if action == sqlite3.SQLITE_PRAGMA and first == "data_version" and second is None:  # of FTS5 itself
        return sqlite3.SQLITE_OK
    return sqlite3.SQLITE_OK if action in _ALLOWED else sqlite3.SQLITE_DENY


def _explained(error: Exception) -> ArgumentError:
    reason = str(error)
    if "not authorized" in reason:
        return ArgumentError(
            "this query would change the index or use what is not allowed; a store's SQL only reads. Use SELECT."
        )
    if _NO_SUCH.search(reason):
        return ArgumentError(f"{reason}. The tables and their columns are: {_TABLES}.")
    if "one statement" in reason:
        return ArgumentError("the query has more than one statement; give one SELECT.")
    return ArgumentError(f"SQLite refuses the query: {reason}.")
