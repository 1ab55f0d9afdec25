"""A text in a batch has the tokens and the recorded bits of a generation alone, whatever is generated beside it."""

from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

import workbench as wb
from tests.model.models import some_tokens, tiny
from workbench import hooks
from workbench.edits.edit import Edit
from workbench.model import prefill
from workbench.model.interrupts import Interrupt
from workbench.model.kernels import native
from workbench.recording import batching
from workbench.recording.batching import Batch, Job
from workbench.recording.decoding import Decoding, Generation, Settings
from workbench.recording.next_token import next_token
from workbench.recording.plan import Plan, affordable_plan
from workbench.recording.source import ModelSource
from workbench.taps import Tap

pytestmark = pytest.mark.skipif(native.isa() is None, reason="other products depend on the number of rows")


def weigh_another(x):
    """Gives weight to an expert that may not have been chosen: more experts then run than the router chose."""
    x[..., 5] += 0.25
    return x


def mask_key(x):
    x[..., 2:3] = -torch.inf
    return x


# The window is 12, prompts have up to 46 tokens.
EDITS = [
    ("blocks.1.mlp.router.hook_out", wb.ban([0, 3]), None),
    ("blocks.2.mlp.hook_expert_weights", weigh_another, slice(18, 44)),
    ("blocks.0.mlp.hook_expert_indices", lambda x: x.flip(-1), [3, 20, 41]),
    ("blocks.1.attn.hook_attn_scores", mask_key, slice(30, None)),
    ("blocks.2.attn.hook_pattern", lambda x: x * 0.5, [40, 41]),
    ("blocks.3.attn.hook_sink", lambda x: x * 0.5, None),
    ("blocks.3.attn.hook_result", lambda x: x * 1.5, slice(10, 40)),
    ("blocks.2.hook_resid_mid", lambda x: x + 0.25, [0, 20, 41, 42]),
    ("hook_logits", lambda x: x * 1.5, slice(25, None)),
]


@st.composite
def mixes(draw):
    """(prompts, settings of each, edits, number of rows)."""
    base, prompts = some_tokens(40, seed=draw(st.integers(0, 2))), []
    for _ in range(draw(st.integers(1, 4))):
        own = some_tokens(draw(st.integers(0, 6)), seed=draw(st.integers(3, 5)))
        prompts.append([*base[: draw(st.integers(1, 40))], *own])
    how = [
        Settings(
            max_tokens=draw(st.integers(1, 5)),
            temperature=draw(st.sampled_from([0.0, 0.8, 2.0])),
            top_p=draw(st.sampled_from([1.0, 0.7])),
            seed=draw(st.integers(0, 3)),
            stop=tuple(draw(st.sampled_from([(), range(60), range(100, 120)]))),
        )
        for _ in prompts
    ]
    edits = draw(st.lists(st.sampled_from(EDITS), max_size=2, unique_by=lambda edit: edit[0]))
    return prompts, how, edits, draw(st.integers(1, 4))


@cache
def any_plan() -> Plan:
    """Decoding does not depend on it."""
    return affordable_plan(ModelSource(tiny()), "", some_tokens(3), 9, None)


def new_generation(source: ModelSource, settings: Settings, tokens) -> Generation:
    own = source.for_row()
    return Generation(own, any_plan(), settings, tokens, Interrupt(), next_token(own, tokens, settings.top_p))


def together(source: ModelSource, prompts, how, n_rows: int = 64) -> dict[int, batching.Row]:
    """The rows of a batch by number of the prompt, after all have ended."""
    jobs = [
        Job(i, prompt, lambda tokens, s=s: new_generation(source, s, tokens), 1, "all" if source.in_chunks else None)
        for i, (prompt, s) in enumerate(zip(prompts, how))
    ]
    batch, ended = Batch(jobs, n_rows), {}
    while not batch.is_done:
        batch.advance(Interrupt())
        row = batch.ended.popleft()
        ended[row.job.number] = row
    return ended


def assert_equal(a: Decoding, b: Generation) -> None:
    assert isinstance(a, Generation)
    assert a.tokens == b.tokens
    left, right = a.arrays(), b.arrays()
    assert left.keys() == right.keys()
    for name in left:
        assert left[name].dtype == right[name].dtype
        assert np.array_equal(left[name], right[name], equal_nan=left[name].dtype.kind == "f"), name
    assert torch.equal(a.state.last, b.state.last) and a.state.tallies == b.state.tallies
    for mine, other in zip(a.cache.layers(), b.cache.layers(), strict=True):
        assert torch.equal(mine[0], other[0]) and torch.equal(mine[1], other[1])


@hypothesis_settings(max_examples=200, deadline=None)
@given(mixes())
def test_a_text_has_the_bits_of_a_generation_alone_in_random_mixes(mix):
    prompts, how, edits, n_rows = mix
    model = tiny()
    n_layers = model.config.n_layers
    entered = [Edit(where, fn, hooks.match(where, n_layers), model.config, at) for where, fn, at in edits]
    source = ModelSource(model).for_row(*entered)
    ended = together(source, prompts, how, n_rows)
    assert sorted(ended) == list(range(len(prompts)))
    for i, (prompt, settings) in enumerate(zip(prompts, how)):
        alone = new_generation(source, settings, prompt)
        reason = alone.decode(lambda: None)
        assert ended[i].error is None and ended[i].finish_reason == reason
        assert_equal(ended[i].started, alone)


def test_prompts_longer_than_a_chunk_have_the_same_bits(monkeypatch):
    """Prefill in chunks of 128, beside texts that are decoded, with a shared beginning of 300 tokens."""
    monkeypatch.setattr(prefill, "CHUNK_POSITIONS", 128)
    monkeypatch.setattr(prefill, "MIN_LAST_CHUNK", 0)
    monkeypatch.setattr(batching, "CHUNK_POSITIONS", 128)
    base, source = some_tokens(300), ModelSource(tiny())
    prompts = [some_tokens(5, seed=1), [*base, 7, 8], base, [*base, *some_tokens(40, seed=2)], some_tokens(200, seed=3)]
    how = [Settings(n, 0.9, 1.0, seed=n, stop=()) for n in (30, 4, 5, 3, 2)]
    ended = together(source, prompts, how)
    for i, (prompt, settings) in enumerate(zip(prompts, how)):
        alone = new_generation(source, settings, prompt)
        alone.decode(lambda: None)
        assert_equal(ended[i].started, alone)


def test_a_shared_beginning_is_read_once(monkeypatch):
    source, n_read = ModelSource(tiny()), []
    run = ModelSource.run_rows
    monkeypatch.setattr(
        ModelSource,
        "run_rows",
        lambda self, tokens, rows, tap: n_read.append(len(tokens)) or run(self, tokens, rows, tap),
    )
    base = some_tokens(40)
    prompts = [base, [*base, 9], base, [*base, 8, 7], some_tokens(20, seed=9)]
    together(source, prompts, [Settings(2, 0.0, 1.0, 0, ())] * 5)
    assert sum(n_read) == 40 + 1 + 2 + 20 + 5 * 2


def test_rows_enter_when_others_leave_and_at_most_as_many_as_fit():
    source = ModelSource(tiny())
    prompts = [some_tokens(n, seed=n) for n in (3, 4, 5, 6)]
    jobs = [
        Job(i, p, lambda tokens, i=i: new_generation(source, Settings(2 + i, 0.0, 1.0, 0, ()), tokens), 10, "all")
        for i, p in enumerate(prompts)
    ]
    for max_rows, max_bytes in ((2, 1e9), (64, 25), (64, 3)):  # 3 bytes: one text runs, although it needs more
        batch, in_progress = Batch(jobs, max_rows, max_bytes), []
        while not batch.is_done:
            batch.advance(Interrupt(), lambda batch=batch, seen=in_progress: seen.append(len(batch.rows)))
            batch.ended.popleft()
        assert max(in_progress) <= (1 if max_bytes == 3 else 2) and batch.n_tokens == 2 + 3 + 4 + 5


def test_a_failing_prefix_ends_the_texts_after_it_and_no_other(monkeypatch):
    source, base = ModelSource(tiny()), some_tokens(40)

    def start(tokens):
        generation = new_generation(source, Settings(2, 0.0, 1.0, 0, ()), tokens)
        if list(tokens) == base:
            generation.tap = Failing()
        return generation

    class Failing(Tap):
        def __call__(self, name, x, offset=0):
            raise MemoryError("too much")

    prompts = [[*base, 1], [*base, 2], some_tokens(20, seed=9)]
    batch, ended = Batch([Job(i, p, start, 1, "all") for i, p in enumerate(prompts)]), {}
    while not batch.is_done:
        batch.advance(Interrupt())
        row = batch.ended.popleft()
        ended[row.job.number] = row
    assert [str(ended[i].error) for i in range(3)] == ["too much", "too much", "None"]
