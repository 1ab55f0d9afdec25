"""The context that an edit belongs to, and the signatures with which its function can take the Hook."""

import asyncio
import contextlib
import copy
import functools
import pickle
import threading
import warnings

import pytest
import torch

import workbench as wb
from tests.model.models import some_tokens, tiny
from workbench.edits.edit import Hook
from workbench.errors import EditError, NotRecorded

TOKENS = some_tokens(8)
POINTS = ("blocks.0.hook_mlp_out", "blocks.1.hook_mlp_out")


@pytest.fixture(scope="module")
def model():
    return tiny()


def globs(model) -> list[str]:
    return [edit.glob for edit in model.active_edits()]


def run(model) -> list[str]:
    """The edits in the manifest of a trace recorded now."""
    return [edit["glob"] for edit in model.trace(TOKENS, record="").edits]


def test_concurrent_coroutines_have_separate_edits(model):
    async def one(point):
        with model.edit(point, lambda x: x * 0):
            before = run(model)
            await asyncio.sleep(0.001)
            return before, run(model)

    async def gather_all():
        return await asyncio.gather(*(one(point) for point in POINTS * 2))

    assert asyncio.run(gather_all()) == [([p], [p]) for p in POINTS * 2]
    assert globs(model) == []


def test_edits_are_active_in_a_child_task_and_to_thread_but_not_in_a_new_thread(model):
    in_thread = []

    async def child():
        return run(model)

    async def main():
        with model.edit(POINTS[0], lambda x: x * 0):
            thread = threading.Thread(target=lambda: in_thread.append(run(model)))
            thread.start()
            thread.join()
            traces = await asyncio.gather(*(asyncio.to_thread(model.trace, TOKENS, record="") for _ in range(4)))
            return await asyncio.create_task(child()), [trace.edits[0]["n_calls"] for trace in traces]

    assert asyncio.run(main()) == ([POINTS[0]], [1] * 4)  # each run has its own count
    assert in_thread == [[]]


def generator(model):
    with model.edit(POINTS[0], lambda x: x * 0):
        yield run(model)
        yield run(model)


def generator_of_a_stack(model):
    with contextlib.ExitStack() as stack:
        stack.enter_context(edited(model))
        yield run(model)
        yield run(model)


@contextlib.contextmanager
def edited(model):
    with model.edit(POINTS[0], lambda x: x * 0):
        yield


class Edited:
    def __init__(self, model):
        self.editing = model.edit(POINTS[0], lambda x: x * 0)

    def __enter__(self):
        return self.editing.__enter__()

    def __exit__(self, *error):
        return self.editing.__exit__(*error)


def generator_of_a_class(model):
    with Edited(model):
        yield run(model)
        yield run(model)


@pytest.mark.parametrize("make", [generator, generator_of_a_stack, generator_of_a_class])
def test_an_edit_is_inactive_while_its_generator_is_suspended(model, make):
    seen = [(inside, run(model)) for inside in make(model)]
    assert seen == [([POINTS[0]], [])] * 2
    suspended = make(model)
    next(suspended)
    assert globs(model) == []
    with pytest.raises(ValueError, match="out"):
        suspended.throw(ValueError("out"))
    assert globs(model) == []


def test_an_edit_follows_its_generator_to_another_thread(model):
    steps, seen = generator(model), []
    assert next(steps) == [POINTS[0]]
    thread = threading.Thread(target=lambda: seen.extend([*steps, globs(model)]))
    thread.start()
    thread.join()
    assert seen == [[POINTS[0]], []]


def test_an_edit_is_inactive_while_its_asynchronous_generator_is_suspended(model):
    async def steps():
        with model.edit(POINTS[0], lambda x: x * 0):
            yield run(model)

    async def main():
        return [(inside, run(model)) async for inside in steps()]

    assert asyncio.run(main()) == [([POINTS[0]], [])]


@contextlib.asynccontextmanager
async def edited_async(model):
    with model.edit(POINTS[0], lambda x: x * 0):
        yield


def test_an_edit_in_a_context_manager_generator_is_active_in_the_callers_block(model):
    async def main():
        async with edited_async(model):
            return run(model)

    for entered in (edited, Edited):
        with entered(model):
            assert run(model) == [POINTS[0]]
        assert globs(model) == []
    assert asyncio.run(main()) == [POINTS[0]]


@pytest.fixture
def under_an_edit(model):
    with model.edit(POINTS[0], lambda x: x * 0):
        yield


def test_an_edit_entered_in_a_fixture_is_active_in_the_test(model, under_an_edit):
    assert run(model) == [POINTS[0]]


class Called:
    def __init__(self):
        self.seen = []

    def __call__(self, x, *, hook):
        self.seen.append(hook)
        return x


def forms():
    """Functions with every supported signature, and the list to which each appends its Hook."""
    seen = []

    def note(x, hook):
        seen.append(hook)
        return x

    def three(x, head, hook):
        return note(x, hook)

    class Layer(torch.nn.Module):
        def forward(self, x, hook=None):
            return note(x, hook)

    def wrapped(fn):
        @functools.wraps(fn)
        def inner(*args, **kwargs):
            return fn(*args, **kwargs)

        return inner

    yield "positional", note, seen
    yield "another name", lambda x, h: note(x, h), seen
    yield "positional only", lambda x, hook, /: note(x, hook), seen
    yield "default", lambda x, hook=None: note(x, hook), seen
    yield "keyword only", lambda x, *, hook: note(x, hook), seen
    yield "keyword only with a default", lambda x, *, hook=None: note(x, hook), seen
    yield "after another default", lambda x, scale=1.0, *, hook=None: note(x, hook), seen
    yield "any positional", lambda *args: note(*args), seen
    yield "any keyword", lambda x, **kwargs: note(x, **kwargs), seen
    yield "partial", functools.partial(three, head=1), seen
    yield "module", Layer(), seen
    yield "decorated", wrapped(lambda x, *, hook: note(x, hook)), seen
    called = Called()
    yield "object", called, called.seen


@pytest.mark.parametrize(("fn", "seen"), [pytest.param(fn, seen, id=name) for name, fn, seen in forms()])
def test_a_function_with_any_supported_signature_gets_the_hook(model, fn, seen):
    seen.clear()
    with model.edit("blocks.1.attn.hook_z", fn):
        model.trace(TOKENS, record="")
    assert seen == [Hook("blocks.1.attn.hook_z", 1, range(8), model.config.n_active)]


def scripted():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # torch deprecates TorchScript
        return torch.jit.script(torch.nn.ReLU())


@pytest.mark.parametrize(
    "fn",
    [
        torch.relu,
        torch.nn.functional.relu,
        lambda x, scale=0.5: x * scale,
        torch.nn.Identity(),
    ],
)
def test_a_function_of_the_value_alone_is_called_without_a_hook(model, fn):
    with model.edit("blocks.1.hook_mlp_out", fn):
        assert run(model) == ["blocks.1.hook_mlp_out"]


@pytest.mark.parametrize(
    ("fn", "message"),
    [
        (lambda x, *, scale: x, "scale"),
        (lambda x, head, hook: x, "missing a required argument"),
        (lambda: 0, "too many positional"),
        (0.5, "got a float"),
        (None, "got a NoneType"),
        (scripted(), "TorchScript"),
    ],
)
def test_a_function_with_an_unsupported_signature_raises_before_the_run(model, fn, message):
    with pytest.raises(EditError, match=message):
        model.edit("hook_embed", fn)


def test_ready_made_edits_get_the_hook(model):
    with model.edit("blocks.1.mlp.router.hook_out", wb.ban(0)):
        trace = model.trace(TOKENS, record="")
    assert not (trace["expert_indices", 1] == 0).any()


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, pickle.dumps])
def test_an_edit_cannot_be_copied_or_pickled(model, copied):
    with pytest.raises(EditError, match="Make a new one"):
        copied(model.edit("hook_embed", torch.relu))


@pytest.mark.parametrize("stored", [False, True], ids=["in memory", "on disk"])
def test_a_patch_is_identified_by_its_source(stored, tmp_path):
    model = tiny()
    source = model.trace(some_tokens(40), record="z")
    if stored:
        source.save(tmp_path / "source")
        source = wb.load(tmp_path / "source")
    tokens, where = some_tokens(40, seed=1), "blocks.1.attn.hook_z"
    ids = []
    for edit in (model.patch(where, source), model.edit(where, wb.patch(source)), model.edit(where, wb.patch(source))):
        with edit:
            ids.append(model.trace(tokens, record="").id)
    assert len(set(ids)) == 1


def test_a_patch_from_a_trace_without_the_hook_point_is_refused_before_the_run():
    model = tiny()
    source = model.trace(some_tokens(10), record="")
    for patched in (model.patch, lambda where, trace: model.edit(where, wb.patch(trace))):
        with pytest.raises(NotRecorded, match="record='z'"):
            patched("blocks.1.attn.hook_z", source)


def test_a_result_in_a_buffer_that_is_used_again_is_recorded_as_it_was(model):
    buffer = torch.empty(1, len(TOKENS), model.config.d_model)

    def reused(x, hook):
        return torch.add(x, float(hook.layer + 1), out=buffer)

    recorded = []
    for fn in (lambda x, hook: x + float(hook.layer + 1), reused):
        with model.edit("blocks.*.hook_mlp_out", fn):
            recorded.append(model.trace(TOKENS, record="writes"))
    buffer.zero_()
    for name in recorded[0].names():
        assert (recorded[0].raw(name) == recorded[1].raw(name))[1:].all()
    assert recorded[1].verified


@pytest.mark.parametrize(
    ("fn", "message"),
    [
        (lambda x: x + 1j, "only the real part would remain"),
        (lambda x: x > 0, "a tensor of bool"),
        (lambda x: x.to_sparse(), "sparse_coo"),
        (lambda x: x.to("meta"), "has no numbers"),
    ],
)
def test_a_result_whose_numbers_would_change_or_are_missing_is_refused(model, fn, message):
    with pytest.raises(EditError, match=message), model.edit(POINTS[0], fn):
        run(model)
