"""What must hold in every gpt-oss, by number: in fp64 where it is an identity, and where each of them is tested.

`WHERE` names the test of each; those that no package's own tests hold are here.
"""

import ast
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.checkpoints import Random
from workbench.edits.edit import Edit
from workbench.model.checkpoints.tensors import Checkpoint
from workbench.model.config import Config
from workbench.model.gpt_oss import forward, forward_from
from workbench.recording.taps import Recorder

HERE = Path(__file__).parent
WHERE = [
    line.split()
    for line in """
    1    recording/test_record.py test_the_lens_of_the_last_layer_is_the_prediction_and_lower_ones_differ
    2    test_invariants.py test_embedding_and_writes_make_the_residual
    3    test_invariants.py test_heads_and_bias_make_attn_out
    4    test_invariants.py test_a_sink_scales_the_output_of_a_head_without_sink
    5    test_invariants.py test_the_value_bias_is_scaled_by_the_sink_too
    6    test_invariants.py test_a_sliding_window_masks_exactly_the_keys_outside_it
    7    test_invariants.py test_weighted_experts_make_mlp_out
    8    test_invariants.py test_expert_weights_are_the_renormalized_full_softmax
    9    test_invariants.py test_a_constant_on_the_routers_logits_changes_nothing
    10   experiments/test_logit_attribution.py test_the_parts_sum_to_the_logit
    11   recording/test_taps.py test_masking_every_key_leaves_the_output_bias_exactly
    12   recording/test_taps.py test_patching_all_positions_at_a_layer_gives_the_source_run
    13   recording/test_taps.py test_an_edit_has_an_effect_and_earlier_positions_keep_every_bit
    14   experiments/test_activation_patching.py test_suppression_equals_a_full_run_with_masked_keys
    15   model/test_parity.py test_decoding_with_a_cache_equals_one_pass
    16   experiments/test_activation_patching.py test_three_parts_sum_to_the_effect_and_frozen_routing_keeps_routes
    17   experiments/test_activation_patching.py test_rerouting_is_zero_where_no_route_changes
    18   test_invariants.py test_a_small_change_follows_the_gradient_and_a_large_one_does_not
    19   test_invariants.py test_dropping_an_expert_changes_only_tokens_that_choose_it
    20   test_invariants.py test_permuting_experts_changes_nothing
    20   analysis/test_routing.py test_results_follow_a_renumbering_of_the_experts
    21   test_invariants.py test_permuting_heads_that_share_keys_changes_nothing
    21b  test_invariants.py test_a_large_sink_leaves_only_the_bias
    21c  test_invariants.py test_windows_bound_the_reach_of_a_token
    21d  recording/test_taps.py test_a_banned_expert_is_never_chosen_and_a_forced_one_always
    22   analysis/test_routing.py test_rows_sum_to_the_number_of_active_experts_per_token
    23   test_invariants.py test_load_entropy_plus_kl_from_uniform_is_ln_n_experts
    24   analysis/test_heads.py test_kurtosis_of_a_single_attended_step_matches_the_formula
    25   experiments/test_resampling.py test_known_accuracies_are_covered_and_importances_sum
    26   test_invariants.py test_an_adapter_at_scale_0_changes_no_bit_and_at_1_adds_its_product
    27   interop/test_sae.py test_splicing_with_the_error_term_changes_no_bit_of_the_run
    28   recording/test_record.py test_a_saved_trace_holds_the_same_bits
    29   test_invariants.py test_fp32_chooses_the_experts_of_fp64
    """.strip().splitlines()
]  # number, file, test
LAST = "blocks.3.hook_resid_post"


@pytest.mark.parametrize(("number", "file", "test"), WHERE)
def test_every_invariant_has_its_test(number, file, test):
    tree = ast.parse((HERE / file).read_text("utf-8"))
    assert test in {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}


def tokens(n: int = 60, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 170, (1, n), generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def checkpoint() -> Checkpoint:
    return Random(seed=5).checkpoint(torch.float64)


@pytest.fixture(scope="module")
def seen(checkpoint) -> Recorder:
    from workbench import hooks

    recorder = Recorder(hooks.all_points(checkpoint.config.n_layers))
    run(checkpoint, recorder)
    return recorder


@torch.no_grad()
def run(checkpoint: Checkpoint, tap=None, ids: torch.Tensor | None = None) -> torch.Tensor:
    return forward(checkpoint.config, checkpoint.weights, tokens() if ids is None else ids, tap)


def close(a: torch.Tensor, b: torch.Tensor, tolerance: float) -> bool:
    return float((a - b).abs().max() / b.abs().max()) <= tolerance


def with_blocks(checkpoint: Checkpoint, change) -> Checkpoint:
    """The same model with every block replaced by `change(layer, block)`."""
    blocks = tuple(change(layer, block) for layer, block in enumerate(checkpoint.weights.blocks))
    return replace(checkpoint, weights=replace(checkpoint.weights, blocks=blocks))


def test_embedding_and_writes_make_the_residual(checkpoint, seen):
    total = seen["hook_embed"].clone()
    for layer in range(4):
        total += seen[f"blocks.{layer}.hook_attn_out"] + seen[f"blocks.{layer}.hook_mlp_out"]
    assert close(total, seen[LAST], 1e-13)


def test_heads_and_bias_make_attn_out(checkpoint, seen):
    for layer, block in enumerate(checkpoint.weights.blocks):
        made = seen[f"blocks.{layer}.attn.hook_result"].sum(2) + block.b_o
        assert close(made, seen[f"blocks.{layer}.hook_attn_out"], 1e-13)


def test_a_sink_scales_the_output_of_a_head_without_sink(seen):
    for layer in range(4):
        pattern, sink, scores = (seen[f"blocks.{layer}.attn.hook_{x}"] for x in ("pattern", "sink", "attn_scores"))
        assert close(pattern.sum(-1) + sink, torch.ones_like(sink), 1e-14)
        assert close((1 - sink)[..., None] * scores.softmax(-1), pattern, 1e-13)


def test_the_value_bias_is_scaled_by_the_sink_too(checkpoint, seen):
    c = checkpoint.config
    for layer, block in enumerate(checkpoint.weights.blocks):
        here = f"blocks.{layer}.attn.hook_"
        bias = block.b_v.view(c.n_kv_heads, c.d_head).repeat_interleave(c.n_heads // c.n_kv_heads, 0)
        v = seen[here + "v"].repeat_interleave(c.n_heads // c.n_kv_heads, 2)
        plain = torch.einsum("bhqk,bkhd->bqhd", seen[here + "pattern"], v - bias)
        gate = (1 - seen[here + "sink"]).transpose(1, 2)[..., None]
        assert close(plain + gate * bias, seen[here + "z"], 1e-13)


def test_a_sliding_window_masks_exactly_the_keys_outside_it(checkpoint, seen):
    w = checkpoint.config.window
    for layer in (0, 2):
        pattern = seen[f"blocks.{layer}.attn.hook_pattern"][0]
        assert float(torch.tril(pattern, -w).abs().max()) == 0
        assert (torch.diagonal(pattern, -(w - 1), 1, 2) > 0).all()
    full = seen["blocks.1.attn.hook_pattern"][0]
    assert float(torch.tril(full, -w).max()) > 0


def test_weighted_experts_make_mlp_out(seen):
    for layer in range(4):
        here = f"blocks.{layer}.mlp.hook_expert_"
        share = seen[here + "weights"].gather(-1, seen[here + "indices"])
        made = (share[..., None] * seen[here + "out"]).sum(2)
        assert close(made, seen[f"blocks.{layer}.hook_mlp_out"], 1e-13)


def test_expert_weights_are_the_renormalized_full_softmax(checkpoint, seen):
    for layer in range(4):
        full = seen[f"blocks.{layer}.mlp.router.hook_out"].softmax(-1)
        chosen = seen[f"blocks.{layer}.mlp.hook_expert_indices"]
        chosen_weights = full.gather(-1, chosen)
        weights = seen[f"blocks.{layer}.mlp.hook_expert_weights"].gather(-1, chosen)
        assert close(chosen_weights / chosen_weights.sum(-1, keepdim=True), weights, 1e-14)
        assert not close(chosen_weights, weights, 0.01)  # without renormalization they differ


def edit(checkpoint: Checkpoint, point: str, fn) -> Edit:
    return Edit(point, fn, [point], checkpoint.config)


def test_a_constant_on_the_routers_logits_changes_nothing(checkpoint):
    plain = run(checkpoint)
    moved = run(checkpoint, edit(checkpoint, "blocks.1.mlp.router.hook_out", lambda x: x + 7.5))
    assert close(moved, plain, 1e-12)


def test_a_small_change_follows_the_gradient_and_a_large_one_does_not(checkpoint):
    c, w = checkpoint.config, checkpoint.weights
    start = Recorder(["blocks.1.hook_resid_pre"])
    run(checkpoint, start)
    x = start["blocks.1.hook_resid_pre"].clone().requires_grad_()
    routes = Recorder([f"blocks.{layer}.mlp.hook_expert_indices" for layer in (1, 2, 3)])

    def outcome(x: torch.Tensor, tap=None) -> torch.Tensor:
        return forward_from(c, w, x, 1, tap)[0, -1, 7]

    base = outcome(x, routes)
    base.backward()
    assert x.grad is not None
    direction = torch.randn(x.shape, dtype=x.dtype, generator=torch.Generator().manual_seed(1))
    slope = float((x.grad * direction).sum())
    with torch.no_grad():
        errors = [abs(float(outcome(x + e * direction) - base) / (e * slope) - 1) for e in (1e-6, 1e-4)]
        perturbed = Recorder(routes.points)
        outcome(x + 2.0 * direction, perturbed)
    assert errors[0] < 1e-4 and errors[0] < errors[1] + 1e-9
    # a large step changes the chosen experts
    assert any((perturbed[name] != routes[name]).any() for name in routes.points)


def test_dropping_an_expert_changes_only_tokens_that_choose_it(checkpoint, seen):
    layer, expert = 2, 3
    chooses = (seen[f"blocks.{layer}.mlp.hook_expert_indices"] == expert).any(-1)[0]
    assert chooses.any() and not chooses.all()

    def drop(x):
        x[..., expert] = 0
        return x

    out = Recorder([f"blocks.{layer}.hook_mlp_out"])
    from workbench.taps import Chain

    run(checkpoint, Chain(edit(checkpoint, f"blocks.{layer}.mlp.hook_expert_weights", drop), out))
    change = (out[f"blocks.{layer}.hook_mlp_out"] - seen[f"blocks.{layer}.hook_mlp_out"])[0].abs().amax(-1)
    assert float(change[~chooses].max()) == 0 and float(change[chooses].min()) > 0


def test_permuting_experts_changes_nothing(checkpoint):
    def change(layer, block):
        order = torch.randperm(checkpoint.config.n_experts, generator=torch.Generator().manual_seed(layer))
        e = block.experts
        experts = replace(e, up=e.up[order], up_bias=e.up_bias[order], down=e.down[order], down_bias=e.down_bias[order])
        return replace(block, w_router=block.w_router[order], b_router=block.b_router[order], experts=experts)

    assert close(run(with_blocks(checkpoint, change)), run(checkpoint), 1e-13)


def test_permuting_heads_that_share_keys_changes_nothing(checkpoint):
    c = checkpoint.config
    group = c.n_heads // c.n_kv_heads

    def change(layer, block):
        rng = torch.Generator().manual_seed(layer)
        order = torch.cat([kv * group + torch.randperm(group, generator=rng) for kv in range(c.n_kv_heads)])
        rows = (order[:, None] * c.d_head + torch.arange(c.d_head)).flatten()
        heads = {"w_q": block.w_q[rows], "b_q": block.b_q[rows], "w_o": block.w_o[:, rows]}
        return replace(block, sinks=block.sinks[order], **heads)

    assert close(run(with_blocks(checkpoint, change)), run(checkpoint), 1e-12)


def test_a_large_sink_leaves_only_the_bias(checkpoint):
    sunk = with_blocks(checkpoint, lambda _, block: replace(block, sinks=torch.full_like(block.sinks, 2000.0)))
    out = Recorder([f"blocks.{layer}.hook_attn_out" for layer in range(4)])
    run(sunk, out)
    for layer, block in enumerate(sunk.weights.blocks):
        assert torch.equal(out[f"blocks.{layer}.hook_attn_out"], block.b_o.expand(1, 60, -1))


def test_windows_bound_the_reach_of_a_token(checkpoint):
    """With a window in every layer, a token affects positions up to L (w - 1) later, and none beyond."""
    window, n_layers, at = 4, 4, 7
    config: Config = replace(checkpoint.config, window=window, layer_types=("sliding_attention",) * n_layers)
    near = replace(checkpoint, config=config)
    a, b = tokens(), tokens()
    b[0, at] = (b[0, at] + 1) % 170
    differs = (run(near, None, a) != run(near, None, b)).any(-1)[0].nonzero()[:, 0]
    assert differs.min() == at and differs.max() == at + n_layers * (window - 1)


def test_load_entropy_plus_kl_from_uniform_is_ln_n_experts(seen):
    for layer in range(4):
        counts = torch.bincount(seen[f"blocks.{layer}.mlp.hook_expert_indices"].flatten(), minlength=8).double().numpy()
        p = counts / counts.sum()
        from workbench.analysis.statistics import entropy

        distance = np.sum(p[p > 0] * np.log(p[p > 0] * 8))
        assert float(entropy(counts, correct=False)) + distance == pytest.approx(np.log(8), abs=1e-12)


def test_an_adapter_at_scale_0_changes_no_bit_and_at_1_adds_its_product(checkpoint):
    from workbench.model.checkpoints.adapter import IN_BLOCK, IN_EXPERTS, Adapter, Factors
    from workbench.model.checkpoints.validate import block_shapes

    def factors(name: str) -> Factors:
        *experts, n_out, n_in = block_shapes(checkpoint.config)[name]
        rng = torch.Generator().manual_seed(len(name) * n_out)
        a, b = (torch.randn(*experts, *shape, generator=rng).double() for shape in ((2, n_in), (n_out, 2)))
        return Factors(a, b, 0.01)

    low_rank = {(layer, name): factors(name) for layer in range(4) for name in (*IN_BLOCK, *IN_EXPERTS)}

    def under(scale: float) -> torch.Tensor:
        return run(replace(checkpoint, weights=Adapter("made", "", low_rank).on(checkpoint.weights, scale)))

    def summed(part, layer: int, names) -> dict[str, torch.Tensor]:
        return {name: getattr(part, name) + 0.01 * low_rank[layer, name].b @ low_rank[layer, name].a for name in names}

    def change(layer, block):
        experts = replace(block.experts, **summed(block.experts, layer, IN_EXPERTS))
        return replace(block, experts=experts, **summed(block, layer, IN_BLOCK))

    assert torch.equal(under(0.0), run(checkpoint))
    assert close(under(1.0), run(with_blocks(checkpoint, change)), 1e-12)
    assert not close(under(1.0), run(checkpoint), 0.01)


def test_fp32_chooses_the_experts_of_fp64(seen):
    single = Recorder([f"blocks.{layer}.mlp.hook_expert_indices" for layer in range(4)])
    run(Random(seed=5).checkpoint(torch.float32), single)
    for name in single.points:
        assert torch.equal(single[name].sort(-1).values, seen[name].sort(-1).values)
