"""A resumed generation equals the uninterrupted one bit for bit."""

import signal
import subprocess
import sys
import threading
from contextlib import ExitStack
from dataclasses import replace

import numpy as np
import pytest
import torch

import workbench as wb
from tests.checkpoints import Random
from tests.levels import computing_with
from tests.model.models import ctrl_c_in_pass, some_tokens, tiny
from workbench import hooks
from workbench.conversation.chat import chat
from workbench.errors import BudgetError, ResumeError, TraceExists
from workbench.model import prefill
from workbench.model.kernels import native
from workbench.model.model import Model
from workbench.model.sampling import choose
from workbench.recording import generation, plan
from workbench.recording.generation import Interrupted
from workbench.recording.taps import Recorder
from workbench.traces import Trace

PROMPT, N = some_tokens(30), 9  # past the window of 12
GREEDY = {}
SAMPLED = {"temperature": 0.9, "top_p": 0.95, "seed": 5}


@pytest.fixture(scope="module")
def model():
    return tiny()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return Random(seed=5).write_hf_mxfp4(tmp_path_factory.mktemp("resume") / "model")


def interrupted(model, n: int, run=None, **more) -> Trace:
    """The partial trace of a generation that is interrupted in its n-th pass: 1 is the prefill, N + 2 the replay."""
    run = run or (lambda: model.generate(PROMPT, max_tokens=N, **more))
    with ctrl_c_in_pass(n), pytest.raises(Interrupted) as caught:
        run()
    assert caught.value.trace is model.partial
    return caught.value.trace


def same(a: Trace, b: Trace) -> None:
    """Both traces are equal in manifest and in every bit, except for the time."""
    assert a.id == b.id and a.names() == b.names()
    for name in a.names():
        assert np.array_equal(a.raw(name), b.raw(name), equal_nan=a.raw(name).dtype.kind == "f"), name
    manifests = [
        t.manifest.to_json()
        | {"created": "", "tensors": {n: (i.source, i.axes) for n, i in t.manifest.tensors.items()}}
        for t in (a, b)
    ]
    assert manifests[0] == manifests[1]


@pytest.mark.parametrize("how", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
def test_a_generation_interrupted_at_any_token_resumes_to_the_same_bits(model, tmp_path, how):
    whole = model.generate(PROMPT, max_tokens=N, record="attention", **how)
    assert len(whole) == len(PROMPT) + N
    for n in range(2, N + 3):
        partial = interrupted(model, n, record="attention", **how)
        assert partial.status == "partial" and len(partial) == len(PROMPT) + n - 2 and partial.id == whole.id
        if n % 2:
            partial = wb.load(partial.save(tmp_path / f"{n}.trace"))
        same(model.resume(partial), whole)


@pytest.mark.parametrize("level", [*native.levels(), "numba", "torch"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_packed_experts_and_every_dtype_resume_to_the_same_bits(folder, tmp_path, level, dtype):
    if level == "numba":
        pytest.importorskip("numba")
    with computing_with(level):
        model = Model(folder, memory="small", dtype=dtype)
        model.stop_ids = frozenset()
        whole = model.generate(PROMPT, max_tokens=N, record="", **SAMPLED)
        for n in (2, 5):
            partial = wb.load(interrupted(model, n, record="", **SAMPLED).save(tmp_path / f"{n}.trace"))
            same(model.resume(partial), whole)


def test_resuming_past_the_window_and_the_cache_allocation_changes_no_bit(model, tmp_path):
    """Sliding layers keep 11 positions, and the cache is reallocated several times."""
    prompt = some_tokens(5)
    whole = model.generate(prompt, max_tokens=60, record="")
    for n in (3, 9, 14, 55):
        partial = interrupted(model, n, lambda: model.generate(prompt, max_tokens=60, record=""))
        widths = {partial[f"blocks.{layer}.attn.cache_k"].shape[1] for layer in (0, 2)}
        assert widths == {min(len(partial), model.config.window - 1)}
        assert partial["blocks.1.attn.cache_k"].shape[1] == len(partial)
        same(model.resume(wb.load(partial.save(tmp_path / str(n)))), whole)


def test_a_resumed_run_may_be_interrupted_repeatedly(model):
    whole = model.generate(PROMPT, max_tokens=N, **SAMPLED)
    partial = interrupted(model, 3, **SAMPLED)
    lengths = [len(partial)]
    for n in (1, 3, 2):  # the first one before any token was processed
        partial = interrupted(model, n, lambda partial=partial: model.resume(partial))
        lengths.append(len(partial))
    assert lengths == [31, 31, 33, 34]
    assert partial.manifest.notes == [
        "interrupted after 34 positions: not replayed, so it contains routing and predictions only"
    ]
    same(model.resume(partial), whole)


def test_an_interrupt_during_prefill_leaves_no_partial_trace(model, monkeypatch):
    for chunk in (1024, 8):  # in the only pass, and in one of several
        monkeypatch.setattr(prefill, "CHUNK_POSITIONS", chunk)
        monkeypatch.setattr(prefill, "MIN_LAST_CHUNK", 0)
        with ctrl_c_in_pass(1 if chunk == 1024 else 3), pytest.raises(KeyboardInterrupt) as caught:
            model.generate(PROMPT, max_tokens=N)
        assert not isinstance(caught.value, Interrupted) and model.partial is None


def test_processed_positions_are_never_computed_twice(model, monkeypatch):
    """Only an interrupted replay is repeated; no live position is computed twice."""
    passes = []
    begin = Recorder.begin
    partial = interrupted(model, N + 2)
    assert len(partial) == len(PROMPT) + N
    halfway = interrupted(model, 5)
    monkeypatch.setattr(Recorder, "begin", lambda self, start, n: passes.append((start, n)) or begin(self, start, n))
    model.resume(partial)
    assert passes == [(0, 39)]
    passes.clear()
    model.resume(halfway)
    assert passes == [*((p, 1) for p in range(33, 39)), (0, 39)]


def test_two_interrupts_at_any_moment_leave_a_resumable_trace_or_none(model, monkeypatch):
    """They may fall between any two bytecodes."""
    import random
    import time

    monkeypatch.setattr(model, "probed", model.probed)
    started = time.perf_counter()
    whole = model.generate(PROMPT, max_tokens=N, record="", **SAMPLED)
    usual, rng, resumed = time.perf_counter() - started, random.Random(3), 0

    def twice(*_):
        for _ in range(2):
            signal.raise_signal(signal.SIGINT)

    before = signal.signal(signal.SIGALRM, twice)
    try:
        for attempt in range(300):  # on a busy machine, few interrupts fall between prefill and end
            if attempt >= 30 and resumed > 5:
                break
            try:
                signal.setitimer(signal.ITIMER_REAL, rng.uniform(1e-4, usual))
                try:
                    model.generate(PROMPT, max_tokens=N, record="", **SAMPLED)
                finally:
                    signal.setitimer(signal.ITIMER_REAL, 0)
            except Interrupted as error:
                if error.trace.status == "partial":
                    same(model.resume(error.trace), whole)
                    resumed += 1
            except KeyboardInterrupt:
                pass
    finally:
        signal.signal(signal.SIGALRM, before)
    assert resumed > 5


def test_another_process_continues_the_same_run(tmp_path):
    pocket = Model("pocket")
    question = "Mod 10: a=3, b=a+4, c=b+2. Find c."
    whole = pocket.generate(question, temperature=0.7, seed=3)
    run = lambda: pocket.generate(question, temperature=0.7, seed=3)  # noqa: E731
    interrupted(pocket, 12, run).save(tmp_path / "half")
    code = "import sys, workbench as wb; wb.resume(wb.load(sys.argv[1])).save(sys.argv[2])"
    threads = "import torch; torch.set_num_threads(1); "  # as in the tests
    subprocess.run(
        [sys.executable, "-c", threads + code, str(tmp_path / "half"), str(tmp_path / "done")], check=True, timeout=120
    )
    same(wb.load(tmp_path / "done"), whole)
    assert wb.load(tmp_path / "done").manifest.notes == ["the prompt was rendered by template"]


def test_continuing_with_other_numerics_adds_a_note(model):
    partial = interrupted(model, 5)
    arrays = {name: partial.raw(name) for name in partial.names()}

    def elsewhere(**numerics):
        return Trace(replace(partial.manifest, numerics=partial.manifest.numerics | numerics), arrays)

    whole = model.generate(PROMPT, max_tokens=N)
    same_bits = model.resume(elsewhere(kernels="neon", threads=8))
    assert same_bits.manifest.notes == [] and same_bits.id == whole.id
    done = model.resume(elsewhere(arithmetic="torch", threads=8))
    assert done.manifest.notes == ["the first 33 positions were computed with arithmetic torch"]
    assert done.tokens == whole.tokens and done.id == whole.id and done.verified


# Ends.


@pytest.mark.parametrize("place", [1, N - 2])
def test_it_stops_at_the_same_token(model, place):
    """Also if the interrupt came after the last token was generated and processed."""
    written = model.generate(PROMPT, max_tokens=N, record="").tokens[len(PROMPT) :]
    stop = written[place]
    whole = model.generate(PROMPT, max_tokens=N, stop=[stop], record="")
    assert whole.manifest.generation["finish_reason"] == "stop"
    n_written = len(whole) - len(PROMPT)
    for n in {2, n_written + 1, n_written + 2}:
        same(model.resume(interrupted(model, n, stop=[stop], record="")), whole)


def test_it_stops_at_the_same_text():
    pocket = Model("pocket")
    question = chat("What is 12+30?", reasoning="high")
    run = lambda: pocket.generate(question, stop=["2, 1"], record="")  # noqa: E731
    whole = run()
    assert (
        whole.manifest.generation
        and whole.manifest.generation["finish_reason"] == "stop"
        and whole.text().endswith("2, 1")
    )
    for n in (3, len(whole) - whole.prompt_length + 2):
        same(pocket.resume(interrupted(pocket, n, run)), whole)


def test_the_random_numbers_of_a_token_depend_on_seed_and_position():
    p = torch.tensor([0.1, 0.2, 0.3, 0.4]).log()
    tokens = [choose(p, 1.0, 1.0, 7, n) for n in range(50)]
    assert tokens[::-1] == [choose(p, 1.0, 1.0, 7, n) for n in reversed(range(50))]
    assert tokens != [choose(p, 1.0, 1.0, 8, n) for n in range(50)]
    assert {choose(p, 1.0, 0.65, -1, n) for n in range(100)} == {2, 3}  # any whole number is a seed


# Streamed.


def test_a_streamed_generation_is_resumed_to_its_path(folder, monkeypatch, tmp_path):
    monkeypatch.setattr(prefill, "CHUNK_POSITIONS", 64)
    model, prompt = Model(folder), some_tokens(70)
    model.stop_ids = frozenset()
    run = lambda to: model.generate(prompt, max_tokens=80, record="residuals attention", to=to)  # noqa: E731
    whole = run(tmp_path / "whole")
    for n in (9, 81, 82, 83):  # 81 passes decode, 2 replay
        partial = interrupted(model, n, lambda: run(tmp_path / "done"))
        assert not (tmp_path / "done").exists()
        partial = wb.load(partial.save(tmp_path / f"partial{n}"))
        done = model.resume(partial, to=tmp_path / f"done{n}")
        same(done, whole)
        same(wb.load(tmp_path / f"done{n}"), whole)


def test_an_existing_path_is_refused_before_the_model_runs(model, monkeypatch, tmp_path):
    partial = interrupted(model, 4)
    where = partial.save(tmp_path / "here")
    monkeypatch.setattr("workbench.recording.source.forward", lambda *_: pytest.fail("the model ran"))
    with pytest.raises(TraceExists):
        model.generate(PROMPT, max_tokens=N, to=where)
    with pytest.raises(TraceExists):
        model.resume(partial, to=where)


def test_a_replay_that_fails_loses_no_token(model, monkeypatch, tmp_path):
    whole = model.generate(PROMPT, max_tokens=N)

    def full(*_, **__):
        raise OSError("the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(generation, "record", full)
        with pytest.raises(OSError, match="full"):
            model.generate(PROMPT, max_tokens=N)
    assert len(model.partial) == len(PROMPT) + N
    same(model.resume(model.partial), whole)


# Edits.

EDITS = {
    "steered": ("blocks.1.hook_resid_mid", wb.steer(np.linspace(-1, 1, 96)), None),
    "an ablated head": ("blocks.*.attn.hook_z", wb.ablate(head=3), None),
    "a banned expert, from a token on": ("blocks.2.mlp.router.hook_out", wb.ban(expert=2), slice(25, None)),
    "a halved pattern": ("blocks.0.attn.hook_pattern", lambda p: p / 2, None),
    "other keys": ("blocks.1.attn.hook_rot_k", lambda k: k * 1.1, None),
}


@pytest.mark.parametrize("edit", EDITS)
@pytest.mark.parametrize("n", [2, N + 2])
def test_under_the_same_edits_it_ends_the_same_and_counts_the_same(model, tmp_path, edit, n):
    where, fn, positions = EDITS[edit]
    with model.edit(where, fn, positions=positions):
        whole = model.generate(PROMPT, max_tokens=N, record="")
    with model.edit(where, fn, positions=positions):
        partial = interrupted(model, n, record="")
    partial = wb.load(partial.save(tmp_path / "partial"))
    assert partial.id == whole.id
    with model.edit(where, fn, positions=positions):
        same(model.resume(partial), whole)


def test_the_same_edit_in_force_throughout_counts_each_run_once(model):
    editing = model.edit("blocks.2.hook_mlp_out", lambda x: 0.5 * x)
    with editing:
        whole = model.generate(PROMPT, max_tokens=N, record="")
    with editing:
        same(model.resume(interrupted(model, N + 2, record="")), whole)
    with editing:
        same(model.generate(PROMPT, max_tokens=N, record=""), whole)
    assert whole.edits[0]["n_calls"] == 1 + N + 1 and whole.edits[0]["n_positions"] == 2 * (len(PROMPT) + N)


@pytest.mark.parametrize(
    ("under", "now", "message"),
    [
        (0.5, None, "under edits at blocks.2.hook_mlp_out, and this run would be without edits"),
        (None, 0.5, "without edits, and this run would be under edits at blocks.2.hook_mlp_out"),
        (0.5, 0.25, "with other functions or values"),
    ],
)
def test_other_edits_are_refused_and_nothing_runs(model, under, now, message):
    def edits(by):
        stack = ExitStack()
        if by is not None:
            stack.enter_context(model.edit("blocks.2.hook_mlp_out", lambda x: by * x))
        return stack

    with edits(under):
        partial = interrupted(model, 5, record="")
    with pytest.raises(ResumeError, match=message), edits(now):
        model.resume(partial)
    assert model.partial is partial


# Refusals.


def test_a_complete_trace_is_refused(model):
    with pytest.raises(ResumeError, match="it is complete"):
        model.resume(model.generate(PROMPT, max_tokens=2, record=""))
    with pytest.raises(ResumeError, match="it is complete"):
        model.resume(model.trace(PROMPT, record=""))


def test_another_model_is_refused(model):
    partial = interrupted(model, 4, record="")
    with pytest.raises(
        ResumeError,
        match=r"weights digest .* differs: sha256:.* in the trace, sha256:.* in the model. Load the",
    ):
        tiny(1).resume(partial)
    other = Trace(
        replace(partial.manifest, model=partial.manifest.model | {"config": partial.config | {"window": 13}}),
        {name: partial.raw(name) for name in partial.names()},
    )
    with pytest.raises(ResumeError, match=r"the config of this model .* differs"):
        model.resume(other)


def test_another_dtype_is_refused(folder):
    partial = interrupted(Model(folder), 3)
    with pytest.raises(ResumeError, match=r"in float32, and this model runs in bfloat16. Load it with dtype='float32'"):
        Model(folder, dtype="bfloat16").resume(partial)


def test_a_partial_trace_without_the_state_of_the_run_is_refused(model):
    partial = interrupted(model, 4, record="")
    arrays = {name: partial.raw(name) for name in partial.names() if hooks.point_of(name) not in hooks.GENERATION_STATE}
    tensors = {name: partial.manifest.tensors[name] for name in arrays}
    with pytest.raises(ResumeError, match="does not have the keys and values"):
        model.resume(Trace(replace(partial.manifest, tensors=tensors), arrays))


def test_a_run_over_the_budget_is_refused_and_the_partial_trace_stays(model, monkeypatch):
    partial = interrupted(model, 4)
    monkeypatch.setattr(plan, "free_memory", lambda *_: 1000)
    with pytest.raises(BudgetError):
        model.resume(partial)
    assert model.partial is partial


def test_a_resumed_run_keeps_the_presets_that_auto_selected(model):
    """The presets that "auto" selects depend on the free memory, which may differ in the resumed run."""
    whole = model.generate(PROMPT, max_tokens=N, budget=4e5)
    partial = interrupted(model, 4, budget=4e5)
    assert whole.manifest.omitted and "auto" in whole.manifest.record
    same(model.resume(partial), whole)


def test_a_run_that_was_stopped_on_another_thread_is_resumed_on_this_one(model, monkeypatch):
    whole, partial = model.generate(PROMPT, max_tokens=N), []
    record = Recorder.__call__

    def stop_at_the_fourth_token(recorder, name, x, offset=0):
        if name == "blocks.1.mlp.router.hook_out" and len(recorder.seen.get(name, [])) == 4:
            model.stop()
        return record(recorder, name, x, offset)

    def work():
        try:
            model.generate(PROMPT, max_tokens=N)
        except Interrupted as error:
            partial.append(error.trace)

    with monkeypatch.context() as patch:
        patch.setattr(Recorder, "__call__", stop_at_the_fourth_token)
        thread = threading.Thread(target=work)
        thread.start()
        thread.join(60)
    assert len(partial[0]) == len(PROMPT) + 3
    same(model.resume(partial[0]), whole)
