"""The cache of keys and values: cropped, forked, and continued from any layer and position."""

import pytest
import torch

from tests.model.models import some_tokens, tiny
from workbench.errors import CacheError
from workbench.model.cache import KVCache
from workbench.model.gpt_oss import forward, forward_from
from workbench.recording.taps import Recorder

TOKENS = some_tokens(70)


@pytest.fixture(scope="module")
def model():
    return tiny()


def run(model, tokens, cache=None):
    with torch.no_grad():
        return forward(model.config, model.weights, torch.tensor(tokens), None, cache)


def close(a, b):
    return float((a - b).abs().max() / b.abs().max()) < 1e-5


def test_a_cropped_cache_continues_as_if_it_had_never_had_the_later_positions(model):
    cache = KVCache(model.config)
    run(model, [TOKENS], cache)
    cache.crop(40)
    other = some_tokens(30, seed=9)
    assert close(run(model, [other], cache), run(model, [TOKENS[:40] + other])[:, 40:])


def test_forks_of_one_prefix_are_independent(model):
    cache = KVCache(model.config)
    run(model, [TOKENS[:40]], cache)
    endings = [some_tokens(30, seed) for seed in range(3)]
    forked = run(model, endings, cache.fork(3))
    whole = run(model, [TOKENS[:40] + e for e in endings])[:, 40:]
    assert close(forked, whole)
    assert cache.length() == 40
    assert close(run(model, [endings[1]], cache.fork()), whole[1:2])


def test_a_fork_can_be_shorter_than_its_source_and_rows_can_be_selected(model):
    cache = KVCache(model.config)
    run(model, [TOKENS, some_tokens(70, 4)], cache)
    short = cache.fork(length=25)
    assert (short.length(), cache.length()) == (25, 70)
    assert close(
        run(model, [TOKENS[25:], some_tokens(70, 4)[25:]], short), run(model, [TOKENS, some_tokens(70, 4)])[:, 25:]
    )
    second = cache.select(torch.tensor([1]))
    more = some_tokens(5, 6)
    assert close(run(model, [more], second), run(model, [some_tokens(70, 4) + more])[:, 70:])


@pytest.mark.parametrize("layer", range(4))
@pytest.mark.parametrize("position", [0, 13, 69])
def test_a_pass_started_at_any_layer_and_position_equals_the_rest_of_a_whole_pass(model, layer, position):
    c, w = model.config, model.weights
    recorder, cache = Recorder([f"blocks.{layer}.hook_resid_pre"]), KVCache(c)
    with torch.no_grad():
        whole = forward(c, w, torch.tensor([TOKENS]), recorder, cache)
        rest = recorder[f"blocks.{layer}.hook_resid_pre"][:, position:]
        resumed = forward_from(c, w, rest, layer, None, cache.crop(position))
    assert close(resumed, whole[:, position:])


def test_a_pass_started_at_a_patch_equals_a_whole_pass_with_the_patch(model):
    c, w = model.config, model.weights
    name, position = "blocks.2.hook_resid_pre", 30
    recorder, cache = Recorder([name]), KVCache(c)
    with torch.no_grad():
        forward(c, w, torch.tensor([TOKENS]), recorder, cache)
        patched = recorder[name].clone()
        patched[:, position] += 1
        resumed = forward_from(c, w, patched[:, position:], 2, None, cache.crop(position))

        def add(x):
            return x + 1

        with model.edit(name, add, positions=position):
            whole = model.forward(torch.tensor([TOKENS]))
    assert close(resumed, whole[:, position:])


def test_positions_of_edits_are_absolute_while_decoding(model):
    edited_positions = []

    def note(x, hook):
        edited_positions.extend(hook.positions)
        return x

    with model.edit("blocks.0.hook_resid_pre", note):
        model.generate(TOKENS, max_tokens=5, record="")
    # once during decoding, once in the pass over the finished text
    assert sorted(edited_positions) == sorted([*range(75), *range(75)])


def test_a_whole_pass_raises_on_a_cache_whose_layers_have_different_lengths(model):
    c, w = model.config, model.weights
    recorder, cache = Recorder(["blocks.2.hook_resid_pre"]), KVCache(c)
    with torch.no_grad():
        forward(c, w, torch.tensor([TOKENS]), recorder, cache)
        forward_from(c, w, recorder["blocks.2.hook_resid_pre"][:, 20:], 2, None, cache.crop(20))
        with pytest.raises(CacheError, match=r"cache\.crop\(20\)"):
            forward(c, w, torch.tensor([TOKENS[:1]]), None, cache)
        logits = forward(c, w, torch.tensor([TOKENS[20:]]), None, cache.crop(20))
    assert close(logits, run(model, [TOKENS])[:, 20:])
