"""Circuits: exact on a hand-set model, equal to dense matrices on random models, and to what a run shows."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

import workbench as wb
from tests.constructed import CLASSES, WINDOW, V, constructed
from tests.model import textbook
from tests.model.models import some_tokens, tiny
from tests.model.pretend import simulated_cuda
from workbench.circuits import vocabulary
from workbench.circuits.experts import expert_logit_effects, router_tokens
from workbench.circuits.heads import ov_circuit, qk_circuit, qk_distance, sink_logits
from workbench.errors import PromptError, SelectionError
from workbench.model.kernels.experts import swiglu
from workbench.model.kernels.packed import Packed

C = tiny().config
PLACES = [(0, 0), (0, 9), (1, 3), (2, 7)]  # (layer, head); ten heads, five share keys and values


def n(tensor: object) -> np.ndarray:
    assert isinstance(tensor, torch.Tensor)
    return tensor.detach().double().numpy()


def dense_ov(model: wb.Model, layer: int, head: int) -> np.ndarray:
    """The full OV matrix (source target) as a plain matrix product."""
    c, w = model.config, model.weights
    block, kv = w.blocks[layer], head // (c.n_heads // c.n_kv_heads)
    values = textbook.norm(n(w.embed), n(block.ln1), c.eps) @ n(block.w_v)[kv * c.d_head : (kv + 1) * c.d_head].T
    out = n(block.w_o)[:, head * c.d_head : (head + 1) * c.d_head]
    logits = values @ out.T * n(w.ln_final) @ n(w.unembed).T
    return logits - logits.mean(1, keepdims=True)


def dense_qk(model: wb.Model, layer: int, head: int, distance: int) -> np.ndarray:
    """All scores (query key), one rotation at a time."""
    c, w = model.config, model.weights
    block, kv = w.blocks[layer], head // (c.n_heads // c.n_kv_heads)
    x = textbook.norm(n(w.embed), n(block.ln1), c.eps)
    q_rows, kv_rows = (slice(h * c.d_head, (h + 1) * c.d_head) for h in (head, kv))
    q, k = x @ n(block.w_q)[q_rows].T + n(block.b_q)[q_rows], x @ n(block.w_k)[kv_rows].T + n(block.b_k)[kv_rows]
    freq, scale = textbook.frequencies(c)
    position = 20  # any position: only the distance matters
    q = np.stack([textbook.rotate(row, position, freq, scale) for row in q])
    k = np.stack([textbook.rotate(row, position - distance, freq, scale) for row in k])
    return q @ k.T / np.sqrt(c.d_head)


def spread(circuit, rows: str, columns: str) -> np.ndarray:
    """The matrix from a list of all its pairs."""
    size = round(np.sqrt(circuit.sizes["pair"]))
    matrix = np.full((size, size), np.nan)
    matrix[circuit[rows], circuit[columns]] = circuit["logit"]
    return matrix


# -- heads


@pytest.mark.parametrize(("layer", "head"), PLACES)
def test_ov_circuit_and_its_eigenvalues_equal_the_dense_matrix(layer, head):
    circuit, expected = ov_circuit(tiny(), layer, head, k=C.d_vocab**2), dense_ov(tiny(), layer, head)
    assert np.allclose(spread(circuit, "source", "target"), expected, atol=1e-5 * np.abs(expected).max())
    assert (np.diff(circuit["logit"]) <= 0).all()
    eigenvalues = np.linalg.eigvals(expected)
    assert circuit.attrs["copying"] == pytest.approx(eigenvalues.real.sum() / np.abs(eigenvalues).sum(), abs=1e-4)
    assert circuit.attrs["raised"] == (np.diag(expected) > 0).mean()
    first = ov_circuit(tiny(), layer, head, k=7)
    assert np.array_equal(first["source"], circuit["source"][:7]) and np.array_equal(
        first["target"], circuit["target"][:7]
    )


def test_ov_circuit_equals_the_head_output_in_a_run():
    """A single token attends to itself with 1 - sink, so the output is that share of values and bias."""
    model, head = tiny(), 6
    circuit, token = ov_circuit(model, 0, head, k=C.d_vocab**2), 23
    trace = model.trace([token], record="result pattern")
    output = n(torch.tensor(trace["result", 0][0, head])) * n(model.weights.ln_final) @ n(model.weights.unembed).T
    output = (output - output.mean()) / float(trace["pattern", 0][head, 0, 0])
    always = np.empty(C.d_vocab)
    all_targets = ov_circuit(model, 0, head, k=C.d_vocab)
    always[all_targets["always"]] = all_targets["always_logit"]
    row = spread(circuit, "source", "target")[token]
    assert np.allclose(row + always, output, atol=1e-5 * np.abs(output).max())
    assert float(np.abs(always).max()) > 0.01


@pytest.mark.parametrize(("layer", "head"), PLACES)
@pytest.mark.parametrize("distance", [0, 5])
def test_qk_circuit_equals_the_dense_matrix(layer, head, distance):
    circuit = qk_circuit(tiny(), layer, head, distance=distance, k=C.d_vocab**2)
    expected = dense_qk(tiny(), layer, head, distance)
    assert np.allclose(spread(circuit, "query", "key"), expected, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("distance", [0, 1, 11])
def test_qk_circuit_equals_the_attention_scores_in_a_run(distance):
    model, tokens = tiny(), some_tokens(30)
    scores = model.trace(tokens, record="attn_scores")["attn_scores", 0]
    for head in (0, 4, 9):
        matrix = spread(qk_circuit(model, 0, head, distance=distance, k=C.d_vocab**2), "query", "key")
        for at in (distance, 17, 29):
            assert matrix[tokens[at], tokens[at - distance]] == pytest.approx(scores[head, at, at - distance], abs=1e-4)
    assert qk_circuit(model, 0, 4).attrs["sink"] == float(model.weights.blocks[0].sinks[4])


def test_qk_distance_equals_the_mean_of_the_dense_matrices():
    circuit = qk_distance(tiny(), [0, 3, C.window - 1, C.window])
    for layer, head in PLACES:
        for distance in (0, 3):
            expected = dense_qk(tiny(), layer, head, distance).mean()
            assert float(circuit.sel(layer=layer, head=head, distance=distance)) == pytest.approx(expected, abs=1e-5)
    assert np.isnan(circuit.sel(distance=C.window)[[0, 2]]).all() and not np.isnan(circuit.sel(layer=[1, 3])).any()


def test_the_copying_head_has_copying_one_and_the_successor_head_does_not():
    induction, successor = ov_circuit(constructed(), 1, 0, k=V), ov_circuit(constructed(), 2, 0, k=V)
    assert sorted(induction["source"].values) == list(range(V))
    assert np.array_equal(induction["source"], induction["target"])
    normed = 1 / np.sqrt(1 / constructed().config.d_model + C.eps)  # the norm of a one-hot embedding
    assert np.allclose(induction["logit"], normed * 20 * (1 - 1 / V), rtol=1e-6)
    assert induction.attrs["copying"] == pytest.approx(1, abs=1e-5) and induction.attrs["raised"] == 1
    assert np.array_equal(successor["target"], (successor["source"] + 1) % V) and successor.attrs["raised"] == 0
    assert successor.attrs["copying"] == pytest.approx(-1 / (V - 1), abs=1e-4)  # all roots of unity except 1
    assert np.isnan(ov_circuit(constructed(), 1, 1).attrs["copying"])  # its output is zero


def test_only_the_previous_token_head_peaks_at_distance_one():
    circuit = qk_distance(constructed(), range(WINDOW))
    peak = circuit.argmax("distance")
    assert int(peak[0, 0]) == 1 and float(circuit[0, 0, 1] - circuit[0, 0].drop_sel(distance=1).max()) > 5
    assert float(abs(circuit[0, 1:]).max()) == 0  # the queries of the other heads are zero
    for head in (2, 3):
        assert float(circuit["sink"][0, head]) == -40 and float(circuit[0, head].max()) == 0


def test_the_pairs_of_a_same_token_head_are_equal_tokens():
    circuit = qk_circuit(constructed(), 2, 0, distance=0, k=V)
    assert np.array_equal(circuit["query"], circuit["key"]) and sorted(circuit["query"].values) == list(range(V))
    assert float(circuit["logit"].min()) > circuit.attrs["sink"] == 40  # above the sink


def test_sink_logits_are_the_set_values():
    circuit = sink_logits(constructed())
    assert circuit["logit"][0].values.tolist() == [40, 40, -40, -40]
    assert float(circuit["share"][0, 0]) > 1 - 1e-12 and float(circuit["share"][0, 2]) < 1e-12
    assert circuit["kind"].values.tolist() == ["sliding_attention", "full_attention", "sliding_attention"]
    one = sink_logits(tiny(), keys=1)
    assert np.allclose(one["share"], 1 / (1 + np.exp(-one["logit"])))
    assert np.allclose(sink_logits(tiny())["share"], 1 / (1 + C.window * np.exp(-one["logit"])))


# -- routers and experts


def test_router_tokens_recovers_the_class_indicators():
    circuit = router_tokens(constructed(), 1, k=V // CLASSES)
    for expert in range(2 * CLASSES):
        expert_tokens = circuit["token"].sel(expert=expert).values
        assert sorted(expert_tokens) == list(range(expert // 2, V, CLASSES))
    assert np.allclose(circuit["share"], 1 / CLASSES)
    row = np.zeros(constructed().config.d_model)
    row[3:V:CLASSES] = 1.1
    mean = np.zeros_like(row)
    mean[:V] = 2.1 / (2 * CLASSES)
    assert np.allclose(circuit["direction"][7], row - mean, atol=1e-6)


def test_router_tokens_equals_a_run_without_attention():
    model, ids = tiny(), list(range(C.d_vocab))
    with model.edit("blocks.0.hook_attn_out", lambda x: 0 * x):
        trace = model.trace(ids, record="")
    logits = trace["router_logits", 0]
    circuit = router_tokens(model, 0, k=C.d_vocab)
    for expert in range(C.n_experts):
        expected = logits[:, expert] - logits.mean(1)
        assert np.allclose(circuit["preference"][expert], expected[circuit["token"][expert]], atol=1e-5)
    assert np.allclose(circuit["share"], wb.routing.expert_load(trace).sel(layer=0), atol=1e-9)


def test_neurons_and_bias_sum_to_the_expert_output_in_a_run():
    model, tokens = tiny(), some_tokens(20)
    trace = model.trace(tokens, record="expert_out ln2_normalized")
    layer, pos = 1, 13
    expert = int(trace["expert_indices", layer][pos, 0])
    weights = model.weights
    experts = weights.blocks[layer].experts
    up = experts.up
    assert isinstance(up, torch.Tensor)
    normed = torch.tensor(trace["ln2_normalized", layer][pos])
    active = n(swiglu(up[expert] @ normed + experts.up_bias[expert], C.swiglu_alpha, C.swiglu_limit))
    circuit = expert_logit_effects(model, layer, expert, k=C.d_vocab)
    each, bias = np.empty((C.d_mlp, C.d_vocab)), np.empty(C.d_vocab)
    np.put_along_axis(each, circuit["raised"].values, circuit["raised_logit"].values, 1)
    bias[circuit["bias"]] = circuit["bias_logit"]
    output = n(torch.tensor(trace["expert_out", layer][pos, 0])) * n(weights.ln_final) @ n(weights.unembed).T
    assert np.allclose(active @ each + bias, output - output.mean(), atol=1e-5 * np.abs(output).max())
    assert np.array_equal(circuit["lowered"], circuit["raised"][:, ::-1])
    assert np.allclose(circuit["norm"], np.linalg.norm(n(experts.down[expert]), axis=0), rtol=1e-5)
    subset = expert_logit_effects(model, layer, expert, neurons=[5, 2], k=3)
    assert np.allclose(subset["raised_logit"], circuit["raised_logit"][[5, 2], :3], rtol=1e-5)


def test_results_follow_a_renumbering_of_the_experts():
    model, order = tiny(), torch.randperm(C.n_experts, generator=torch.Generator().manual_seed(1))
    block = model.weights.blocks[2]
    e = block.experts
    experts = replace(e, up=e.up[order], up_bias=e.up_bias[order], down=e.down[order], down_bias=e.down_bias[order])
    other = copy.copy(model)
    moved = replace(block, w_router=block.w_router[order], b_router=block.b_router[order], experts=experts)
    other.weights = replace(model.weights, blocks=(*model.weights.blocks[:2], moved, model.weights.blocks[3]))
    one, two = router_tokens(model, 2, k=4), router_tokens(other, 2, k=4)
    for name in ("token", "preference", "share", "direction"):
        assert np.allclose(one[name][order.numpy()], two[name], atol=1e-5), name
    place = int(order[3])
    a, b = expert_logit_effects(model, 2, place, k=4), expert_logit_effects(other, 2, 3, k=4)
    assert np.array_equal(a["raised"], b["raised"]) and np.allclose(a["bias_logit"], b["bias_logit"])


def test_packed_and_dequantized_experts_have_the_same_effects():
    packed, plain = wb.Model("pocket", memory="small"), wb.Model("pocket")
    assert isinstance(packed.weights.blocks[0].experts.down, Packed)
    one, two = (expert_logit_effects(model, 3, 17, k=5) for model in (packed, plain))
    assert np.allclose(one["raised_logit"], two["raised_logit"], rtol=1e-5)
    assert one["bias_text"].values.tolist() == two["bias_text"].values.tolist()
    assert plain.tokenizer is not None
    assert set(one["bias_text"].values) <= {plain.tokenizer.str_tokens([t])[0] for t in range(len(plain.tokenizer))}


# -- the vocabulary


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10**6), st.integers(1, 30), st.integers(1, 30), st.integers(1, 40), st.integers(1, 9))
def test_largest_pairs_equal_those_of_the_full_product(seed, rows, columns, k, side):
    g = torch.Generator().manual_seed(seed)
    left = (
        torch.randn(rows, 3, generator=g) * torch.rand(rows, 1, generator=g) ** 4
    )  # most rows are too short for a large entry
    right = torch.randn(columns, 3, generator=g) * torch.rand(columns, 1, generator=g) ** 4
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vocabulary, "TILE", (side, 10 - side))
        values, row, column = vocabulary.largest_pairs(left, right, k, "test")
    product = left @ right.T
    assert torch.allclose(values, product.flatten().sort(descending=True).values[:k], atol=1e-6)
    assert torch.allclose(product[row, column], values, atol=1e-6) and len(
        {*zip(row.tolist(), column.tolist())}
    ) == len(row)


def test_only_the_given_tokens_are_considered():
    circuit = ov_circuit(tiny(), 1, 2, k=50, tokens=[3, 5, 8, 5])
    assert circuit.sizes["pair"] == 9 and {*circuit["source"].values} == {*circuit["target"].values} == {3, 5, 8}
    part = dense_qk(tiny(), 1, 2, 1)[np.ix_([3, 5, 8], [3, 5, 8])]
    assert float(qk_circuit(tiny(), 1, 2, tokens=[3, 5, 8])["logit"][0]) == pytest.approx(part.max(), abs=1e-5)
    assert qk_circuit(tiny(), 1, 2, tokens=[3])["query_text"].values.tolist() == ["<3>"]


def test_embedding_rows_without_a_text_are_left_out():
    model = wb.Model("pocket")
    assert model.tokenizer is not None
    assert router_tokens(model, 0, k=1).attrs["n_tokens"] == len(model.tokenizer) < model.config.d_vocab


@pytest.mark.parametrize(
    "read",
    [
        lambda model: sink_logits(model),
        lambda model: ov_circuit(model, 1, 2),
        lambda model: qk_circuit(model, 1, 2),
        lambda model: qk_distance(model, [0, 1, 20]).to_dataset(name="logit"),
        lambda model: router_tokens(model, 1),
        lambda model: expert_logit_effects(model, 1, 2, neurons=[0, 5]),
    ],
)
def test_weights_on_another_device_give_the_same_results(read):
    cpu = read(wb.Model("pocket"))
    with simulated_cuda():
        cuda = read(wb.Model("pocket", device="cuda"))
    xr.testing.assert_allclose(cpu, cuda, rtol=1e-6)  # devices round differently; ids and texts are equal
    assert cpu.attrs.keys() == cuda.attrs.keys()


def test_invalid_layers_heads_and_tokens_are_refused():
    model = tiny()
    for call in (lambda: ov_circuit(model, 9, 0), lambda: router_tokens(model, -9)):
        with pytest.raises(SelectionError, match=r"layer must be between 0 and 3, got -?9\."):
            call()
    with pytest.raises(SelectionError, match="head must be between 0 and 9, got 10"):
        qk_circuit(model, 0, 10)
    with pytest.raises(SelectionError, match="neuron must be between 0 and 63, got 64"):
        expert_logit_effects(model, 0, 0, neurons=[64])
    with pytest.raises(ValueError, match="distance must be between 0 and 11 in layer 0, got 12"):
        qk_circuit(model, 0, 0, distance=12)
    with pytest.raises(ValueError, match="a distance must be at least 0, got -1"):
        qk_distance(model, [-1])
    with pytest.raises(ValueError, match="keys must be at least 1, got 0"):
        sink_logits(model, keys=0)
    with pytest.raises(PromptError, match="at least one id, each between 0 and 175"):
        ov_circuit(model, 0, 0, tokens=[176])
