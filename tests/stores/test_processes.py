"""Several processes add to one store, and one is killed while it adds: the index is that of the folder."""

import os
import random
import signal
import time
from pathlib import Path

import pytest

import workbench as wb
from tests.stores.runs import chat

LONG = os.environ.get("WORKBENCH_LONG") == "1"
ADDS = 300 if LONG else 12  # a process
KILLS = 40 if LONG else 4


def forked(act) -> int:
    pid = os.fork()
    if pid == 0:
        try:
            act()
            os._exit(0)
        except BaseException:
            import traceback

            traceback.print_exc()
        finally:
            os._exit(1)
    return pid


def test_four_processes_add_and_score_at_the_same_time(tmp_path: Path):
    folder = tmp_path / "runs"

    def work(number: int) -> None:
        store = wb.Store(folder)
        for step in range(ADDS):
            trace_id = store.add(chat(1000 * number + step))
            store.score(trace_id, "correct", step % 2)
            assert trace_id in store

    pids = [forked(lambda number=number: work(number)) for number in range(4)]
    assert [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids] == [0] * 4
    store = wb.Store(folder)
    assert len(store) == len(store.find()) == 4 * ADDS
    assert store.sql("select sum(value), count(*) from scores").values.tolist() == [[2 * ADDS, 4 * ADDS]]
    assert store.verify(sample=3).ok


@pytest.mark.parametrize("begin", ["new", "existing"])
def test_two_processes_make_the_index_at_the_same_time(tmp_path: Path, begin: str):
    folder = tmp_path / "runs"
    for number in range(8):
        chat(number).save(folder / f"{number}.trace")
    if begin == "existing":
        wb.Store(folder)._index.close()
        for path in folder.glob("index.sqlite*"):
            path.write_bytes(b"garbage" * 999)
    pids = [forked(lambda: exit_unless(len(wb.Store(folder).find()) == 8)) for _ in range(4)]
    assert [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids] == [0] * 4


def exit_unless(right: bool) -> None:
    os._exit(0 if right else 3)


def test_a_kill_while_adding_leaves_an_index_that_is_the_folder(tmp_path: Path):
    folder, rng = tmp_path / "runs", random.Random(7)
    reported: list[str] = []
    for kill in range(KILLS):
        reader, writer = os.pipe()

        def work(kill: int = kill, writer: int = writer) -> None:
            store = wb.Store(folder)
            for step in range(10_000):
                trace_id = store.add(chat(100_000 * kill + step))
                os.write(writer, trace_id.encode())

        pid = forked(work)
        os.close(writer)
        first = os.read(reader, 32)  # it has begun
        time.sleep(rng.uniform(0, 0.05))
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        data = first
        while chunk := os.read(reader, 65536):
            data += chunk
        os.close(reader)
        reported += [data[at : at + 32].decode() for at in range(0, len(data) - 31, 32)]
        store = wb.Store(folder)
        there = {path.name for path in folder.glob("objects/??/*") if not path.name.startswith(".")}
        assert set(store) == set(store.find()["id"]) == there and set(reported) <= there
        assert store.verify(sample=2, seed=kill).ok
        store._index.close()
