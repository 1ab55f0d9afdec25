# ruff: noqa: PT012  # the body of a `with TraceWriter` is what is tested
import errno
import os
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.traces import made
from workbench.errors import HookNameError, TraceError, TraceExists
from workbench.traces import (
    Trace,
    TraceWriter,
    check_writable,
    load,
    predicted_bytes,
    untrusted_files,
    verify,
    write,
    writer,
)
from workbench.traces.format import table_of
from workbench.traces.spans import Span


def on_disk(path: Path) -> int:
    return sum(file.stat().st_size for file in path.iterdir())


def everything_under(folder: Path) -> dict[str, bytes | None]:
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None for p in sorted(folder.rglob("*"))}


# What it costs.


@pytest.mark.parametrize("count", [0, 1, 9, 200])
@pytest.mark.parametrize("part_bytes", [1, 1000, 1 << 30])
def test_predicted_bytes_equal_the_written_bytes(
    count: int, part_bytes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer, "PART_BYTES", part_bytes)
    manifest, arrays = (
        made.manifest(count, notes=["é\u202e"], prompt_length=0, generation=made.GENERATION),
        made.arrays(count),
    )
    predicted = predicted_bytes(manifest, table_of(arrays))
    assert predicted == on_disk(write(tmp_path / "a", manifest, arrays))
    trace = Trace(manifest, arrays)
    assert predicted_bytes(trace.manifest, table_of(arrays)) == predicted
    back = load(tmp_path / "a")
    assert all(made.same(back.raw(name), array) for name, array in arrays.items())


def test_predicted_bytes_without_tensors_are_those_of_the_manifest(tmp_path: Path) -> None:
    assert predicted_bytes(made.manifest(), {}) == on_disk(write(tmp_path / "a", made.manifest(), {}))
    assert [file.name for file in (tmp_path / "a").iterdir()] == ["manifest.json"]


def test_predicted_bytes_refuse_tensors_that_do_not_fit() -> None:
    with pytest.raises(HookNameError):
        predicted_bytes(made.manifest(), {"hook_nothing": ("F32", (9,))})
    with pytest.raises(ValueError, match="logprob"):
        predicted_bytes(made.manifest(), {"logprob": ("F32", (9, 9))})


# What may be at the path.


def test_writing_the_same_trace_again_does_nothing(tmp_path: Path) -> None:
    path = made.trace().save(tmp_path / "a")
    before = everything_under(tmp_path)
    assert made.trace(created="2031-01-01T00:00:00+00:00").save(path) == path
    assert load(path).save(path) == path
    assert everything_under(tmp_path) == before


def test_how_a_run_was_cut_into_parts_does_not_matter(tmp_path: Path) -> None:
    path = made.streamed(tmp_path / "a")
    before = everything_under(tmp_path)
    made.streamed(path, (5, 3, 1))
    made.streamed(tmp_path / "b", (5, 3, 1))
    whole = load(path).save(tmp_path / "c")  # one part
    assert len(list(whole.iterdir())) < len(list(path.iterdir()))
    load(whole).save(path)
    load(path).save(whole)
    assert everything_under(path) == {name.removeprefix("a/"): data for name, data in before.items() if name != "a"}


def test_the_same_run_with_other_numbers_is_refused_as_not_deterministic(tmp_path: Path) -> None:
    path = made.trace().save(tmp_path / "a")
    before = everything_under(tmp_path)
    arrays = made.arrays()
    arrays["logprob"] = np.nextafter(arrays["logprob"], np.float32(9))
    with pytest.raises(TraceExists, match=r"same run .* other content: logprob\. Is the run not deterministic\?"):
        Trace(made.manifest(), arrays).save(path)
    with pytest.raises(TraceExists, match="not deterministic"), TraceWriter(path, made.manifest()) as writer:
        writer.append(arrays)
    with pytest.raises(TraceExists, match="other content: notes"):
        made.trace(notes=["more"]).save(path)
    with pytest.raises(TraceExists, match="The existing one is complete, this one is partial"):
        made.trace(status="partial").save(path)
    with pytest.raises(TraceExists, match=r"other content: blocks\.0\.attn\.hook_attn_scores, .*…"):
        write(path, made.manifest(), {})
    assert everything_under(tmp_path) == before


def test_another_trace_is_never_replaced(tmp_path: Path) -> None:
    path = made.trace(seed=1).save(tmp_path / "a")
    before = everything_under(tmp_path)
    for attempt in (lambda: made.trace().save(path), lambda: TraceWriter(path, made.manifest())):
        with pytest.raises(TraceExists, match=r"another trace is at .*, 9 tokens; .* Choose another path"):
            attempt()
    assert everything_under(tmp_path) == before


def with_file(path: Path) -> None:
    path.write_text("mine")


def with_folder(path: Path) -> None:
    path.mkdir()
    (path / "thesis.tex").write_text("mine")


def with_link(path: Path) -> None:
    (path.parent / "elsewhere").mkdir()
    path.symlink_to("elsewhere")


def with_broken_link(path: Path) -> None:
    path.symlink_to("nowhere")


def with_fifo(path: Path) -> None:
    os.mkfifo(path)


def with_damage(path: Path) -> None:
    made.trace().save(path)
    (path / "manifest.json").write_text("{}")


def with_damaged_numbers(path: Path) -> None:
    made.trace().save(path)
    with (path / "part-00000.safetensors").open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\x99")


@pytest.mark.parametrize(
    "put", [with_file, with_folder, with_link, with_broken_link, with_fifo, with_damage, with_damaged_numbers]
)
def test_other_files_and_folders_are_never_touched(put: Callable[[Path], None], tmp_path: Path) -> None:
    path = tmp_path / "a"
    put(path)
    before = everything_under(tmp_path)
    with pytest.raises(TraceExists):
        made.trace().save(path)
    with pytest.raises(TraceExists), TraceWriter(path, made.manifest()) as writer:
        writer.append(made.arrays())
    assert everything_under(tmp_path) == before


def test_an_empty_folder_may_become_the_trace(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    assert verify(made.trace().save(tmp_path / "a")).ok


def test_a_file_created_at_the_path_in_the_meantime_is_not_replaced(tmp_path: Path) -> None:
    with pytest.raises(TraceExists, match="another trace"), TraceWriter(tmp_path / "a", made.manifest()) as writer:
        writer.append(made.arrays())
        made.trace(seed=1).save(tmp_path / "a")
    assert load(tmp_path / "a").id == made.trace(seed=1).id and os.listdir(tmp_path) == ["a"]


def test_a_faster_writer_of_the_same_run_is_not_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.rename

    def late(source: Path, target: Path) -> None:
        monkeypatch.setattr(os, "rename", real)
        made.trace().save(target)
        real(source, target)

    monkeypatch.setattr(os, "rename", late)
    assert verify(made.trace().save(tmp_path / "a")).ok
    assert os.listdir(tmp_path) == ["a"]


def test_many_writers_of_one_run_leave_one_trace(tmp_path: Path) -> None:
    errors: list[Exception] = []

    def save() -> None:
        try:
            made.trace().save(tmp_path / "a")
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=save) for _ in range(8)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert errors == [] and os.listdir(tmp_path) == ["a"] and verify(tmp_path / "a").ok


# What happens when something fails in the middle.


def failing_write(after: int, code: int = errno.ENOSPC) -> Callable[[int, Any], int]:
    real, remaining = os.write, [after]

    def write(fd: int, data: Any) -> int:
        if remaining[0] <= 0:
            raise OSError(code, os.strerror(code))
        count = real(fd, data[: remaining[0]])
        remaining[0] -= count
        return count

    return write


@pytest.mark.parametrize("after", [0, 1, 8, 500, 3000, 9000, 11000, 12500])
def test_a_full_disk_leaves_nothing_and_raises_an_error_with_the_free_space(
    after: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "other").write_text("mine")
    before = everything_under(tmp_path)
    assert after < predicted_bytes(made.manifest(), table_of(made.arrays()))
    for attempt in (lambda: made.trace().save(tmp_path / "a"), lambda: made.streamed(tmp_path / "a")):
        with (
            monkeypatch.context() as patch,
            pytest.raises(TraceError, match=r"the disk is full \([0-9,]+ bytes are free") as caught,
        ):
            patch.setattr(os, "write", failing_write(after))
            attempt()
        assert isinstance(caught.value.__cause__, OSError)
        assert everything_under(tmp_path) == before


@pytest.mark.parametrize("what", ["fsync", "rename", "mkdir", "open"])
def test_a_failing_disk_leaves_nothing(what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = getattr(os, what)
    for allowed in range(2 if what == "fsync" else 1):
        calls = [0]

        def fail(*args: Any, calls: list[int] = calls, allowed: int = allowed, **options: Any) -> Any:
            if what == "open" and not args[1] & os.O_WRONLY:
                return real(*args, **options)
            calls[0] += 1
            if calls[0] > allowed:
                raise OSError(errno.EIO, "Input/output error")
            return real(*args, **options)

        with (
            monkeypatch.context() as patch,
            pytest.raises(TraceError, match=r"could not be written .* Input/output error"),
        ):
            patch.setattr(os, what, fail)
            made.trace().save(tmp_path / "a")
        assert os.listdir(tmp_path) == []


def test_a_trace_that_is_written_but_not_durable_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = untrusted_files.sync

    def fail(folder: Path) -> None:
        if folder == tmp_path:
            raise OSError(errno.EIO, "Input/output error")
        real(folder)

    monkeypatch.setattr(untrusted_files, "sync", fail)
    with pytest.raises(TraceError, match="a power cut could still undo it"):
        made.trace().save(tmp_path / "a")
    assert verify(tmp_path / "a").ok and os.listdir(tmp_path) == ["a"]


def test_a_read_only_folder_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match="could not be written"):
        made.trace().save("/proc/a")
    with pytest.raises(TraceError, match="could not be written"):
        made.trace().save(tmp_path / ("a" * 256))
    with_file(tmp_path / "file")
    with pytest.raises(TraceError, match="could not be written"):
        made.trace().save(tmp_path / "file" / "a")
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("keep", [False, True])
def test_an_error_leaves_nothing_without_keep_partial(error: type[BaseException], keep: bool, tmp_path: Path) -> None:
    first, second = made.arrays(5), made.arrays(3, before=5)
    with pytest.raises(error), TraceWriter(tmp_path / "a", made.manifest(9), keep_partial=keep) as writer:
        writer.append(first)
        writer.append(second)
        writer.manifest = replace(made.manifest(9), **made.tokens([1] * 8))
        raise error
    assert os.listdir(tmp_path) == (["a"] if keep else [])
    if keep:
        trace = load(tmp_path / "a")
        assert trace.status == "partial" and "partial" in repr(trace) and len(trace) == 8
        assert trace["resid_post", 0].shape == (8, 10)


def test_an_interrupted_run_keeps_the_tokens_whose_values_were_written(tmp_path: Path) -> None:
    spans = [Span(0, 4, 1, 4, "user"), Span(4, 7, 5, 7, "assistant"), Span(7, 9, 7, 9, "tool")]
    manifest = made.manifest(9, spans=spans)
    with pytest.raises(KeyboardInterrupt), TraceWriter(tmp_path / "a", manifest, keep_partial=True) as writer:
        writer.append(made.arrays(5))
        raise KeyboardInterrupt
    trace = load(tmp_path / "a")
    assert trace.tokens == manifest.tokens[:5] and trace.status == "partial" and trace.prompt_length == 5
    assert trace.spans == [spans[0], Span(4, 5, 5, 5, "assistant", complete=False)]
    assert trace["resid_post", 0].shape == (5, 10)


def test_an_error_before_the_first_part_keeps_nothing(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), TraceWriter(tmp_path / "a", made.manifest(), keep_partial=True):
        raise RuntimeError
    assert os.listdir(tmp_path) == []


def test_ctrl_c_in_the_middle_of_a_part_keeps_the_parts_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, calls = os.write, [0]

    def interrupted(fd: int, data: Any) -> int:
        calls[0] += 1
        if calls[0] == 4:
            raise KeyboardInterrupt
        return real(fd, data[:100])

    with pytest.raises(KeyboardInterrupt), TraceWriter(tmp_path / "a", made.manifest(), keep_partial=True) as writer:
        writer.append(made.arrays(5))
        monkeypatch.setattr(os, "write", interrupted)
        writer.append(made.arrays(3, before=5))
    monkeypatch.undo()
    assert sorted(os.listdir(tmp_path / "a")) == ["manifest.json", "part-00000.safetensors"]
    assert verify(tmp_path / "a").ok and load(tmp_path / "a")["logprob"].shape == (5,)


def test_arrays_that_do_not_continue_earlier_ones_are_refused_without_data_loss(tmp_path: Path) -> None:
    with TraceWriter(tmp_path / "a", made.manifest()) as writer:
        writer.append(made.arrays(5), source="live")
        good = made.arrays(4, before=5)
        for wrong, source in (
            ({"logprob": good["logprob"].astype("f8")}, "live"),
            ({"logprob": good["logprob"]}, "replay"),
            ({"logprob": good["logprob"]}, None),
            ({"margin": np.zeros((made.LAYERS + 1, 4), "f4")}, "live"),
            ({"logprob": np.zeros((4, 1), "f4")}, "live"),
            ({"logprob": good["logprob"]}, "dead"),
        ):
            with pytest.raises(ValueError):
                writer.append(wrong, source=source)
        with pytest.raises(HookNameError):
            writer.append({"hook_nothing": np.zeros(3)})
        with pytest.raises(TypeError):
            writer.append({"logprob": np.array(["text"])})
        writer.append({}, source="live")
        writer.append({"sinks": np.zeros((made.LAYERS, made.HEADS), "f4")})
        with pytest.raises(ValueError, match="written only once"):
            writer.append({"sinks": np.zeros((made.LAYERS, made.HEADS), "f4")})
        writer.append(good, source="live")
    trace = load(tmp_path / "a")
    assert verify(tmp_path / "a").ok and trace["logprob"].shape == (9,) and trace.source("sinks") == "forward"
    assert len(os.listdir(tmp_path / "a")) == 4


def test_a_closed_writer_stays_closed(tmp_path: Path) -> None:
    with TraceWriter(tmp_path / "a", made.manifest()) as writer:
        writer.append(made.arrays())
        writer.commit(status="partial")
    writer.abort()
    for attempt in (writer.commit, lambda: writer.append(made.arrays())):
        with pytest.raises(ValueError, match="is closed"):
            attempt()
    assert load(tmp_path / "a").status == "partial"
    aborted = TraceWriter(tmp_path / "b", made.manifest())
    aborted.abort()
    assert os.listdir(tmp_path) == ["a"]


def test_the_last_manifest_is_the_one_that_is_written(tmp_path: Path) -> None:
    with TraceWriter(tmp_path / "a", made.manifest(4)) as writer:
        writer.append(made.arrays(4))
        writer.commit(replace(made.manifest(4), notes=["done"]))
    assert load(tmp_path / "a").manifest.notes == ["done"]


def test_every_byte_is_durable_before_the_trace_appears(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []
    fsync, rename = os.fsync, os.rename

    def seen(fd: int) -> None:
        events.append(Path(f"/proc/self/fd/{fd}").readlink().name)
        fsync(fd)

    def moved(source: Path, target: Path) -> None:
        events.append(f"{Path(source).name} -> {Path(target).name}")
        rename(source, target)

    monkeypatch.setattr(os, "fsync", seen)
    monkeypatch.setattr(os, "rename", moved)
    made.streamed(tmp_path / "new" / "a", (5, 4))
    staging = events[4]
    assert staging.startswith(f".a.writing-{os.getpid()}-")
    assert events == [
        tmp_path.name,  # the name "new"
        "part-00000.safetensors",
        "part-00001.safetensors",
        "manifest.json",
        staging,  # the names in it
        f"{staging} -> a",
        "new",  # the name "a"
    ]


# What a dead writer left.


def test_only_folders_of_dead_writers_are_swept(tmp_path: Path) -> None:
    dead = subprocess.run(
        [sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True, check=True
    )
    pid = int(dead.stdout)
    stale = tmp_path / f".a.writing-{pid}-0"
    stale.mkdir()
    (stale / "part-00000.safetensors").write_bytes(b"half")
    for name in (
        f".a.writing-{os.getpid()}-99",
        ".a.writing-1-0",
        f"a.writing-{pid}-0",
        f".a.writing-{pid}",
        ".writing-0-0",
    ):
        (tmp_path / name).mkdir()
    (tmp_path / f".b.writing-{pid}-0").write_text("a file")
    (tmp_path / f".c.writing-{pid}-0").symlink_to(tmp_path)
    before = set(os.listdir(tmp_path))
    made.trace().save(tmp_path / "sub" / "a")
    assert set(os.listdir(tmp_path)) == before | {"sub"}  # another folder is another matter
    made.trace().save(tmp_path / "a")
    assert set(os.listdir(tmp_path)) == before - {stale.name} | {"sub", "a"}


def test_a_locked_folder_is_not_swept_whatever_its_pid(tmp_path: Path) -> None:
    code = f"""
import os, sys, time
sys.path.insert(0, {str(Path.cwd())!r})
from tests.traces import made
from workbench.traces import TraceWriter
writer = TraceWriter({str(tmp_path / "a")!r}, made.manifest())
os.rename(writer._staging.path, {str(tmp_path / ".a.writing-2147483647-0")!r})  # as seen from another container
print("ready", flush=True)
time.sleep(60)
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as child:
        assert child.stdout and child.stdout.readline() == b"ready\n"
        assert untrusted_files.sweep(tmp_path) == []
        child.send_signal(signal.SIGKILL)
    assert [path.name for path in untrusted_files.sweep(tmp_path)] == [".a.writing-2147483647-0"]
    assert os.listdir(tmp_path) == []


def test_relative_paths_and_odd_names_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b/../c", "sp ace", "é\u202e", "d/"):
        made.trace().save(name)
    trace = load("a")
    monkeypatch.chdir("/")
    assert trace["logprob"].shape == (9,)  # still found
    assert verify(tmp_path / "c").ok and verify(tmp_path / "é\u202e").ok
    assert str(verify(tmp_path / "é\u202e")).isprintable()


# File systems that cannot make a folder's names durable.


def without_folder_fsync(code: int, real: Any = os.fsync) -> Any:
    def fsync(fd: int) -> None:
        if stat.S_ISDIR(os.fstat(fd).st_mode):
            raise OSError(code, os.strerror(code))
        real(fd)

    return fsync


@pytest.mark.parametrize("code", [errno.EINVAL, errno.ENOTSUP, errno.ENOSYS, errno.EBADF, errno.EACCES])
def test_without_fsync_of_folders_the_trace_is_written_with_a_warning(
    code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(os, "fsync", without_folder_fsync(code))
    path = made.trace().save(tmp_path / "new" / "a")
    assert verify(path).ok and os.listdir(tmp_path / "new") == ["a"]
    assert "a power cut soon after could undo it" in caplog.text and str(path) in caplog.text
    check_writable(tmp_path / "b")
    made.streamed(tmp_path / "c", (5, 4))
    assert len(caplog.records) == 2


def test_without_any_fsync_the_trace_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fsync(fd: int) -> None:
        raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(os, "fsync", fsync)
    assert verify(made.trace().save(tmp_path / "a")).ok


@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.EROFS])
def test_a_failing_disk_is_detected_before_a_run_and_leaves_nothing(
    code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fsync", without_folder_fsync(code))
    for attempt in (lambda: check_writable(tmp_path / "a"), lambda: made.trace().save(tmp_path / "a")):
        with pytest.raises(TraceError, match="could not be written"):
            attempt()
        assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("where", ["/proc/a", "file/a", "n" * 256])
def test_a_path_that_cannot_hold_a_trace_is_detected_before_a_run(where: str, tmp_path: Path) -> None:
    with_file(tmp_path / "file")
    with pytest.raises(TraceError, match="could not be written"):
        check_writable(tmp_path / where)
    with pytest.raises(TraceError, match="could not be written"):
        made.trace().save(tmp_path / where)
    assert os.listdir(tmp_path) == ["file"]


def test_checking_a_path_leaves_no_file(tmp_path: Path) -> None:
    check_writable(tmp_path / "new" / "deep" / "a")
    check_writable(made.trace().save(tmp_path / "a"))
    check_writable("/")  # that something else is there is for the writer to say
    assert os.listdir(tmp_path) == ["a"]
