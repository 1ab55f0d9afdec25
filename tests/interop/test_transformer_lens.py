"""TransformerLens's runs and caches give the same Trace; a compatibility mode that breaks sinks is refused."""

import pytest
import torch

from tests.interop.made import EVERYTHING, TOLERANCE, bridge, gaps, statuses, tokens, workbench_trace
from workbench.errors import InteropError, NotRecorded
from workbench.interop.transformer_lens import from_cache, record, to_cache

pytestmark = pytest.mark.filterwarnings("ignore:.*:DeprecationWarning", "ignore:.*:UserWarning")
NOT_EXPOSED = {"hook_result", "hook_expert_out"}  # hook_result needs set_use_attn_result; expert_out never is


@pytest.fixture(scope="module")
def booted():
    return bridge()


@pytest.fixture(scope="module")
def cached(booted):
    batch = torch.tensor([tokens(), tokens(seed=1)])
    with torch.no_grad():
        logits, cache = booted.run_with_cache(batch, use_cache=False)
    return batch, logits, cache


def test_a_bridge_gives_the_trace_of_workbenchs_runner(booted, measured):
    trace, reference = record(booted, tokens(), record=EVERYTHING), workbench_trace()
    assert {name.rpartition(".")[2] for name in set(reference.names()) - set(trace.names())} == NOT_EXPOSED
    differences = gaps(trace, reference)
    largest = max(differences.values())
    measured(f"TransformerLens against our runner, fp32: {len(differences)} arrays, largest gap {largest:.1e}")
    assert {name: gap for name, gap in differences.items() if gap > TOLERANCE} == {}
    assert trace.verified and "fails" not in statuses(trace.verification).values()
    assert trace.source("sink") == "derived" and trace.source("attn_scores") == "forward"
    model, reference_model = trace.manifest.model, reference.manifest.model
    assert model["weights_digest"] == reference_model["weights_digest"] and model["config"] == reference_model["config"]


def test_recording_leaves_the_bridge_unchanged(booted):
    ids = torch.tensor([tokens()])
    with torch.no_grad():
        before = booted(ids, use_cache=False)
        hooks = [len(m._forward_hooks) for m in booted.original_model.modules()]
        record(booted, tokens(), record="residuals")
        with pytest.raises(NotRecorded):
            record(booted, tokens(), record="experts")
        assert torch.equal(booted(ids, use_cache=False), before)
    assert [len(m._forward_hooks) for m in booted.original_model.modules()] == hooks


def test_head_results_are_recorded_once_the_bridge_computes_them():
    model = bridge()
    with pytest.raises(NotRecorded, match="set_use_attn_result"):
        record(model, tokens(), record="blocks.*.attn.hook_result")
    model.set_use_attn_result(True)
    differences = gaps(record(model, tokens(), record="blocks.*.attn.hook_result"), workbench_trace())
    assert differences["blocks.3.attn.hook_result"] < TOLERANCE


def test_one_row_of_a_cached_batch_gives_the_trace_of_that_text(cached):
    batch, logits, cache = cached
    trace = from_cache(cache, batch, row=0)
    assert max(gaps(trace, workbench_trace()).values()) < TOLERANCE and trace.verified
    assert statuses(trace.verification)["logits equal the unhooked run's"] == "not checked"
    other = from_cache(cache, batch, row=1, logits=logits)
    assert other.tokens == tokens(seed=1) and other.verified
    with pytest.raises(InteropError, match="row=0"):
        from_cache(cache, batch)


def test_a_dict_of_arrays_without_a_model_becomes_a_trace(cached):
    batch, logits, cache = cached
    trace = from_cache(dict(cache.items()), batch, row=0, logits=logits)
    assert trace.verified and max(gaps(trace, workbench_trace()).values()) < TOLERANCE
    with pytest.raises(InteropError, match="holds no logits"):
        from_cache({n: x for n, x in cache.items() if "unembed" not in n}, batch, row=0)


def test_a_round_trip_through_a_cache_changes_no_number(booted):
    reference = workbench_trace()
    cache = to_cache(reference, booted)
    assert cache["resid_post", 2].shape == (1, len(reference), 96)
    assert cache["blocks.1.mlp.router.hook_out"].shape == (len(reference), 8)  # TransformerLens's shape
    assert cache.accumulated_resid(layer=3).shape[1:] == (1, len(reference), 96)
    restored = from_cache(cache, [reference.tokens])
    differences = gaps(restored, reference)
    assert differences.pop("logprob") < 1e-6 and "blocks.3.mlp.hook_expert_out" in differences
    points = {name: gap for name, gap in differences.items() if "hook" in name}
    assert set(points.values()) == {0.0} and len(points) == 21 * 4 + 3


def test_a_bridge_with_folded_value_biases_is_refused_with_the_way_to_avoid_it():
    model = bridge()
    model.enable_compatibility_mode()
    with pytest.raises(InteropError, match=r"folded.*fold_value_biases=False"):
        record(model, tokens())
    with torch.no_grad():
        _, cache = model.run_with_cache(torch.tensor([tokens()]), use_cache=False)
    with pytest.raises(InteropError, match="sum to 1 - sink"):
        from_cache(cache, [tokens()])


def test_compatibility_mode_without_folded_value_biases_is_recorded():
    model = bridge()
    model.enable_compatibility_mode(fold_value_biases=False)
    trace = record(model, tokens(30), record="everything")
    assert trace.verified and ("ln1_normalized", 0) not in trace
    differences = gaps(trace, record(bridge(), tokens(30), record="everything"))
    assert max(differences[f"blocks.{layer}.attn.hook_pattern"] for layer in range(3)) < 1e-4
    plain = bridge()
    plain.enable_compatibility_mode(no_processing=True)
    assert max(gaps(record(plain, tokens(), record="everything"), workbench_trace()).values()) < TOLERANCE


def test_renormalized_pattern_rows_are_refused(cached, booted):
    batch, _, cache = cached
    activations = dict(cache.items())
    name = "blocks.1.attn.hook_pattern"
    activations[name] = activations[name] / activations[name].sum(-1, keepdim=True)
    with pytest.raises(InteropError, match=r"blocks.1.attn.hook_pattern and the model's sinks sum to"):
        from_cache(activations, batch, row=0, model=booted)
    without_scores = {n: x for n, x in activations.items() if not n.endswith("scores")}
    with pytest.raises(InteropError, match="not this model's patterns"):
        from_cache(without_scores, batch, row=0, model=booted)


def test_a_slice_of_positions_or_other_tokens_are_refused(booted):
    ids = torch.tensor([tokens()])
    with torch.no_grad():
        _, cache = booted.run_with_cache(ids, use_cache=False, pos_slice=-1)
    with pytest.raises(InteropError, match="without pos_slice"):
        from_cache(cache, ids)


def test_something_else_than_a_bridge_is_refused():
    with pytest.raises(InteropError, match="is not a TransformerBridge"):
        record(torch.nn.Linear(2, 2), tokens())
