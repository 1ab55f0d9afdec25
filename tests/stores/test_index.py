"""The index is a cache: whatever happens to it, the answers are those of the folder."""

import os
import signal
import sqlite3
import stat
import threading
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest

import workbench as wb
from tests.stores.runs import chat
from workbench.errors import ArgumentError, FileError, TraceError
from workbench.stores import index as index_module
from workbench.stores.index import VERSION


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A store of three traces and a score, closed."""
    store = wb.Store(tmp_path / "runs")
    for number in range(3):
        store.add(chat(number, thought=f"Number {number}."))
    store.score(chat(1).id, "correct", 0.5)
    close(store)
    return tmp_path / "runs"


def close(store: wb.Store) -> None:
    store._index.close()


def answers(store: wb.Store) -> tuple:
    return (
        store.find().to_dict("records").__repr__(),
        store.find(text="number 2")["seed"].tolist(),
        store.find(score={"correct": (0, 1)})["seed"].tolist(),
        store.sql("select id, name, value from scores").values.tolist(),
        len(store),
        store.verify().ok,
    )


def without(path: Path) -> None:
    for each in path.parent.glob("index.sqlite*"):
        each.unlink()


def execute(path: Path, *statements: str) -> None:
    connection = sqlite3.connect(path, isolation_level=None)
    for statement in statements:
        connection.execute(statement)
    connection.close()


DAMAGE: dict[str, Callable[[Path], object]] = {
    "deleted": without,
    "empty": lambda path: (without(path), path.write_bytes(b"")),
    "garbage": lambda path: (without(path), path.write_bytes(b"garbage " * 1000)),
    "cut": lambda path: path.write_bytes(path.read_bytes()[:5000]),
    "pages of zeros": lambda path: path.write_bytes(path.read_bytes()[:4096] + bytes(len(path.read_bytes()) - 4096)),
    "older": lambda path: execute(path, f"PRAGMA user_version = {VERSION - 1}"),
    "newer": lambda path: execute(path, f"PRAGMA user_version = {VERSION + 1}", "DROP TABLE traces"),
    "with a trigger": lambda path: execute(
        path,
        "CREATE TRIGGER t AFTER INSERT ON traces BEGIN DELETE FROM traces; END",
        "UPDATE traces SET verified = 0, signature = ''",
    ),
    "of somebody else": lambda path: (without(path), execute(path, "CREATE TABLE mail (text)")),
    "with rows of traces that are not there": lambda path: execute(
        path, "UPDATE traces SET path = 'objects/zz/none', folder = 'objects/zz' WHERE seed = 1"
    ),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_lost_or_damaged_index_gives_the_same_answers(folder: Path, damage: str):
    expected = answers(wb.Store(folder))
    DAMAGE[damage](folder / "index.sqlite")
    assert answers(wb.Store(folder)) == expected


@pytest.mark.parametrize("damage", ["deleted", "garbage", "older"])
def test_an_open_store_notices_that_its_index_was_lost(folder: Path, damage: str):
    store = wb.Store(folder)
    expected = answers(store)
    DAMAGE[damage](folder / "index.sqlite")
    assert answers(store) == expected
    store.add(chat(7))
    assert len(store) == 4 and len(wb.Store(folder)) == 4


def test_reindex_makes_the_same_index(folder: Path):
    store = wb.Store(folder)
    expected = answers(store)
    store.reindex()
    assert answers(store) == expected


def test_only_what_is_new_is_read(folder: Path, monkeypatch: pytest.MonkeyPatch):
    from workbench.stores import catch_up

    read, real = [], catch_up.read_row
    monkeypatch.setattr(catch_up, "read_row", lambda root, path: (read.append(path), real(root, path))[1])
    store = wb.Store(folder)
    assert len(store.find()) == len(store) == 3 and read == []
    chat(8).save(folder / "new.trace")
    assert len(store) == 4 and read == ["new.trace"]


def test_another_store_of_the_same_folder_sees_what_is_added(folder: Path):
    first, second = wb.Store(folder), wb.Store(folder)
    first.add(chat(5))
    assert chat(5).id in second
    second.score(chat(5).id, "correct", 1)
    assert first.find(score={"correct": 1})["seed"].tolist() == [5]


@pytest.mark.parametrize("kind", ["symlink", "FIFO", "folder"])
@pytest.mark.parametrize("name", ["index.sqlite", "index.sqlite-wal"])
def test_what_is_no_file_is_not_opened_as_an_index(folder: Path, tmp_path: Path, name: str, kind: str):
    without(folder / "index.sqlite")
    target = tmp_path / "mine"
    target.write_text("mine")
    make = {"symlink": lambda p: p.symlink_to(target), "FIFO": os.mkfifo, "folder": Path.mkdir}
    make[kind](folder / name)
    with pytest.raises(FileError, match=r"remove it\. It is only a cache"):
        wb.Store(folder)
    assert target.read_text() == "mine"


def test_a_folder_that_cannot_be_written_is_read_with_an_index_in_memory(folder: Path):
    expected = answers(wb.Store(folder))
    for keeps_index in (True, False):
        if not keeps_index:
            without(folder / "index.sqlite")
        lines = in_a_process_that_cannot_write(folder, lambda: read_only_answers(folder))
        assert lines == [
            repr(expected),
            "True",
            "refused to add: Permission denied",
            "refused to score: Permission denied",
        ]


def read_only_answers(folder: Path) -> list[str]:
    store = wb.Store(folder)
    lines = [repr(answers(store)), str("in memory" in repr(store))]
    for what, act in (("add", lambda: store.add(chat(9))), ("score", lambda: store.score(chat(1).id, "a", 1))):
        try:
            act()
        except (TraceError, FileError) as error:
            lines.append(f"refused to {what}: {'Permission denied' if 'Permission denied' in str(error) else error}")
    return lines


def in_a_process_that_cannot_write(folder: Path, act: Callable[[], list[str]]) -> list[str]:
    """The lines that `act` returns in a child process for which the folder is read-only, also if this one is root."""
    paths = [folder, *folder.rglob("*")]
    for path in paths:
        path.chmod(0o555 if path.is_dir() else 0o444)
    above = [parent for parent in folder.parents if parent.stat().st_uid == os.getuid()]
    modes = [stat.S_IMODE(parent.stat().st_mode) for parent in above]
    for parent, mode in zip(above, modes):
        parent.chmod(mode | 0o011)
    out = folder.parent / "lines"
    out.touch()
    out.chmod(0o666)
    pid = os.fork()
    if pid == 0:
        try:
            if os.getuid() == 0:
                os.setgid(65534)
                os.setuid(65534)
            out.write_text("\n".join(act()))
        except BaseException:
            out.write_text(traceback.format_exc())
        finally:
            os._exit(0)
    os.waitpid(pid, 0)
    for parent, mode in zip(above, modes):
        parent.chmod(mode)
    for path in paths:
        path.chmod(0o755 if path.is_dir() else 0o644)
    return out.read_text().splitlines()


WRITES = [
    "delete from traces",
    "update traces set verified = 1",
    "insert into scores values ('a', 'b', 'c', 'd', 0, 'e', 1)",
    "drop table traces",
    "create table t (a)",
    "create temp table t (a)",
    "attach database '/tmp/x.sqlite' as x",
    "pragma user_version = 7",
    "pragma journal_mode = delete",
    "vacuum",
    "vacuum into '/tmp/x.sqlite'",
    "reindex",
    "begin immediate",
    "savepoint s",
    "select load_extension('x')",
    "with gone as (select 1) delete from traces",
    "insert into texts (texts) values ('rebuild')",
]


@pytest.mark.parametrize("query", WRITES)
@pytest.mark.parametrize("in_memory", [False, True])
def test_sql_that_writes_is_refused(folder: Path, query: str, in_memory: bool, monkeypatch: pytest.MonkeyPatch):
    store = wb.Store(folder)
    if in_memory:
        close(store)
        store._index.in_memory = True
        monkeypatch.setattr(store._index, "_open", store._index._copy_in_memory)
    expected = answers(store)
    with pytest.raises(ArgumentError):
        store.sql(query)
    assert answers(store) == expected


def test_wrong_sql_says_what_there_is(folder: Path):
    store = wb.Store(folder)
    with pytest.raises(ArgumentError, match=r"no such column: efort\. The tables .* traces \(id, path, .*effort"):
        store.sql("select efort from traces")
    with pytest.raises(ArgumentError, match=r"no such table: runs\. .*scores \(id, task, sample"):
        store.sql("select * from runs")
    with pytest.raises(ArgumentError, match="more than one statement"):
        store.sql("select 1; select 2")
    with pytest.raises(ArgumentError, match="SQLite refuses the query"):
        store.sql("select * from texts where texts match 'a\"'")
    for query, parameters in (("select ?", ()), ("select ?", 3), (3, ()), ("", [1]), ("select ?", [object()])):
        with pytest.raises(ArgumentError):
            store.sql(query, parameters)  # type: ignore[arg-type]


def test_sql_takes_parameters_and_searches_words(folder: Path):
    store = wb.Store(folder)
    found = store.sql("select seed from traces where seed >= ? order by 1", [1])
    assert found["seed"].tolist() == [1, 2]
    query = "select seed from traces join texts on key = texts.rowid where texts match :words"
    assert store.sql(query, {"words": '"number 1"'})["seed"].tolist() == [1]
    query = "select traces.effort, avg(value) as mean from traces join scores using (id) group by 1"
    assert store.sql(query).values.tolist() == [["high", 0.5]]


def test_ctrl_c_ends_an_endless_query(folder: Path):
    store = wb.Store(folder)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a process in the background ignores it
    timer = threading.Timer(0.2, lambda: os.kill(os.getpid(), signal.SIGINT))
    timer.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            store.sql("with recursive n (i) as (select 1 union all select i + 1 from n) select count(*) from n")
    finally:
        timer.join()
        signal.signal(signal.SIGINT, before)
    assert len(store) == 3


def test_threads_share_a_store(folder: Path):
    store = wb.Store(folder)
    failed: list[Exception] = []

    def work(number: int) -> None:
        try:
            for step in range(3):
                store.add(chat(100 + 10 * number + step))
                store.find(text="number")
        except Exception as error:
            failed.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed and len(store) == 15


def test_a_fork_opens_the_index_anew(folder: Path):
    store = wb.Store(folder)
    pid = os.fork()
    if pid == 0:
        try:
            store.add(chat(50))
            os._exit(0 if len(store) == 4 else 1)
        finally:
            os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert len(store) == 4 and store.verify().ok


def test_an_index_that_stays_locked_is_an_error_that_says_so(folder: Path, monkeypatch: pytest.MonkeyPatch):
    def busy(self):
        error = sqlite3.OperationalError("database is locked")
        error.sqlite_errorcode = sqlite3.SQLITE_BUSY
        raise error

    monkeypatch.setattr(index_module.Index, "_opened_file", busy)
    monkeypatch.setattr(index_module, "BUSY_SECONDS", 0.02)
    with pytest.raises(FileError, match=r"another process has locked .*index\.sqlite"):
        wb.Store(folder)
