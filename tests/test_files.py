"""Files appear complete or not at all: an error in any step leaves only the earlier file."""

import ast
import os
import stat
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import workbench as wb
from workbench import files
from workbench.errors import FileError
from workbench.files import atomic_files, atomic_folder, atomic_path, atomic_write, locked


def test_bytes_and_texts_replace_an_existing_file(tmp_path: Path):
    target = tmp_path / "a.txt"
    assert atomic_write(target, "−1 ✓") == target and target.read_bytes() == "−1 ✓".encode()
    atomic_write(target, b"\x00\xff" * 100_000)
    assert target.read_bytes() == b"\x00\xff" * 100_000
    assert os.listdir(tmp_path) == ["a.txt"]
    assert stat.S_IMODE(target.stat().st_mode) == 0o666 & ~umask()


def umask() -> int:
    before = os.umask(0)
    os.umask(before)
    return before


def test_a_file_is_on_the_disk_before_it_has_its_name_and_its_name_after(tmp_path: Path, monkeypatch):
    events: list[str] = []
    fsync, replace = os.fsync, os.replace

    def synced(fd: int) -> None:
        info = os.fstat(fd)
        events.append("fsync folder" if stat.S_ISDIR(info.st_mode) else f"fsync {info.st_size} bytes")
        fsync(fd)

    def renamed(source: Path, target: Path) -> None:
        assert source.parent == target.parent and source.name.startswith(".a.")
        events.append("rename")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", renamed)
    atomic_write(tmp_path / "a", b"12345")
    with atomic_path(tmp_path / "a") as path:
        path.write_bytes(b"123456789")
    assert events == ["fsync 5 bytes", "rename", "fsync folder", "fsync 9 bytes", "rename", "fsync folder"]


@pytest.mark.parametrize("call", ["write", "fsync", "replace"])
@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
@pytest.mark.parametrize("before", [None, b"as it was"])
def test_an_error_in_any_step_leaves_only_the_earlier_file(call, error, before, tmp_path, monkeypatch):
    if before is not None:
        (tmp_path / "a").write_bytes(before)

    def fail(*_: Any) -> None:
        raise error

    monkeypatch.setattr(os, call, fail)
    with pytest.raises(type(error)):
        atomic_write(tmp_path / "a", b"new")
    monkeypatch.undo()
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == ({} if before is None else {"a": before})


def test_an_error_of_the_writer_leaves_the_earlier_file(tmp_path: Path):
    def write(path: Path) -> None:
        path.write_bytes(b"half")
        raise ZeroDivisionError

    (tmp_path / "a").write_bytes(b"as it was")
    with pytest.raises(ZeroDivisionError), atomic_path(tmp_path / "a") as path:
        write(path)
    assert [p.read_bytes() for p in tmp_path.iterdir()] == [b"as it was"]


def test_a_write_of_a_few_bytes_at_a_time_is_continued(tmp_path: Path, monkeypatch):
    real = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: real(fd, data[:7]))
    assert atomic_write(tmp_path / "a", bytes(range(100))).read_bytes() == bytes(range(100))


MADE: dict[str, tuple[str, Callable[[Path], Any]]] = {
    "a folder": ("a folder", lambda path: path.mkdir()),
    "a FIFO": ("a FIFO", lambda path: os.mkfifo(path)),
    "a device": ("a symlink to a device", lambda path: path.symlink_to(os.devnull)),
}


@pytest.mark.parametrize("kind", MADE)
def test_only_a_regular_file_is_replaced(kind: str, tmp_path: Path):
    says, make = MADE[kind]
    make(tmp_path / "a")
    before = os.lstat(tmp_path / "a")
    for attempt in (lambda: atomic_write(tmp_path / "a", b"new"), lambda: atomic_path(tmp_path / "a").__enter__()):
        with pytest.raises(FileError, match=f"is {says}"):
            attempt()
    after = os.lstat(tmp_path / "a")
    assert (after.st_mode, after.st_ino) == (before.st_mode, before.st_ino) and os.listdir(tmp_path) == ["a"]


@pytest.mark.parametrize("there", [True, False])
def test_a_symlink_is_refused_with_the_path_of_its_target(there: bool, tmp_path: Path):
    elsewhere = tmp_path / "elsewhere"
    if there:
        elsewhere.write_bytes(b"theirs")
    (tmp_path / "a").symlink_to(elsewhere)
    with pytest.raises(FileError, match=f"is a symlink to {'a file' if there else 'nothing'}, .*/elsewhere"):
        atomic_write(tmp_path / "a", b"ours")
    assert (tmp_path / "a").readlink() == elsewhere
    assert elsewhere.exists() == there and (not there or elsewhere.read_bytes() == b"theirs")


def test_a_name_that_is_taken_is_never_written_to(tmp_path: Path, monkeypatch):
    """Neither the file of a killed process nor a link at the scratch name is overwritten."""
    victim = tmp_path / "victim"
    victim.write_bytes(b"theirs")
    (tmp_path / ".left").write_bytes(b"half")
    (tmp_path / ".planted").symlink_to(victim)
    names = iter([tmp_path / ".left", tmp_path / ".planted", tmp_path / ".free"])
    monkeypatch.setattr(files, "scratch", lambda target: next(names))
    atomic_write(tmp_path / "a", b"ours")
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir() if not p.is_symlink()} == {
        "a": b"ours", "victim": b"theirs", ".left": b"half",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("make", "says"),
    [(lambda path: path.symlink_to("/etc/hostname"), "symbolic links"), (os.mkfifo, "is no longer a file")],
)
def test_a_writer_that_replaces_the_file_by_another_kind_is_refused(
    make: Callable[[Path], None], says: str, tmp_path: Path
):
    def replace(path: Path) -> None:
        path.unlink()
        make(path)

    (tmp_path / "a").write_bytes(b"as it was")
    with pytest.raises(OSError, match=says), atomic_path(tmp_path / "a") as path:
        replace(path)
    assert (tmp_path / "a").read_bytes() == b"as it was" and os.listdir(tmp_path) == ["a"]


def test_a_full_disk_is_told_with_the_path_and_the_free_space(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda fd: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(FileError, match=r"/a was not written, .*No space left on device: .*B are free") as caught:
        atomic_write(tmp_path / "a", b"1")
    assert caught.value.errno == 28


def test_a_replaced_file_keeps_its_permissions(tmp_path: Path):
    (tmp_path / "a").write_bytes(b"secret")
    (tmp_path / "a").chmod(0o600)
    atomic_write(tmp_path / "a", b"new")
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o600


def test_hidden_files_of_dead_processes_are_removed_and_those_of_living_ones_are_not(tmp_path: Path):
    dead = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True)
    left, living = tmp_path / f".b.writing-{int(dead.stdout)}-0", tmp_path / f".b.writing-{os.getpid()}-77"
    folder, notes = tmp_path / f".c.writing-{int(dead.stdout)}-0", tmp_path / ".notes.writing-soon"
    folder.mkdir()
    for path in (left, living, notes):
        path.write_bytes(b"half")
    atomic_write(tmp_path / "a", b"1")
    assert not left.exists() and living.exists() and folder.exists() and notes.exists()


def test_several_files_are_all_replaced_or_none(tmp_path: Path, monkeypatch):
    targets = [tmp_path / name for name in "abc"]
    assert atomic_files(dict.fromkeys(targets[:2], b"old")) == targets[:2]
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    replace = os.replace
    for stop in range(3):
        calls = iter(range(99))

        def failing(source, target, calls=calls, stop=stop):
            if next(calls) == stop:
                raise KeyboardInterrupt
            replace(source, target)

        monkeypatch.setattr(os, "replace", failing)
        with pytest.raises(KeyboardInterrupt):
            atomic_files(dict.fromkeys(targets, b"new"))
        monkeypatch.undo()
        assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before
    atomic_files(dict.fromkeys(targets, b"new"))
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == dict.fromkeys("abc", b"new")


def test_only_one_thread_at_a_time_is_in_a_locked_block(tmp_path: Path):
    inside, most = [], []

    def work():
        for _ in range(20):
            with locked(tmp_path / "a"):
                inside.append(1)
                most.append(len(inside))
                inside.pop()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(most) == {1} and len(most) == 80 and os.listdir(tmp_path) == []


def test_threads_that_write_one_file_leave_one_complete_version(tmp_path: Path):
    contents = [bytes([i]) * 10_000 for i in range(8)]
    threads = [threading.Thread(target=atomic_write, args=(tmp_path / "a", data)) for data in contents]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (tmp_path / "a").read_bytes() in contents and os.listdir(tmp_path) == ["a"]


@pytest.mark.parametrize("before", ["nothing", "an empty folder"])
def test_a_folder_appears_with_all_its_files(before: str, tmp_path: Path):
    target = tmp_path / "model"
    if before != "nothing":
        target.mkdir()
    with atomic_folder(target) as staging:
        (staging / "deep").mkdir()
        (staging / "deep" / "a").write_bytes(b"1")
        assert before != "nothing" or not target.exists()
    assert (target / "deep" / "a").read_bytes() == b"1" and os.listdir(tmp_path) == ["model"]


def test_a_folder_that_fails_leaves_nothing_and_never_replaces_another(tmp_path: Path):
    def interrupted(staging: Path) -> None:
        (staging / "a").write_bytes(b"1")
        raise KeyboardInterrupt

    def overtaken() -> None:
        (tmp_path / "model").mkdir()
        (tmp_path / "model" / "theirs").write_bytes(b"2")

    with pytest.raises(KeyboardInterrupt), atomic_folder(tmp_path / "model") as staging:
        interrupted(staging)
    assert os.listdir(tmp_path) == []
    with pytest.raises(OSError, match="not empty"), atomic_folder(tmp_path / "model"):
        overtaken()
    assert os.listdir(tmp_path) == ["model"] and os.listdir(tmp_path / "model") == ["theirs"]


def test_every_file_of_a_folder_is_on_the_disk_before_the_folder_has_its_name(tmp_path: Path, monkeypatch):
    events: list[str] = []
    fsync, rename = os.fsync, os.rename
    monkeypatch.setattr(os, "fsync", lambda fd: (events.append(str(os.fstat(fd).st_ino)), fsync(fd))[1])
    monkeypatch.setattr(os, "rename", lambda a, b: (events.append("rename"), rename(a, b))[1])
    with atomic_folder(tmp_path / "model") as staging:
        (staging / "deep").mkdir()
        (staging / "deep" / "a").write_bytes(b"1")
    target = tmp_path / "model"
    inodes = [str(p.stat().st_ino) for p in (target / "deep", target / "deep" / "a", target)]
    assert events == [*inodes, "rename", str(tmp_path.stat().st_ino)]


# What writes a file beside its target: the compiler's output, which is made where nothing of ours can be imported, and
# the folder of a trace, which is locked while it grows.
ELSEWHERE = {
    "model/kernels/build.py": {"Path.replace"},
    "traces/exchange.py": {"Path.rename"},
    "traces/untrusted_files.py": {"Path.rename"},
}
STEPS = {
    "Path.replace",
    "Path.rename",
    "os.replace",
    "os.rename",
    "os.fsync",
    "os.link",
    "tempfile.mkstemp",
    "tempfile.NamedTemporaryFile",
}


def step_of(call: ast.Call) -> str:
    """What is called; `x.replace(y)` and `x.rename(y)`, with one argument, are those of a path and not of a text."""
    if isinstance(call.func, ast.Attribute) and call.func.attr in {"replace", "rename"} and len(call.args) == 1:
        return f"Path.{call.func.attr}" if not call.keywords else ""
    return ast.unparse(call.func)


def test_only_this_module_renames_files_into_place():
    steps_by_file = {}
    for path in sorted(Path(wb.__file__).parent.rglob("*.py")):
        called = {step_of(node) for node in ast.walk(ast.parse(path.read_text("utf-8"))) if isinstance(node, ast.Call)}
        if called & STEPS:
            steps_by_file[path.relative_to(Path(wb.__file__).parent).as_posix()] = called & STEPS
    assert steps_by_file.pop("files.py") == {"Path.replace", "Path.rename", "os.fsync", "os.link"}
    assert steps_by_file == ELSEWHERE
