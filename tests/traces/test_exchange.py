"""`trace.save(path, overwrite=True)`: one of the two is whole at every moment; nothing else is ever removed."""

import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.traces import made
from workbench.errors import TraceError, TraceExists
from workbench.traces import Trace, exchange, load, verify


def everything_under(folder: Path) -> dict[str, bytes | None]:
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None for p in sorted(folder.rglob("*"))}


def whole(path: Path) -> str:
    """The id of a trace of which every byte is right."""
    assert verify(path).ok
    return load(path).id


def test_another_trace_is_replaced_and_nothing_is_left_beside_it(tmp_path: Path) -> None:
    path = made.trace(seed=1).save(tmp_path / "a")
    assert made.trace().save(path, overwrite=True) == path
    assert whole(path) == made.trace().id and os.listdir(tmp_path) == ["a"]


def test_a_partial_trace_is_replaced_by_the_complete_one(tmp_path: Path) -> None:
    path = made.trace(status="partial").save(tmp_path / "a")
    made.trace().save(path, overwrite=True)
    assert load(path).status == "complete"


def test_without_a_trace_at_the_path_it_is_written_and_the_same_trace_is_not_touched(tmp_path: Path) -> None:
    path = made.trace().save(tmp_path / "a", overwrite=True)
    before, inode = everything_under(tmp_path), path.stat().st_ino
    made.trace().save(path, overwrite=True)
    load(path).save(path, overwrite=True)
    assert everything_under(tmp_path) == before and path.stat().st_ino == inode


def with_file(path: Path) -> None:
    path.write_text("mine")


def with_folder(path: Path) -> None:
    path.mkdir()
    (path / "thesis.tex").write_text("mine")


def with_a_trace_and_more(path: Path) -> None:
    made.trace(seed=1).save(path)
    (path / "thesis.tex").write_text("mine")


def with_a_trace_and_a_folder_named_as_a_part(path: Path) -> None:
    made.trace(seed=1).save(path)
    (path / "part-00009.safetensors").mkdir()


def with_a_link_to_a_trace(path: Path) -> None:
    made.trace(seed=1).save(path.parent / "elsewhere")
    path.symlink_to(path.parent / "elsewhere")


def with_a_damaged_trace(path: Path) -> None:
    made.trace(seed=1).save(path)
    (path / "manifest.json").write_text("{}")


@pytest.mark.parametrize(
    "put",
    [
        with_file,
        with_folder,
        with_a_trace_and_more,
        with_a_trace_and_a_folder_named_as_a_part,
        with_a_link_to_a_trace,
        with_a_damaged_trace,
    ],
)
def test_what_is_not_just_a_trace_is_never_replaced(put, tmp_path: Path) -> None:
    put(tmp_path / "a")
    before = everything_under(tmp_path)
    with pytest.raises(TraceExists, match="Nothing was written"):
        made.trace().save(tmp_path / "a", overwrite=True)
    assert everything_under(tmp_path) == before


@pytest.mark.parametrize("fails_at", [0, 1, 2])
def test_a_disk_that_fails_leaves_the_old_trace(fails_at: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The renames: of the new trace to its place beside the old one, of the old one, of the new one."""
    path = made.trace(seed=1).save(tmp_path / "a")
    before, rename, calls = everything_under(tmp_path), Path.rename, []

    def failing(self: Path, target: Path) -> Path:
        calls.append(target)
        if len(calls) == fails_at + 1:
            raise OSError(5, "Input/output error")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(TraceError, match="Input/output error"):
        made.trace().save(path, overwrite=True)
    assert everything_under(tmp_path) == before


def test_a_process_that_is_killed_at_any_moment_leaves_one_of_the_two_whole(tmp_path: Path) -> None:
    old, new = made.trace(seed=1), made.trace()
    found, aside_left, moment = set(), 0, 0
    for moment in range(1000):
        folder = tmp_path / str(moment)
        path = old.save(folder / "a")
        if not killed_at(moment, lambda path=path: new.save(path, overwrite=True)):
            break
        if path.exists():
            found.add(whole(path))
        else:
            [aside] = [p for p in folder.iterdir() if ".replaced-" in p.name]
            found.add(whole(aside))
            assert whole(aside) == old.id
        Trace(made.manifest(3), {}).save(folder / "b")  # the next writer removes what is unfinished
        assert not [p for p in folder.iterdir() if ".writing-" in p.name]
        aside_left += any(".replaced-" in p.name for p in folder.iterdir())
    assert aside_left == 2, "only between the renames: of the old, of the new, and of the old to what is removed"
    assert moment > 5 and found == {old.id, new.id}


def killed_at(moment: int, work) -> bool:
    """Whether a child process was killed before its `moment`-th change of the file system; without it, it ended."""
    pid = os.fork()
    if pid == 0:
        left = moment

        def counting(change):
            def counted(*args, **kwargs):
                nonlocal left
                left -= 1
                if left < 0:
                    os._exit(9)
                return change(*args, **kwargs)

            return counted

        for name in ("rename", "unlink", "rmdir", "mkdir"):
            setattr(os, name, counting(getattr(os, name)))
        work()
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 9


def test_a_file_that_the_manifest_does_not_name_is_not_removed(tmp_path: Path) -> None:
    path = made.trace(seed=1).save(tmp_path / "a")
    (path / "part-99999.safetensors").write_text("mine")
    before = everything_under(tmp_path)
    with pytest.raises(TraceExists, match="part-99999"):
        made.trace().save(path, overwrite=True)
    assert everything_under(tmp_path) == before


@pytest.mark.parametrize("at", [0, 1])
def test_another_process_that_replaces_it_at_the_same_time_stops_nothing(
    at: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before the two renames the old trace is gone; between them another one is there."""
    path, rename, calls = made.trace(seed=1).save(tmp_path / "a"), Path.rename, []

    def with_another(self: Path, target: Path) -> Path:
        moved = rename(self, target)
        calls.append(target)
        if len(calls) == at + 1 and path.exists():
            rename(path, tmp_path / "elsewhere")
        elif len(calls) == at + 1:
            made.trace(seed=2).save(path)
        return moved

    monkeypatch.setattr(Path, "rename", with_another)
    made.trace().save(path, overwrite=True)
    monkeypatch.undo()
    assert whole(path) == made.trace().id
    assert {*os.listdir(tmp_path)} == ({"a", "elsewhere"} if at == 0 else {"a"})


def test_threads_that_replace_one_trace_all_succeed(tmp_path: Path) -> None:
    path = made.trace(seed=1).save(tmp_path / "a")
    traces = [made.trace(seed=seed) for seed in (2, 3, 4)]
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(lambda i: traces[i % 3].save(path, overwrite=True), range(30)))
    assert whole(path) in {trace.id for trace in traces} and os.listdir(tmp_path) == ["a"]


@pytest.mark.parametrize("then", ["another is put there", "nothing is there"])
def test_a_trace_that_another_writer_moves_while_it_is_read_is_no_reason_to_refuse(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, then: str
) -> None:
    path, read, calls = made.trace(seed=1).save(tmp_path / "a"), exchange.StoredArrays, []

    def moved(target: Path) -> Any:
        calls.append(target)
        if len(calls) == 1:
            path.rename(tmp_path / "old")
            if then == "another is put there":
                made.trace(seed=2).save(path)
                shutil.rmtree(tmp_path / "old")
                raise TraceError("the manifest was gone between two looks at the folder")
            shutil.rmtree(tmp_path / "old")
        return read(target)

    monkeypatch.setattr(exchange, "StoredArrays", moved)
    made.trace().save(path, overwrite=True)
    assert whole(path) == made.trace().id and os.listdir(tmp_path) == ["a"]


def test_a_new_trace_that_another_writer_removes_is_written_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, write, calls = made.trace(seed=1).save(tmp_path / "a"), exchange.write, []

    def removed(target: Path, *args: Any) -> Path:
        written = write(target, *args)
        calls.append(target)
        if len(calls) in (2, 3):  # 1 finds the old trace there
            shutil.rmtree(written)
        return written

    monkeypatch.setattr(exchange, "write", removed)
    made.trace().save(path, overwrite=True)
    assert whole(path) == made.trace().id and os.listdir(tmp_path) == ["a"]
