"""To which context an edit belongs, and in which form its function takes the Hook."""

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
from workbench.errors import EditError

TOKENS = some_tokens(8)
POINTS = ("blocks.0.hook_mlp_out", "blocks.1.hook_mlp_out")


@pytest.fixture(scope="module")
def model():
    return tiny()


def globs(model) -> list[str]:
    return [edit.glob for edit in model.active_edits()]


def run(model) -> list[str]:
    """The edits that a trace made now says it was recorded under."""
    return [edit["glob"] for edit in model.trace(TOKENS, record="").edits]


def test_coroutines_that_take_turns_have_their_own_edits(model):
    async def one(point):
        with model.edit(point, lambda x: x * 0):
            before = run(model)
            await asyncio.sleep(0.001)
            return before, run(model)

    async def all_of_them():
        return await asyncio.gather(*(one(point) for point in POINTS * 2))

    assert asyncio.run(all_of_them()) == [([p], [p]) for p in POINTS * 2]
    assert globs(model) == []


def test_a_task_and_to_thread_take_the_edits_along_and_a_new_thread_does_not(model):
    elsewhere = []

    async def child():
        return run(model)

    async def main():
        with model.edit(POINTS[0], lambda x: x * 0):
            thread = threading.Thread(target=lambda: elsewhere.append(run(model)))
            thread.start()
            thread.join()
            traces = await asyncio.gather(*(asyncio.to_thread(model.trace, TOKENS, record="") for _ in range(4)))
            return await asyncio.create_task(child()), [trace.edits[0]["n_calls"] for trace in traces]

    assert asyncio.run(main()) == ([POINTS[0]], [1] * 4)  # each run counts for itself
    assert elsewhere == [[]]


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
def test_an_edit_rests_while_its_generator_is_suspended(model, make):
    seen = [(inside, run(model)) for inside in make(model)]
    assert seen == [([POINTS[0]], [])] * 2
    left = make(model)
    next(left)
    assert globs(model) == []
    with pytest.raises(ValueError, match="out"):
        left.throw(ValueError("out"))
    assert globs(model) == []


def test_a_generator_may_be_resumed_on_another_thread(model):
    made, seen = generator(model), []
    assert next(made) == [POINTS[0]]
    thread = threading.Thread(target=lambda: seen.extend([*made, globs(model)]))
    thread.start()
    thread.join()
    assert seen == [[POINTS[0]], []]


def test_an_asynchronous_generator_rests_too(model):
    async def steps():
        with model.edit(POINTS[0], lambda x: x * 0):
            yield run(model)

    async def main():
        return [(inside, run(model)) async for inside in steps()]

    assert asyncio.run(main()) == [([POINTS[0]], [])]


@contextlib.asynccontextmanager
async def edited_later(model):
    with model.edit(POINTS[0], lambda x: x * 0):
        yield


def test_a_generator_that_is_a_context_manager_edits_its_callers_block(model):
    async def main():
        async with edited_later(model):
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


def test_an_edit_of_a_fixture_holds_in_the_test(model, under_an_edit):
    assert run(model) == [POINTS[0]]


class Called:
    def __init__(self):
        self.seen = []

    def __call__(self, x, *, hook):
        self.seen.append(hook)
        return x


def forms():
    """Functions in every form, and the list in which each leaves what it got as its Hook."""
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
    yield "any positional", lambda *given: note(*given), seen
    yield "any keyword", lambda x, **given: note(x, **given), seen
    yield "partial", functools.partial(three, head=1), seen
    yield "module", Layer(), seen
    yield "decorated", wrapped(lambda x, *, hook: note(x, hook)), seen
    called = Called()
    yield "object", called, called.seen


@pytest.mark.parametrize(("fn", "seen"), [pytest.param(fn, seen, id=name) for name, fn, seen in forms()])
def test_every_form_of_function_gets_the_hook(model, fn, seen):
    seen.clear()
    with model.edit("blocks.1.attn.hook_z", fn):
        model.trace(TOKENS, record="")
    assert seen == [Hook("blocks.1.attn.hook_z", 1, range(8), model.config.n_active)]


def scripted():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # torch would have nobody write TorchScript any more
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
def test_a_function_of_the_value_alone_gets_no_hook(model, fn):
    with model.edit("blocks.1.hook_mlp_out", fn):
        assert run(model) == ["blocks.1.hook_mlp_out"]


@pytest.mark.parametrize(
    ("fn", "why"),
    [
        (lambda x, *, scale: x, "scale"),
        (lambda x, head, hook: x, "missing a required argument"),
        (lambda: 0, "too many positional"),
        (0.5, "got a float"),
        (None, "got a NoneType"),
        (scripted(), "TorchScript"),
    ],
)
def test_a_function_that_cannot_be_called_so_is_refused_before_it_runs(model, fn, why):
    with pytest.raises(EditError, match=why):
        model.edit("hook_embed", fn)


def test_edits_that_are_ready_made_get_the_hook_too(model):
    with model.edit("blocks.1.mlp.router.hook_out", wb.ban(0)):
        trace = model.trace(TOKENS, record="")
    assert not (trace["expert_indices", 1] == 0).any()


@pytest.mark.parametrize("way", [copy.copy, copy.deepcopy, pickle.dumps])
def test_an_edit_is_not_copied_out_of_its_block(model, way):
    with pytest.raises(EditError, match="make it again"):
        way(model.edit("hook_embed", torch.relu))
