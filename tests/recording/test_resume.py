"""An interrupted generation, gone on with: bit for bit the run that was never interrupted."""

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
from workbench.recording import generation, plan
from workbench.recording.decoding import choose
from workbench.recording.generation import Interrupted
from workbench.recording.taps import Recorder
from workbench.traces import Trace

PROMPT, N = some_tokens(30), 9  # past the window of 12
GREEDY = {}
DRAWN = {"temperature": 0.9, "top_p": 0.95, "seed": 5}


@pytest.fixture(scope="module")
def model():
    return tiny()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return Random(seed=5).write_hf_mxfp4(tmp_path_factory.mktemp("resume") / "model")


def interrupted(model, n: int, run=None, **more) -> Trace:
    """What is left of a generation that is interrupted in its n-th pass: 1 is the prompt's, N + 2 the replay."""
    run = run or (lambda: model.generate(PROMPT, max_tokens=N, **more))
    with ctrl_c_in_pass(n), pytest.raises(Interrupted) as caught:
        run()
    assert caught.value.trace is model.partial
    return caught.value.trace


def same(a: Trace, b: Trace) -> None:
    """Everything but the time of day: manifest and every bit."""
    assert a.id == b.id and a.names() == b.names()
    for name in a.names():
        assert np.array_equal(a.raw(name), b.raw(name), equal_nan=a.raw(name).dtype.kind == "f"), name
    told = [
        t.manifest.to_json()
        | {"created": "", "tensors": {n: (i.source, i.axes) for n, i in t.manifest.tensors.items()}}
        for t in (a, b)
    ]
    assert told[0] == told[1]


@pytest.mark.parametrize("how", [GREEDY, DRAWN], ids=["greedy", "drawn"])
def test_a_generation_interrupted_at_any_token_ends_as_if_it_had_not_been(model, tmp_path, how):
    whole = model.generate(PROMPT, max_tokens=N, record="attention", **how)
    assert len(whole) == len(PROMPT) + N
    for n in range(2, N + 3):
        left = interrupted(model, n, record="attention", **how)
        assert left.status == "partial" and len(left) == len(PROMPT) + n - 2 and left.id == whole.id
        if n % 2:
            left = wb.load(left.save(tmp_path / f"{n}.trace"))
        same(model.resume(left), whole)


@pytest.mark.parametrize("level", [*native.levels(), "numba", "torch"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_packed_experts_and_every_dtype_resume_to_the_same_bits(folder, tmp_path, level, dtype):
    if level == "numba":
        pytest.importorskip("numba")
    with computing_with(level):
        model = Model(folder, memory="small", dtype=dtype)
        model.stop_ids = frozenset()
        whole = model.generate(PROMPT, max_tokens=N, record="", **DRAWN)
        for n in (2, 5):
            left = wb.load(interrupted(model, n, record="", **DRAWN).save(tmp_path / f"{n}.trace"))
            same(model.resume(left), whole)


def test_past_the_window_and_the_room_of_the_cache_no_bit_changes(model, tmp_path):
    """Sliding layers keep 11 positions, and what they lie in grows several times."""
    prompt = some_tokens(5)
    whole = model.generate(prompt, max_tokens=60, record="")
    for n in (3, 9, 14, 55):
        left = interrupted(model, n, lambda: model.generate(prompt, max_tokens=60, record=""))
        widths = {left[f"blocks.{layer}.attn.cache_k"].shape[1] for layer in (0, 2)}
        assert widths == {min(len(left), model.config.window - 1)}
        assert left["blocks.1.attn.cache_k"].shape[1] == len(left)
        same(model.resume(wb.load(left.save(tmp_path / str(n)))), whole)


def test_a_resumed_run_may_be_interrupted_again_and_again(model):
    whole = model.generate(PROMPT, max_tokens=N, **DRAWN)
    left = interrupted(model, 3, **DRAWN)
    lengths = [len(left)]
    for n in (1, 3, 2):  # the first of these before it has read a single token
        left = interrupted(model, n, lambda left=left: model.resume(left))
        lengths.append(len(left))
    assert lengths == [31, 31, 33, 34]
    assert left.manifest.notes == [
        "interrupted after 34 positions: not replayed, so it contains routing and predictions only"
    ]
    same(model.resume(left), whole)


def test_an_interrupt_while_the_prompt_is_read_leaves_nothing_to_go_on_with(model, monkeypatch):
    for at_once in (1024, 8):  # in its only pass, and in one of several
        monkeypatch.setattr(prefill, "CHUNK_POSITIONS", at_once)
        monkeypatch.setattr(prefill, "MIN_LAST_CHUNK", 0)
        with ctrl_c_in_pass(1 if at_once == 1024 else 3), pytest.raises(KeyboardInterrupt) as caught:
            model.generate(PROMPT, max_tokens=N)
        assert not isinstance(caught.value, Interrupted) and model.partial is None


def test_what_was_read_is_never_read_again(model, monkeypatch):
    """An interrupted replay is all that is repeated; a live position is not computed twice."""
    passes = []
    begin = Recorder.begin
    left = interrupted(model, N + 2)
    assert len(left) == len(PROMPT) + N
    halfway = interrupted(model, 5)
    monkeypatch.setattr(Recorder, "begin", lambda self, start, n: passes.append((start, n)) or begin(self, start, n))
    model.resume(left)
    assert passes == [(0, 39)]
    passes.clear()
    model.resume(halfway)
    assert passes == [*((p, 1) for p in range(33, 39)), (0, 39)]


def test_two_presses_at_any_moment_leave_what_can_be_resumed_or_nothing(model, monkeypatch):
    """The second Ctrl-C does not wait for a hook point: it may fall between any two bytecodes."""
    import random
    import time

    monkeypatch.setattr(model, "probed", model.probed)
    started = time.perf_counter()
    whole = model.generate(PROMPT, max_tokens=N, record="", **DRAWN)
    usual, dice, resumed = time.perf_counter() - started, random.Random(3), 0

    def twice(*_):
        for _ in range(2):
            signal.raise_signal(signal.SIGINT)

    before = signal.signal(signal.SIGALRM, twice)
    try:
        for _ in range(30):
            try:
                signal.setitimer(signal.ITIMER_REAL, dice.uniform(1e-4, usual))
                try:
                    model.generate(PROMPT, max_tokens=N, record="", **DRAWN)
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


def test_a_fresh_process_finishes_what_another_began(tmp_path):
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


def test_another_process_with_other_numerics_goes_on_and_says_so(model):
    left = interrupted(model, 5)
    arrays = {name: left.raw(name) for name in left.names()}

    def elsewhere(**numerics):
        return Trace(replace(left.manifest, numerics=left.manifest.numerics | numerics), arrays)

    whole = model.generate(PROMPT, max_tokens=N)
    same_bits = model.resume(elsewhere(kernels="neon", threads=8))
    assert same_bits.manifest.notes == [] and same_bits.id == whole.id
    done = model.resume(elsewhere(arithmetic="torch", threads=8))
    assert done.manifest.notes == ["the first 33 positions were computed with arithmetic torch"]
    assert done.tokens == whole.tokens and done.id == whole.id and done.verified


# Ends.


@pytest.mark.parametrize("place", [1, N - 2])
def test_it_stops_at_the_same_token(model, place):
    """Also when the interrupt came after the last token had been written and read."""
    written = model.generate(PROMPT, max_tokens=N, record="").tokens[len(PROMPT) :]
    stop = written[place]
    whole = model.generate(PROMPT, max_tokens=N, stop=[stop], record="")
    assert whole.manifest.generation["finish_reason"] == "stop"
    n_written = len(whole) - len(PROMPT)
    for n in {2, n_written + 1, n_written + 2}:
        same(model.resume(interrupted(model, n, stop=[stop], record="")), whole)


def test_it_stops_at_the_same_text():
    pocket = Model("pocket")
    asked = chat("What is 12+30?", reasoning="high")
    run = lambda: pocket.generate(asked, stop=["2, 1"], record="")  # noqa: E731
    whole = run()
    assert (
        whole.manifest.generation
        and whole.manifest.generation["finish_reason"] == "stop"
        and whole.text().endswith("2, 1")
    )
    for n in (3, len(whole) - whole.prompt_length + 2):
        same(pocket.resume(interrupted(pocket, n, run)), whole)


def test_the_dice_of_a_token_depend_on_the_seed_and_its_place():
    p = torch.tensor([0.1, 0.2, 0.3, 0.4]).log()
    drawn = [choose(p, 1.0, 1.0, 7, n) for n in range(50)]
    assert drawn[::-1] == [choose(p, 1.0, 1.0, 7, n) for n in reversed(range(50))]
    assert drawn != [choose(p, 1.0, 1.0, 8, n) for n in range(50)]
    assert {choose(p, 1.0, 0.65, -1, n) for n in range(100)} == {2, 3}  # any whole number is a seed


# Streamed.


def test_a_streamed_generation_is_resumed_into_its_place(folder, monkeypatch, tmp_path):
    monkeypatch.setattr(prefill, "CHUNK_POSITIONS", 64)
    model, prompt = Model(folder), some_tokens(70)
    model.stop_ids = frozenset()
    run = lambda to: model.generate(prompt, max_tokens=80, record="residuals attention", to=to)  # noqa: E731
    whole = run(tmp_path / "whole")
    for n in (9, 81, 82, 83):  # 81 passes write, 2 replay
        left = interrupted(model, n, lambda: run(tmp_path / "done"))
        assert not (tmp_path / "done").exists()
        left = wb.load(left.save(tmp_path / f"left{n}"))
        done = model.resume(left, to=tmp_path / f"done{n}")
        same(done, whole)
        same(wb.load(tmp_path / f"done{n}"), whole)


def test_a_place_that_is_taken_is_refused_before_the_model_writes(model, monkeypatch, tmp_path):
    left = interrupted(model, 4)
    where = left.save(tmp_path / "here")
    monkeypatch.setattr("workbench.recording.source.forward", lambda *_: pytest.fail("the model ran"))
    with pytest.raises(TraceExists):
        model.generate(PROMPT, max_tokens=N, to=where)
    with pytest.raises(TraceExists):
        model.resume(left, to=where)


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
        left = interrupted(model, n, record="")
    left = wb.load(left.save(tmp_path / "left"))
    assert left.id == whole.id
    with model.edit(where, fn, positions=positions):
        same(model.resume(left), whole)


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
    ("under", "now", "says"),
    [
        (0.5, None, "under edits at blocks.2.hook_mlp_out, and this run would be without edits"),
        (None, 0.5, "without edits, and this run would be under edits at blocks.2.hook_mlp_out"),
        (0.5, 0.25, "with other functions or values"),
    ],
)
def test_other_edits_are_refused_and_nothing_runs(model, under, now, says):
    def edits(by):
        stack = ExitStack()
        if by is not None:
            stack.enter_context(model.edit("blocks.2.hook_mlp_out", lambda x: by * x))
        return stack

    with edits(under):
        left = interrupted(model, 5, record="")
    with pytest.raises(ResumeError, match=says), edits(now):
        model.resume(left)
    assert model.partial is left


# Refusals.


def test_a_complete_trace_is_refused(model):
    with pytest.raises(ResumeError, match="it is complete"):
        model.resume(model.generate(PROMPT, max_tokens=2, record=""))
    with pytest.raises(ResumeError, match="it is complete"):
        model.resume(model.trace(PROMPT, record=""))


def test_another_model_is_refused(model):
    left = interrupted(model, 4, record="")
    with pytest.raises(
        ResumeError,
        match=r"weights digest .* differs: sha256:.* in the trace, sha256:.* in the model. Load the model that generated it",
    ):
        tiny(1).resume(left)
    other = Trace(
        replace(left.manifest, model=left.manifest.model | {"config": left.config | {"window": 13}}),
        {name: left.raw(name) for name in left.names()},
    )
    with pytest.raises(ResumeError, match=r"the config of this model .* differs"):
        model.resume(other)


def test_another_dtype_is_refused(folder):
    left = interrupted(Model(folder), 3)
    with pytest.raises(ResumeError, match=r"in float32, and this model runs in bfloat16. Load it with dtype='float32'"):
        Model(folder, dtype="bfloat16").resume(left)


def test_a_partial_trace_without_the_state_of_the_run_is_refused(model):
    left = interrupted(model, 4, record="")
    kept = {name: left.raw(name) for name in left.names() if hooks.point_of(name) not in hooks.GENERATION_STATE}
    tensors = {name: left.manifest.tensors[name] for name in kept}
    with pytest.raises(ResumeError, match="does not have the keys and values"):
        model.resume(Trace(replace(left.manifest, tensors=tensors), kept))


def test_what_does_not_fit_is_refused_and_stays(model, monkeypatch):
    left = interrupted(model, 4)
    monkeypatch.setattr(plan, "free_memory", lambda *_: 1000)
    with pytest.raises(BudgetError):
        model.resume(left)
    assert model.partial is left


def test_auto_means_what_it_meant(model):
    """It takes what fits the memory that is free; another run's memory is another."""
    whole = model.generate(PROMPT, max_tokens=N, budget=4e5)
    left = interrupted(model, 4, budget=4e5)
    assert whole.manifest.omitted and "auto" in whole.manifest.record
    same(model.resume(left), whole)


def test_a_run_that_was_stopped_on_another_thread_is_resumed_on_this_one(model, monkeypatch):
    whole, left = model.generate(PROMPT, max_tokens=N), []
    see = Recorder.__call__

    def stop_at_the_fourth_token(recorder, name, x, offset=0):
        if name == "blocks.1.mlp.router.hook_out" and len(recorder.seen.get(name, [])) == 4:
            model.stop()
        return see(recorder, name, x, offset)

    def work():
        try:
            model.generate(PROMPT, max_tokens=N)
        except Interrupted as error:
            left.append(error.trace)

    with monkeypatch.context() as patch:
        patch.setattr(Recorder, "__call__", stop_at_the_fourth_token)
        thread = threading.Thread(target=work)
        thread.start()
        thread.join(60)
    assert len(left[0]) == len(PROMPT) + 3
    same(model.resume(left[0]), whole)
