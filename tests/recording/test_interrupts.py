"""No edit or run stays in force after an error at any hook point, after Ctrl-C at any moment, or on another thread.

200 faults and 300 interrupts here; `make test-long` (WORKBENCH_LONG=1) makes it 10,000 interrupts.
"""

import os
import random
import signal
import threading
import time

import numpy as np
import pytest
import torch

from tests.model.models import some_tokens, tiny
from workbench import hooks
from workbench.recording.generation import Interrupted
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
    assert {hooks.point_of(name) for name in trace.names() if name not in whole.names()} == set(hooks.GENERATION_STATE)
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
