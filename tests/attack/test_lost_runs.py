"""Runs that an interrupt, a signal, a full disk or a bad argument could lose, or that a setting of torch could change.

What was generated must be there afterwards, and continue to the same bits. What cannot be kept is refused before the
model runs.
"""

import errno
import fractions
import json
import os
import shutil
import signal
import stat
import sys
import tempfile
import threading
import time
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch

import workbench as wb
from tests.model.models import some_tokens, tiny
from tests.traces import made
from workbench import cli
from workbench.model.cache import KVCache
from workbench.recording import assemble, checkpointing, decoding, generation, resume, source
from workbench.recording.generation import Interrupted
from workbench.recording.taps import Recorder
from workbench.traces import Trace, TraceWriter, run_checkpoint

PROMPT, N = some_tokens(20), 8
SAMPLED = {"temperature": 0.9, "seed": 5, "record": "residuals"}
ASK = "Mod 10: a=3, b=a+4, c=b+2. Find c."
LONG = pytest.mark.skipif(os.environ.get("WORKBENCH_LONG") != "1", reason="minutes; WORKBENCH_LONG=1 switches it on")


@pytest.fixture(scope="module")
def model():
    return tiny()


@pytest.fixture(scope="module")
def whole(model):
    return model.generate(PROMPT, max_tokens=N, **SAMPLED)


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture(autouse=True)
def handlers_are_restored():
    yield
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert {signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGHUP)} == {signal.SIG_DFL}


def same(a: Trace, b: Trace) -> bool:
    """Whether two traces have the same id, tokens, names and bits."""
    equal = a.id == b.id and a.tokens == b.tokens and a.names() == b.names() and a.status == b.status
    return equal and all(
        np.array_equal(a.raw(name), b.raw(name), equal_nan=a.raw(name).dtype.kind == "f") for name in a.names()
    )


@contextmanager
def in_pass(n: int, action, point: str = "blocks.1.mlp.router.hook_out"):
    """Calls `action` in the n-th pass: 1 is the prefill, N + 2 the replay."""
    call, remaining = Recorder.__call__, [n]

    def press(recorder, name, x, offset=0):
        if name == point:
            remaining[0] -= 1
            if remaining[0] == 0:
                action()
        return call(recorder, name, x, offset)

    with mock.patch.object(Recorder, "__call__", press):
        yield


def press(times: int = 1, signum: int = signal.SIGINT):
    def action(*_):
        for _ in range(times):
            signal.raise_signal(signum)

    return action


def what_remains(model, run) -> Trace | None:
    """The trace of a run that was stopped: of the exception, or of the model."""
    try:
        return run()
    except KeyboardInterrupt as interrupt:
        return getattr(interrupt, "trace", None) or model.partial


# Several presses of Ctrl-C.


# A press after the end of a run may come while tqdm's bar is deleted, where Python can only warn.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("n_pass", [2, 6, N + 2], ids=["first token", "later token", "replay"])
@pytest.mark.parametrize(("presses", "gap"), [(2, 0.001), (2, 0.03), (3, 0.005), (10, 0.02), (30, 0.002)])
def test_presses_at_a_gap_lose_nothing(attempt, model, whole, n_pass, presses, gap):
    threads = []

    def repeatedly():
        def work():
            for _ in range(presses - 1):
                time.sleep(gap)
                os.kill(os.getpid(), signal.SIGINT)

        threads.append(threading.Thread(target=work))
        signal.raise_signal(signal.SIGINT)
        threads[0].start()

    def run():
        swallowed = None
        try:
            with in_pass(n_pass, repeatedly):
                trace = what_remains(model, lambda: model.generate(PROMPT, max_tokens=N, **SAMPLED))
            swallowed = signal.signal(signal.SIGINT, lambda *_: None)
        except KeyboardInterrupt:  # after the run: at the line of the test
            swallowed = swallowed or signal.signal(signal.SIGINT, lambda *_: None)
            trace = model.partial
        threads[0].join()
        signal.signal(signal.SIGINT, signal.default_int_handler)
        return trace

    partial = attempt.right(run, lambda trace: trace is not None)
    assert partial.status == "complete" or same(model.resume(partial), whole)


PLACES = {
    "save_partial": (generation, "save_partial"),
    "assemble": (resume, "assemble"),
    "the cache": (KVCache, "crop"),
    "array": (resume, "array"),
    "join": (decoding, "join"),
    "verify": (assemble, "verify"),
    "the manifest": (assemble, "draft"),
    "the exception": (Interrupted, "__init__"),
}


@pytest.mark.parametrize("place", PLACES)
def test_three_presses_inside_the_saving_lose_nothing(attempt, model, whole, monkeypatch, place):
    owner, name = PLACES[place]
    function = getattr(owner, name)

    def pressed(*arguments, **more):
        press(3)()
        result = function(*arguments, **more)
        press(3)()
        return result

    def run():
        with monkeypatch.context() as patch, in_pass(5, lambda: patch.setattr(owner, name, pressed) or press()()):
            return what_remains(model, lambda: model.generate(PROMPT, max_tokens=N, **SAMPLED))

    partial = attempt.right(run, lambda trace: trace is not None and trace.status == "partial")
    assert same(model.resume(partial), whole)


def test_a_press_between_any_two_lines_of_the_saving_loses_nothing(attempt, model, whole):
    """The second press comes at every line of generation.py and resume.py after the first one, in one run each."""
    files = tuple(module.__file__ for module in (generation, resume))

    def interrupted_at(n: int) -> tuple[Trace | None, bool]:
        lines, active = [], [False]

        def tracer(frame, event, arg):
            if frame.f_code.co_filename not in files:
                return None
            if event == "line" and active[0]:
                lines.append(frame.f_lineno)
                if len(lines) == n:
                    signal.raise_signal(signal.SIGINT)
            return tracer

        def first():
            active[0] = True
            signal.raise_signal(signal.SIGINT)

        sys.settrace(tracer)
        try:
            with in_pass(4, first):
                trace = what_remains(model, lambda: model.generate(PROMPT, max_tokens=N, **SAMPLED))
        finally:
            sys.settrace(None)
        return trace, len(lines) >= n

    def lost() -> list[int]:
        numbers, n = [], 0
        for n in range(1, 400):
            trace, reached = interrupted_at(n)
            if trace is None or len(trace) != len(PROMPT) + 2:
                numbers.append(n)
            if not reached:
                break
        assert n > 20
        return numbers

    attempt.right(lost, lambda numbers: numbers == [], seconds=60)


def test_five_presses_give_up_and_the_model_still_has_the_run(attempt, model, whole, monkeypatch):
    now = [0.0]
    monkeypatch.setattr("workbench.signals.time.monotonic", lambda: now[0])

    def deliberately(*_, **__):
        for _ in range(6):
            now[0] += 1
            signal.raise_signal(signal.SIGINT)
        pytest.fail("six presses were ignored")

    def run():
        with monkeypatch.context() as patch, in_pass(5, press()):
            patch.setattr(resume, "assemble", deliberately)
            with pytest.raises(KeyboardInterrupt) as caught:
                model.generate(PROMPT, max_tokens=N, **SAMPLED)
            assert not isinstance(caught.value, Interrupted)
        return model.partial

    assert same(model.resume(attempt.right(run, lambda trace: len(trace) == len(PROMPT) + 3)), whole)


@pytest.mark.parametrize("error", [SystemExit, GeneratorExit, type("Timeout", (BaseException,), {})])
def test_an_exception_that_is_not_an_error_keeps_the_tokens(attempt, model, whole, error):
    def stop():
        raise error

    def run():
        with in_pass(5, stop), pytest.raises(error):
            model.generate(PROMPT, max_tokens=N, **SAMPLED)
        return model.partial

    assert same(model.resume(attempt.right(run, lambda trace: len(trace) == len(PROMPT) + 3)), whole)


def test_a_second_press_through_resume_loses_nothing(attempt, model, whole):
    def run():
        with in_pass(4, press(2)):
            half = what_remains(model, lambda: model.generate(PROMPT, max_tokens=N, **SAMPLED))
        with in_pass(2, press(3)):
            return what_remains(model, lambda: model.resume(half))

    assert same(model.resume(attempt.right(run, lambda trace: len(trace) > len(PROMPT))), whole)


def test_a_press_after_the_last_check_is_not_swallowed(attempt, model, whole, monkeypatch):
    """In the milliseconds between the finished trace and the caller."""
    decode = generation._decode_and_replay

    def press_at_the_end(*arguments):
        trace = decode(*arguments)
        signal.raise_signal(signal.SIGINT)
        return trace

    monkeypatch.setattr(generation, "_decode_and_replay", press_at_the_end)

    def run():
        with pytest.raises(Interrupted) as caught:
            model.generate(PROMPT, max_tokens=N, **SAMPLED)
        return caught.value.trace

    attempt.right(run, lambda trace: same(trace, whole))


def test_a_run_inside_an_edit_of_another_run_is_stopped_too(attempt, model):
    def inner(x):
        if x.shape[1] == 1:
            with in_pass(3, press()):
                model.generate(PROMPT, max_tokens=300, record="")
        return x

    def run():
        with pytest.raises(KeyboardInterrupt), model.edit("blocks.1.hook_mlp_out", inner):
            model.generate(PROMPT, max_tokens=N, record="")
        return model.partial

    attempt.right(run, lambda trace: trace is not None, seconds=5)


def test_a_handler_of_the_caller_is_not_replaced(attempt, model, whole):
    seen = []

    def run():
        before = [signal.signal(s, lambda n, _: seen.append(n)) for s in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
        try:
            with in_pass(4, lambda: [press(1, s)() for s in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]):
                return model.generate(PROMPT, max_tokens=N, **SAMPLED)
        finally:
            for signum, handler in zip((signal.SIGINT, signal.SIGTERM, signal.SIGHUP), before):
                signal.signal(signum, handler)

    attempt.right(run, lambda trace: same(trace, whole) and len(seen) == 3)


def test_a_hangup_that_is_ignored_stays_ignored(attempt, model, whole):
    """As under nohup."""

    def run():
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        try:
            with in_pass(4, press(1, signal.SIGHUP)):
                return model.generate(PROMPT, max_tokens=N, **SAMPLED)
        finally:
            signal.signal(signal.SIGHUP, signal.SIG_DFL)

    attempt.right(run, lambda trace: same(trace, whole))


# Streamed runs.


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP], ids=lambda s: s.name)
@pytest.mark.parametrize("n_pass", [3, N + 2], ids=["decoding", "replay"])
def test_a_signal_leaves_a_partial_trace_beside_the_target(attempt, model, whole, tmp_path, signum, n_pass):
    def run():
        with in_pass(n_pass, press(2, signum)), pytest.raises(Interrupted) as caught:
            model.generate(PROMPT, max_tokens=N, to="done.trace", **SAMPLED)
        assert os.listdir() == ["done.trace.partial"] and caught.value.signum == signum
        assert str(caught.value.path) in str(caught.value)
        return model.resume(wb.load("done.trace.partial"), to="done.trace")

    attempt.right(run, lambda trace: same(trace, whole) and same(wb.load("done.trace"), whole))


@pytest.mark.parametrize(
    "name", ["done", "n" * 250, "ü" * 120, "a b\nc", "x.partial"], ids=["plain", "long", "accents", "blanks", "partial"]
)
def test_the_partial_trace_has_a_name_that_is_free_and_valid(attempt, model, whole, name):
    for number in (1, 2):
        with in_pass(4, press()), pytest.raises(Interrupted) as caught:
            model.generate(PROMPT, max_tokens=N, to=name, **SAMPLED)
        path = caught.value.path
        assert path is not None and len(os.listdir()) == number and (path.name.endswith("-2") == (number == 2))
    attempt.right(lambda: model.resume(wb.load(path), to=name), lambda trace: same(trace, whole))


def test_a_complete_streamed_run_leaves_only_its_trace(attempt, model, whole, monkeypatch):
    monkeypatch.setattr(checkpointing, "EVERY_SECONDS", 0.0)
    monkeypatch.setattr(checkpointing, "MAX_TIME_SHARE", 1e9)
    saves, save = [], run_checkpoint.RunCheckpoint.save
    monkeypatch.setattr(run_checkpoint.RunCheckpoint, "save", lambda *arguments: saves.append(1) or save(*arguments))
    run = lambda: model.generate(PROMPT, max_tokens=N, to="done", **SAMPLED)  # noqa: E731
    attempt.right(run, lambda trace: same(trace, whole) and os.listdir() == ["done"] and len(saves) > N)


def test_saving_while_it_runs_under_an_edit_changes_no_count(attempt, model, monkeypatch):
    with model.edit("blocks.2.attn.hook_z", wb.ablate(head=3)):
        edited = model.generate(PROMPT, max_tokens=N, **SAMPLED)
    monkeypatch.setattr(checkpointing, "EVERY_SECONDS", 0.0)
    monkeypatch.setattr(checkpointing, "MAX_TIME_SHARE", 1e9)

    def run():
        with in_pass(6, press()), pytest.raises(Interrupted), model.edit("blocks.2.attn.hook_z", wb.ablate(head=3)):
            model.generate(PROMPT, max_tokens=N, to="done", **SAMPLED)
        with model.edit("blocks.2.attn.hook_z", wb.ablate(head=3)):
            return model.resume(wb.load("done.partial"))

    attempt.right(run, lambda trace: same(trace, edited) and trace.edits == edited.edits)


@pytest.mark.parametrize("when", ["first save", "later save"])
def test_a_disk_that_fails_while_saving_does_not_end_the_run(attempt, model, whole, monkeypatch, when):
    monkeypatch.setattr(checkpointing, "EVERY_SECONDS", 0.0)
    monkeypatch.setattr(checkpointing, "MAX_TIME_SHARE", 1e9)
    n_writes, real = [0], os.write

    def full(fd, data):
        if ".partial" in str(Path(f"/proc/self/fd/{fd}").readlink()):
            n_writes[0] += 1
            if when == "first save" or n_writes[0] > 10:
                raise OSError(errno.ENOSPC, "No space left on device")
        return real(fd, data)

    monkeypatch.setattr(os, "write", full)
    run = lambda: model.generate(PROMPT, max_tokens=N, to="done", **SAMPLED)  # noqa: E731
    attempt.right(run, lambda trace: same(trace, whole) and os.listdir() == ["done"])


def test_a_save_that_fails_keeps_the_one_before(attempt, monkeypatch, tmp_path):
    first, second = made.trace(seed=1), made.trace(seed=2)
    checkpoint = run_checkpoint.RunCheckpoint(tmp_path / "done")

    def arrays(trace):
        return {name: trace.raw(name) for name in trace.names()}

    path = checkpoint.save(first.manifest, arrays(first))
    with monkeypatch.context() as patch:
        patch.setattr(run_checkpoint, "atomic_write", mock.Mock(side_effect=OSError(errno.EIO, "Input/output error")))
        attempt.refused(lambda: checkpoint.save(second.manifest, arrays(second)), "Input/output error")
    assert same(wb.load(path), first)
    for trace in (second, first, second):
        attempt.right(
            lambda trace=trace: wb.load(checkpoint.save(trace.manifest, arrays(trace))),
            lambda t, trace=trace: same(t, trace),
        )
        assert len(os.listdir(path)) == len(os.listdir(first.save(tmp_path / f"{time.monotonic_ns()}")))


# Processes that are killed or told to end. They are forked, so that torch is not imported again.


def in_child(action) -> tuple[int, Path]:
    """The process id of a child that runs `action`, with its output in a file."""
    output = Path("output")
    sys.stdout.flush(), sys.stderr.flush()
    pid = os.fork()
    if pid == 0:
        code = 70
        try:
            fd = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(fd, 1), os.dup2(fd, 2)
            sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
            sys.stderr = open(2, "w", closefd=False)  # noqa: SIM115
            code = action()
        except KeyboardInterrupt:
            code = 71
        except BaseException as error:
            os.write(2, repr(error).encode())
        finally:
            with suppress(Exception):
                sys.stdout.flush(), sys.stderr.flush()
            os._exit(code or 0)
    return pid, output


def ended(pid: int, seconds: float = 30) -> int:
    """The exit code of a child; that of a signal is negative."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    pytest.fail("the child does not end")


def waited_for(path: Path, seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < deadline, f"{path} does not appear"
        time.sleep(0.005)


def started(n: int):
    """Creates the file `started` in the n-th pass, and then slows the run down, so that signals come during it."""
    begin, remaining = Recorder.begin, [n]

    def slow(recorder, start, count):
        remaining[0] -= 1
        if remaining[0] == 0:
            Path("started").touch()
        if remaining[0] <= 0:
            time.sleep(0.02)
        return begin(recorder, start, count)

    return mock.patch.object(Recorder, "begin", slow)


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGHUP], ids=lambda s: s.name)
@pytest.mark.parametrize("times", [1, 4])
def test_a_process_that_is_told_to_end_leaves_a_run_to_resume(attempt, model, whole, signum, times):
    def work():
        with started(4):
            model.generate(PROMPT, max_tokens=N, to="done", **SAMPLED)

    pid, _ = in_child(work)
    waited_for(Path("started"))
    for _ in range(times):
        with suppress(ProcessLookupError):
            os.kill(pid, signum)
        time.sleep(0.003)
    ended(pid)
    attempt.right(lambda: model.resume(wb.load("done.partial"), to="done"), lambda trace: same(trace, whole))


@pytest.mark.parametrize("after", [0.0, 0.05, 0.11, 0.3])
def test_a_killed_process_leaves_a_run_to_resume(attempt, model, whole, monkeypatch, after):
    monkeypatch.setattr(checkpointing, "EVERY_SECONDS", 0.0)
    monkeypatch.setattr(checkpointing, "MAX_TIME_SHARE", 1e9)

    def work():
        with started(1):
            model.generate(PROMPT, max_tokens=N, to="done", **SAMPLED)

    pid, _ = in_child(work)
    waited_for(Path("done.partial/manifest.json"))
    time.sleep(after)
    os.kill(pid, signal.SIGKILL)
    ended(pid)
    if Path("done").exists():  # it was faster
        attempt.right(lambda: wb.load("done"), lambda trace: same(trace, whole))
    else:
        attempt.right(lambda: model.resume(wb.load("done.partial"), to="done"), lambda trace: same(trace, whole))


@pytest.mark.parametrize(
    ("signals", "gap", "code"),
    [
        ([signal.SIGINT] * 2, 0.02, 130),
        ([signal.SIGINT] * 3, 0.06, 130),
        ([signal.SIGINT] * 10, 0.01, 130),
        ([signal.SIGTERM], 0, 143),
        ([signal.SIGTERM, signal.SIGINT, signal.SIGTERM], 0.01, 143),
        ([signal.SIGHUP], 0, 129),
    ],
    ids=["2 Ctrl-C", "3 Ctrl-C", "10 Ctrl-C", "TERM", "TERM, Ctrl-C, TERM", "HUP"],
)
def test_the_command_saves_before_a_signal_ends_it(attempt, signals, gap, code):
    def work():
        with started(10):
            return cli.main(["trace", ASK, "-o", "half.trace", "--record", "everything"])

    pid, output = in_child(work)
    waited_for(Path("started"))
    for signum in signals:
        with suppress(ProcessLookupError):
            os.kill(pid, signum)
        time.sleep(gap)
    assert ended(pid) == code, output.read_text()
    attempt.right(lambda: wb.load("half.trace"), lambda trace: trace.status == "partial" and len(trace) > 40)
    if len(signals) < 10:  # one of ten may come after the saving, and then ends the command before its last line
        assert "workbench resume half.trace" in output.read_text()


@pytest.mark.parametrize("place", ["append", "commit", "__enter__"])
@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM], ids=lambda s: s.name)
def test_a_signal_while_the_command_saves_a_complete_run_loses_nothing(attempt, monkeypatch, place, signum, capsys):
    function = getattr(TraceWriter, place)

    def pressed(*arguments, **more):
        press(3, signum)()
        return function(*arguments, **more)

    monkeypatch.setattr(TraceWriter, place, pressed)
    assert cli.main(["trace", ASK, "-o", "first.trace", "--record", ""]) == 128 + signum
    attempt.right(lambda: wb.load("first.trace"), lambda trace: trace.status == "complete")
    assert "five times to give up" in capsys.readouterr().err


def test_a_terminal_that_is_closed_loses_nothing(attempt):
    """Printing fails, the progress bar too, before and after the hangup."""

    def work():
        os.setsid()
        leader, terminal = os.openpty()
        os.dup2(terminal, 2)
        sys.stderr = open(2, "w", closefd=False)  # noqa: SIM115

        def close():
            os.close(leader)
            signal.raise_signal(signal.SIGHUP)

        with in_pass(12, close), mock.patch("workbench.progress.tqdm", _impatient_bar()):
            return cli.main(["trace", ASK, "-o", "half.trace", "--record", ""])

    pid, output = in_child(work)
    ended(pid)
    attempt.right(lambda: wb.load("half.trace"), lambda trace: trace.status == "partial", seconds=5)
    assert output.exists()


def _impatient_bar():
    from tqdm import tqdm

    impatient = {"disable": False, "delay": 0, "mininterval": 0, "file": sys.stderr}
    return lambda items=None, **more: tqdm(items, **(more | impatient))


# What fails in the middle.


MEMORY = {
    "torch": RuntimeError(
        "[enforce fail at alloc_cpu.cpp:117] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to "
        "allocate 80000000 bytes. Error code 12 (Cannot allocate memory)"
    ),
    "Python": MemoryError(),
    "numpy": MemoryError("Unable to allocate 74.5 GiB for an array with shape (100000, 100000) and data type float64"),
    "CUDA": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB."),
    "cuBLAS": RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    "Windows' words": RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 12 bytes."),
    "C++": RuntimeError("std::bad_alloc"),
}


@pytest.mark.parametrize("kind", MEMORY)
@pytest.mark.parametrize("n_pass", [1, 5, N + 2], ids=["prefill", "decoding", "replay"])
def test_memory_that_runs_out_is_a_budget_error_with_what_was_kept(attempt, model, whole, kind, n_pass):
    def fail():
        raise MEMORY[kind]

    def run():
        with in_pass(n_pass, fail):
            model.generate(PROMPT, max_tokens=N, **SAMPLED)

    error = attempt.refused(run, "the memory ran out")
    assert isinstance(error, wb.errors.BudgetError) and (("model.partial" in str(error)) == (n_pass > 1))
    if n_pass > 1:
        assert same(model.resume(model.partial), whole)


def test_a_limit_on_the_memory_of_the_process(attempt, model):
    import resource

    def work():
        in_use = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (in_use + (24 << 20), resource.RLIM_INFINITY))
        try:
            model.generate(PROMPT * 20, max_tokens=100, record="everything")
        except wb.errors.BudgetError as error:
            sys.stdout.write(str(error))
            return 3
        return 4

    pid, output = in_child(work)
    assert ended(pid) == 3, output.read_text()
    assert "memory" in output.read_text()
    attempt.judged("refused")


@pytest.mark.parametrize("to", ["there", None], ids=["to disk", "in memory"])
def test_memory_that_runs_out_while_a_text_is_recorded(attempt, model, to):
    def fail():
        raise MEMORY["torch"]

    def run():
        with in_pass(1, fail):
            model.trace(PROMPT, record="residuals", to=to)

    attempt.refused(run, "the memory ran out")
    assert not os.listdir()


@pytest.mark.parametrize("error", [OSError("the sensor is unplugged"), ValueError("no"), ZeroDivisionError()])
def test_an_error_of_an_edit_keeps_the_tokens_also_in_the_command(attempt, error, capsys):
    def fail():
        raise error

    with in_pass(12, fail), suppress(type(error)):
        cli.main(["trace", ASK, "-o", "half.trace", "--record", ""])
    partial = attempt.right(lambda: wb.load("half.trace"), lambda trace: trace.status == "partial")
    assert len(partial) > 40 and "workbench resume half.trace" in capsys.readouterr().err
    assert cli.main(["resume", "half.trace", "-o", "whole.trace"]) == 0


FAILING_TARGETS = {
    "the folder was removed": lambda: shutil.rmtree("folder"),
    "the folder is a file now": lambda: (shutil.rmtree("folder"), Path("folder").write_text("")),
    "another run was faster": lambda: made.trace().save("folder/first.trace"),
    "a file is there": lambda: Path("folder/first.trace").write_text("mine"),
    "a link to nowhere is there": lambda: Path("folder/first.trace").symlink_to("nowhere"),
}


@pytest.mark.parametrize("accident", FAILING_TARGETS)
def test_a_target_that_was_lost_during_the_run(attempt, monkeypatch, tmp_path, capsys, accident):
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "elsewhere"))
    Path("folder").mkdir()
    with in_pass(3, FAILING_TARGETS[accident]):
        code = cli.main(["trace", ASK, "-o", "folder/first.trace", "--record", ""])
    out, err = capsys.readouterr()
    saved = [path for path in tmp_path.rglob("first.trace") if path.is_dir() and path != Path("folder/first.trace")]
    if accident == "the folder was removed":  # it is made again
        assert code == 0
        attempt.right(lambda: wb.load("folder/first.trace"), lambda trace: trace.status == "complete")
        return
    elsewhere = next(path for path in saved if "elsewhere" in str(path))
    assert code == 1 and str(elsewhere) in err
    assert wb.load(elsewhere).text(channel="final") in out
    attempt.judged("refused")


@pytest.mark.parametrize(
    "target", ["n" * 256, "file/first.trace", "/proc/first.trace", "fifo", "device", "link", "file/"]
)
@pytest.mark.parametrize("command", ["trace", "resume"])
def test_a_target_that_cannot_be_written_is_refused_before_the_run(attempt, monkeypatch, capsys, target, command):
    Path("file").write_text("")
    os.mkfifo("fifo")
    with suppress(PermissionError):
        os.mknod("device", 0o020666, os.makedev(1, 3))
    Path("link").symlink_to("nowhere")
    for name in ("trace", "resume"):
        monkeypatch.setattr(wb, name, lambda *_, **__: pytest.fail("the model ran"))
    made.trace(status="partial").save("half.trace")
    assert cli.main([command, ASK if command == "trace" else "half.trace", "-o", target]) == 1
    assert "could not be written" in (err := capsys.readouterr().err) or "exists already" in err
    assert stat.S_ISFIFO(os.lstat("fifo").st_mode)
    attempt.judged("refused")


# Settings, which must be right at the door.

ACCEPTED = {
    "a fraction": ({"temperature": fractions.Fraction(1, 2)}, 0.5),
    "np.float64": ({"temperature": np.float64(0.5)}, 0.5),
    "np.float32": ({"temperature": np.float32(0.5)}, 0.5),
    "an array": ({"temperature": np.array(0.5)}, 0.5),
    "a tensor": ({"temperature": torch.tensor(0.5)}, 0.5),
    "an int": ({"temperature": 1}, 1.0),
    "a tiny one": ({"temperature": 1e-310}, 1e-310),
    "the smallest": ({"temperature": 5e-324, "top_p": 5e-324}, 5e-324),
    "np.int64": ({"temperature": 0.5, "seed": np.int64(7), "max_tokens": np.int32(3)}, 0.5),
    "a negative seed": ({"temperature": 0.5, "seed": -(2**63)}, 0.5),
    "a numpy text": ({"temperature": 0.5, "stop": []}, 0.5),
}
REFUSED = [
    {"temperature": True}, {"temperature": np.bool_(True)}, {"temperature": torch.tensor(True)}, {"temperature": "0.5"},
    {"temperature": b"1"}, {"temperature": 10**400}, {"temperature": Decimal("0.5")},
    {"temperature": Decimal("sNaN")}, {"temperature": float("nan")}, {"temperature": float("inf")},
    {"temperature": -0.1}, {"temperature": 1j}, {"temperature": np.complex64(1)}, {"temperature": torch.tensor(1j)},
    {"temperature": np.timedelta64(1, "s")},
    {"temperature": None}, {"temperature": [0.5]}, {"temperature": torch.tensor([0.5, 1])},
    {"top_p": True}, {"top_p": 0}, {"top_p": 1.0001}, {"top_p": float("nan")}, {"top_p": 10**400},
    {"seed": 10**5000}, {"seed": 2**63}, {"seed": -(2**63) - 1}, {"seed": True}, {"seed": 1.5}, {"seed": "1"},
    {"seed": None}, {"max_tokens": True}, {"max_tokens": 0}, {"max_tokens": 10**5000}, {"max_tokens": 2.0},
    {"max_tokens": None}, {"max_tokens": float("nan")}, {"stop": [True]}, {"stop": [-1]}, {"stop": [10**5000]},
    {"stop": ["\ud800"]}, {"stop": "\udfff"}, {"stop": [None]}, {"stop": b"ab"}, {"stop": {"a": 1}}, {"stop": 5.5},
]  # fmt: skip


def _setting_id(setting) -> str:
    [(name, value)] = setting.items()
    try:
        return ascii(f"{name}={value!r}")[1:41]
    except ValueError:  # of a number with too many digits
        return f"{name}=huge"


@pytest.fixture(scope="module")
def pocket():
    return wb.Model("pocket")


@pytest.mark.parametrize("setting", REFUSED, ids=_setting_id)
def test_a_setting_that_no_manifest_can_hold_is_refused_before_the_run(attempt, pocket, monkeypatch, setting):
    monkeypatch.setattr(source, "forward", lambda *_: pytest.fail("the model ran"))
    with without_warnings():
        attempt.refused(lambda: pocket.generate(ASK, **({"max_tokens": 3} | setting)), next(iter(setting)))


@contextmanager
def without_warnings():
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@pytest.mark.parametrize("kind", ACCEPTED)
def test_a_setting_in_another_type_of_number_is_that_number(attempt, model, kind):
    settings, expected = ACCEPTED[kind]
    run = lambda: model.generate(PROMPT, **({"max_tokens": 3, "record": ""} | settings))  # noqa: E731
    trace = attempt.right(run, lambda trace: trace.manifest.generation["temperature"] == expected)
    assert same(wb.load(trace.save("a")), trace)


class Strange:
    """A function whose description in the manifest could go wrong after the run."""

    def __init__(self, **attributes):
        self.__dict__.update(attributes)

    def __call__(self, x):
        return x * 0.5

    def __repr__(self):
        raise RuntimeError("no repr")


def _loop():
    value = []
    value.append(value)
    return value


STRANGE = {
    "name is a number": Strange(__name__=5),
    "name is a surrogate": Strange(__name__="\ud800"),
    "name of a million": Strange(__name__="n" * 10**6),
    "module is None": Strange(__module__=None, __qualname__=None),
    "not a number": Strange(scale=float("nan")),
    "a loop": Strange(values=_loop()),
    "a huge number": Strange(scale=10**5000),
}


@pytest.mark.parametrize("kind", STRANGE)
def test_an_edit_that_is_hard_to_describe_loses_no_run(attempt, model, kind):
    def run():
        with model.edit("blocks.2.hook_mlp_out", STRANGE[kind]):
            return model.generate(PROMPT, max_tokens=3, record="")

    attempt.safe(run, lambda trace: same(wb.load(trace.save("a")), trace))


# A trace that names its model.

NAMES = [
    "fifo", "./fifo", "folder/fifo", "~nosuchuser", "~nosuchuser/x", "~", "/", "/etc/passwd", "..", ".", "", " ",
    "a\0b", "n" * 5000, "../pocket", "openai/../../fifo", "pocket + 0.5 fifo", "file:///etc", "C:\\models", "-rf/x",
    "\x1b[31m", "Pocket", "pocket ", "folder/model", "no/such-model", "\ud800", "a/b/c", "folder/", "embedded",
    "$HOME/x",
]  # fmt: skip


@pytest.mark.parametrize("name", NAMES, ids=[ascii(name[:20])[1:-1] or "empty" for name in NAMES])
def test_a_model_that_the_trace_names_is_not_opened_as_a_path(attempt, monkeypatch, tmp_path, name):
    Path("folder").mkdir()
    os.mkfifo("fifo"), os.mkfifo("folder/fifo"), os.mkfifo("folder/model")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("workbench.model.checkpoints.formats._read_folder", lambda *_, **__: pytest.fail("opened"))
    partial = made.trace(status="partial")
    try:
        manifest = replace(partial.manifest, model=partial.manifest.model | {"name": name})
    except wb.errors.WorkbenchError:
        attempt.judged("refused")
        return
    trace = Trace(manifest, {n: partial.raw(n) for n in partial.names()})
    error = attempt.refused(lambda: wb.resume(trace), "odel" if name != "" else "name", seconds=2)
    assert isinstance(error, wb.errors.ModelNotFound) and len(str(error)) < 800


# Settings of torch.


@contextmanager
def _dtype(dtype):
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


@contextmanager
def _device(name):
    torch.set_default_device(name)
    try:
        yield
    finally:
        torch.set_default_device("cpu")


@contextmanager
def _deterministic():
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


SURROUNDINGS = {
    "autocast to bfloat16": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    "autocast to float16": lambda: torch.autocast("cpu", dtype=torch.float16),
    "default device meta": lambda: _device("meta"),
    "with device meta": lambda: torch.device("meta"),
    "default dtype float64": lambda: _dtype(torch.float64),
    "default dtype bfloat16": lambda: _dtype(torch.bfloat16),
    "default dtype float16": lambda: _dtype(torch.float16),
    "inference mode": torch.inference_mode,
    "no gradients": torch.no_grad,
    "anomaly detection": torch.autograd.set_detect_anomaly,
    "deterministic algorithms": _deterministic,
    "nothing": nullcontext,
}


@pytest.mark.parametrize("kind", SURROUNDINGS)
def test_a_setting_of_torch_changes_no_number(attempt, model, whole, kind):
    def run():
        with SURROUNDINGS[kind]() if kind != "anomaly detection" else SURROUNDINGS[kind](True):
            return model.generate(PROMPT, max_tokens=N, **SAMPLED), model.trace(PROMPT, record="everything")

    plain = model.trace(PROMPT, record="everything")
    with without_warnings():
        attempt.right(run, lambda traces: same(traces[0], whole) and same(traces[1], plain) and traces[0].verified)
    assert torch.get_default_dtype() == torch.float32 and torch.get_default_device().type == "cpu"


@pytest.mark.parametrize("kind", ["default device meta", "default dtype float64", "default dtype bfloat16"])
def test_a_model_loads_under_a_setting_of_torch(attempt, pocket, kind):
    plain = pocket.trace("What is 12+30?", record="residuals")

    def run():
        with SURROUNDINGS[kind]():
            return wb.Model("pocket")

    loaded = attempt.right(run, lambda model: model.digest == pocket.digest)
    assert same(loaded.trace("What is 12+30?", record="residuals"), plain)


# The long runs.


# a press after a run may come in the `__del__` of its progress bar, where Python ignores exceptions
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@LONG
@pytest.mark.long
@pytest.mark.parametrize("through", ["generate", "resume"])
def test_200_runs_with_two_presses_within_30_ms_lose_none(attempt, model, whole, through):
    import random

    rng, lost, interrupted = random.Random(7), 0, 0
    half = None
    if through == "resume":
        with in_pass(2, press()), pytest.raises(Interrupted) as caught:
            model.generate(PROMPT, max_tokens=30, record="everything")
        half = caught.value.trace
    for number in range(200):
        gap, n_pass = rng.uniform(0.0005, 0.03), rng.randrange(2, 30)
        threads = []

        def twice(gap=gap, threads=threads):
            def second():
                time.sleep(gap)
                os.kill(os.getpid(), signal.SIGINT)

            threads.append(threading.Thread(target=second))
            signal.raise_signal(signal.SIGINT)
            threads[0].start()

        trace = None
        try:
            with in_pass(n_pass, twice):
                trace = what_remains(
                    model,
                    lambda: model.resume(half) if half else model.generate(PROMPT, max_tokens=30, record="everything"),
                )
            signal.signal(signal.SIGINT, lambda *_: None)
        except KeyboardInterrupt:
            signal.signal(signal.SIGINT, lambda *_: None)
            trace = trace or model.partial
        threads[0].join()
        signal.signal(signal.SIGINT, signal.default_int_handler)
        lost += trace is None
        interrupted += trace is not None and trace.status == "partial"
        if number % 20 == 0:
            assert trace is None or model.resume(trace).status == "complete"
    assert lost == 0 and interrupted > 150
    attempt.judged("right")


def test_the_messages_are_one_json_object_after_an_interrupt(attempt):
    """Nothing of the saving is printed into the JSON of the command."""

    def work():
        with started(10):
            return cli.main(["trace", ASK, "-o", "half.trace", "--json"])

    pid, output = in_child(work)
    waited_for(Path("started"))
    os.kill(pid, signal.SIGINT)
    assert ended(pid) == 130
    text = output.read_text()
    attempt.right(lambda: json.loads(text[text.index("{") : text.rindex("}") + 1]), lambda j: j["status"] == "partial")


def test_a_handler_that_exits_keeps_the_run_on_disk(attempt, tmp_path):
    """As the scripts of Slurm and Docker do."""
    code = """
import os, signal, sys, threading, time, workbench as wb
signal.signal(signal.SIGTERM, lambda *_: sys.exit(3))
model = wb.Model("pocket"); model.stop_ids = frozenset()
threading.Thread(target=lambda: (time.sleep(1.5), os.kill(os.getpid(), 15)), daemon=True).start()
model.generate("What is 12+30?", max_tokens=4000, record="everything", to=sys.argv[1])
"""
    ended = attempt.script(code, str(tmp_path / "a.trace"))
    assert ended.returncode == 3, ended.stderr
    attempt.right(lambda: wb.load(tmp_path / "a.trace.partial"), lambda trace: trace.status == "partial")


def test_a_forked_worker_loads_a_model(attempt):
    code = """
import multiprocessing, warnings, workbench as wb
warnings.simplefilter("ignore")
def ids(question): return wb.Model("pocket").generate(question, max_tokens=3).id
wb.Model("pocket").trace("What is 12+30?")
with multiprocessing.get_context("fork").Pool(1) as pool:
    assert pool.map_async(ids, ["What is 12+30?"]).get(40)[0] == ids("What is 12+30?")
"""
    ended = attempt.script(code, seconds=90)
    assert ended.returncode == 0, ended.stderr
    attempt.judged("right")
