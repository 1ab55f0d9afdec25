"""No edit or run stays in force after an error at any hook point, after Ctrl-C at any moment, or on another thread.

200 faults and 300 interrupts here; `make test-long` (WORKBENCH_LONG=1) makes it 10,000 interrupts.
"""

import os
import random
import signal
import threading
import time
from contextlib import contextmanager
from dataclasses import replace
from unittest import mock

import numpy as np
import pytest
import torch

from tests.model.models import some_tokens, tiny
from workbench import hooks
from workbench.errors import BudgetError, ModelNotFound, PromptError
from workbench.recording import checkpointing
from workbench.recording.generation import Interrupted
from workbench.recording.taps import Recorder
from workbench.taps import Tap

TOKENS = some_tokens(24)
INTERRUPTS = 10_000 if os.environ.get("WORKBENCH_LONG") else 300


@pytest.fixture(scope="module")
def model():
    return tiny()


def test_no_edit_is_in_force_after_200_injected_faults(model):
    points = list(hooks.all_points(model.config.n_layers))
    clean = model.forward(torch.tensor([TOKENS]))

    class Fault(Tap):
        """Raises at its n-th call."""

        def __init__(self, n):
            self.n = n

        def __call__(self, name, x, offset=0):
            self.n -= 1
            if self.n < 0:
                raise RuntimeError("injected")
            return x

    for n in range(200):
        with (
            pytest.raises(RuntimeError, match="injected"),
            model.edit(points[n % len(points)], lambda x: x.clone()),
            model.edit("blocks.*.hook_z", lambda x: 2 * x),
        ):
            model.forward(torch.tensor([TOKENS]), Fault(n % 71))
        assert model.active_edits() == []
    assert torch.equal(model.forward(torch.tensor([TOKENS])), clean)


def test_no_edit_is_in_force_after_interrupts_at_random_moments(model, measured):
    rng = random.Random(1)
    clean = model.trace(TOKENS, record="logits")["logits"]

    def once():
        entered_second = model.edit("blocks.2.attn.hook_z", lambda x: 0 * x)
        with model.edit("blocks.*.hook_mlp_out", lambda x: 2 * x), entered_second:
            model.trace(TOKENS, record="residuals")

    started = time.perf_counter()
    for _ in range(5):
        once()
    usual = (time.perf_counter() - started) / 5

    interrupted = remaining = 0  # `usual` is updated because the load of the machine changes
    before = signal.signal(signal.SIGALRM, lambda *_: signal.raise_signal(signal.SIGINT))
    try:
        for _ in range(INTERRUPTS):
            try:
                started = time.perf_counter()
                signal.setitimer(signal.ITIMER_REAL, rng.uniform(1e-5, 1.2 * usual))
                try:
                    once()
                    usual += 0.2 * (time.perf_counter() - started - usual)
                finally:
                    signal.setitimer(signal.ITIMER_REAL, 0)
            except KeyboardInterrupt:
                interrupted += 1
            signal.setitimer(signal.ITIMER_REAL, 0)
            remaining += bool(model.active_edits()) + bool(model._running)
            assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGALRM, before)
    measured(f"{interrupted} of {INTERRUPTS} runs were interrupted, {remaining} left an edit or a run in force")
    assert remaining == 0
    assert interrupted > INTERRUPTS / 3
    assert np.array_equal(model.trace(TOKENS, record="logits")["logits"], clean)


def interrupt_after(model, n_tokens):
    """An edit that raises SIGINT during the pass of the n-th token, in the middle of the model."""
    seen = []

    def press(x):
        seen.append(x.shape[1])
        if len(seen) == n_tokens:
            signal.raise_signal(signal.SIGINT)
        return x

    return model.edit("blocks.1.hook_resid_mid", press)


def test_an_interrupted_generation_keeps_its_tokens_and_values(model):
    whole = model.generate(TOKENS, max_tokens=30, record="")
    with pytest.raises(Interrupted) as caught, interrupt_after(model, 12):
        model.generate(TOKENS, max_tokens=30, record="")
    trace = caught.value.trace
    assert trace is model.partial and trace.status == "partial"
    assert 24 <= len(trace) < 54 and trace.tokens == whole.tokens[: len(trace)]
    assert trace.manifest.generation and trace.manifest.generation["finish_reason"] == "interrupted"
    assert {hooks.point_of(name) for name in trace.names() if name not in whole.names()} == {
        *hooks.GENERATION_STATE
    } - {"next_residual"}
    for name in whole.manifest.tensors.keys() & trace.manifest.tensors.keys():
        axis = hooks.axes(name).index("pos") if "pos" in hooks.axes(name) else None
        expected = whole[name] if axis is None else whole[name].take(range(len(trace)), axis)
        assert np.array_equal(trace[name], expected, equal_nan=trace[name].dtype == np.float32), name
    assert model.active_edits() == []


def test_a_partial_trace_can_be_saved_and_opened(model, tmp_path):
    import workbench as wb

    with pytest.raises(Interrupted) as caught, interrupt_after(model, 5):
        model.generate(TOKENS, max_tokens=30, record="")
    loaded = wb.load(caught.value.trace.save(tmp_path / "partial"))
    assert loaded.status == "partial" and "partial" in repr(loaded)


def test_a_run_on_another_thread_is_ended_by_stop(model):
    raised, written = [], []

    def work():
        try:
            with model.edit("blocks.0.hook_resid_pre", lambda x: written.append(1) or x):
                model.generate(TOKENS, max_tokens=100_000, record="")
        except KeyboardInterrupt as error:
            raised.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    while len(written) < 3:
        time.sleep(0.01)
    model.stop()
    thread.join(20)
    assert not thread.is_alive() and isinstance(raised[0], Interrupted)
    assert model.active_edits() == [] and model._running == []


def test_an_edit_holds_only_for_runs_on_its_own_thread(model):
    plain = model.trace(TOKENS, record="logits")["logits"]
    on_thread = {}

    def work():
        on_thread["edits"] = model.active_edits()
        on_thread["logits"] = model.trace(TOKENS, record="logits")["logits"]

    with model.edit("hook_embed", lambda x: 0 * x):
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        assert not np.array_equal(model.trace(TOKENS, record="logits")["logits"], plain)
    assert on_thread["edits"] == [] and np.array_equal(on_thread["logits"], plain)


def test_an_edit_whose_entry_was_interrupted_is_not_in_force(model):
    """Even if the caller keeps it, and if the interrupt is between any two lines of its entry."""
    import sys

    def interrupt_at_line(n):
        lines = []

        def tracer(frame, event, arg):
            if frame.f_code.co_filename.endswith("edits/stack.py"):
                if event == "line":
                    lines.append(frame.f_lineno)
                    if len(lines) == n:
                        raise KeyboardInterrupt
                return tracer
            return None

        return tracer, lines

    n_interrupted = 0
    for n in range(1, 12):
        editing = model.edit("hook_embed", lambda x: 0 * x)
        tracer, lines = interrupt_at_line(n)
        sys.settrace(tracer)
        try:
            editing.__enter__()
        except KeyboardInterrupt:
            n_interrupted += 1
            sys.settrace(None)
            assert model.active_edits() == [], f"line {lines[-1]}"
        finally:
            sys.settrace(None)
            editing.__exit__(KeyboardInterrupt, None, None)
    assert n_interrupted >= 4


# What a run leaves on disk, and what is refused before it.


@contextmanager
def calling_in_pass(n, action):
    """Calls `action` at the beginning of the n-th pass: 1 is the prefill."""
    begin, passes = Recorder.begin, []

    def counting(recorder, start, count):
        passes.append(start)
        if len(passes) == n:
            action()
        return begin(recorder, start, count)

    with mock.patch.object(Recorder, "begin", counting):
        yield


def signal_in_pass(n, signum):
    return calling_in_pass(n, lambda: signal.raise_signal(signum))


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_streamed_run_that_is_stopped_leaves_a_partial_trace_that_resumes_to_the_same_bits(model, tmp_path, signum):
    import workbench as wb

    whole = model.generate(TOKENS, max_tokens=9, record="residuals")
    with pytest.raises(Interrupted) as caught, signal_in_pass(4, signum):
        model.generate(TOKENS, max_tokens=9, record="residuals", to=tmp_path / "done")
    assert caught.value.path == tmp_path / "done.partial" and caught.value.signum == signum
    resumed = model.resume(wb.load(tmp_path / "done.partial"), to=tmp_path / "done")
    assert resumed.id == whole.id and resumed.tokens == whole.tokens
    for name in whole.names():
        assert np.array_equal(resumed.raw(name), whole.raw(name), equal_nan=whole.raw(name).dtype.kind == "f"), name


def test_a_streamed_run_is_saved_every_minute_and_its_folder_removed_at_the_end(model, tmp_path, monkeypatch):
    import workbench as wb

    lengths, save = [], checkpointing.RunCheckpoint.save
    monkeypatch.setattr(checkpointing, "EVERY_SECONDS", 0.0)
    monkeypatch.setattr(checkpointing, "MAX_TIME_SHARE", 1e9)

    def saved(self, manifest, arrays):
        path = save(self, manifest, arrays)
        lengths.append(len(wb.load(path)))
        return path

    monkeypatch.setattr(checkpointing.RunCheckpoint, "save", saved)
    model.generate(TOKENS, max_tokens=5, record="", to=tmp_path / "done")
    assert lengths == [25, 26, 27, 28, 29, 29] and os.listdir(tmp_path) == ["done"]
    lengths.clear()
    monkeypatch.setattr(checkpointing, "EVERY_SECONDS", 60.0)
    model.generate(TOKENS, max_tokens=5, record="", to=tmp_path / "again")
    assert lengths == []


def test_memory_that_runs_out_is_a_budget_error_and_the_tokens_are_kept(model):
    def fail():
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes")

    kept = r"memory ran out .* the 26 tokens so far are in `model.partial`"
    with pytest.raises(BudgetError, match=kept), calling_in_pass(4, fail):
        model.generate(TOKENS, max_tokens=9, record="")
    assert len(model.resume(model.partial)) == 33


@pytest.mark.parametrize(
    "setting", [{"temperature": True}, {"seed": 10**5000}, {"max_tokens": True}, {"temperature": 10**400}]
)
def test_a_setting_that_no_manifest_can_hold_is_refused_before_the_run(model, monkeypatch, setting):
    monkeypatch.setattr("workbench.recording.source.forward", lambda *_: pytest.fail("the model ran"))
    with pytest.raises(PromptError, match="must be"):
        model.generate(TOKENS, **({"max_tokens": 3} | setting))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_the_settings_of_torch_change_no_number(model, dtype):
    plain = model.generate(TOKENS, max_tokens=3, record="residuals")
    torch.set_default_dtype(dtype)
    try:
        with torch.device("meta"), torch.autocast("cpu", dtype=torch.bfloat16):
            other = model.generate(TOKENS, max_tokens=3, record="residuals")
    finally:
        torch.set_default_dtype(torch.float32)
    assert other.id == plain.id
    for name in plain.names():
        assert np.array_equal(other.raw(name), plain.raw(name), equal_nan=plain.raw(name).dtype.kind == "f"), name


def test_resume_opens_no_path_that_a_trace_names(model, monkeypatch, tmp_path):
    import workbench as wb

    with pytest.raises(Interrupted) as caught, interrupt_after(model, 3):
        model.generate(TOKENS, max_tokens=9, record="")
    partial = caught.value.trace
    monkeypatch.chdir(tmp_path)
    (tmp_path / "some").mkdir()
    os.mkfifo(tmp_path / "some" / "model")
    for name in ("some/model", "./some/model", "~nosuchuser", str(tmp_path)):
        manifest = replace(partial.manifest, model=partial.manifest.model | {"name": name})
        with pytest.raises(ModelNotFound, match=r"Give the model|give it"):
            wb.resume(wb.Trace(manifest, {n: partial.raw(n) for n in partial.names()}))
