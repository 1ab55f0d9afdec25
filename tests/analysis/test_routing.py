"""Routing: exact with hand-set routers, equivariant under renumbering of experts, calibrated for few positions."""

from dataclasses import replace

import numpy as np
import pytest

import workbench as wb
from tests.constructed import CLASSES, V, constructed
from tests.model.models import some_tokens, tiny
from tests.traces import made
from workbench.analysis.routing import (
    expert_coactivation,
    expert_load,
    expert_specialization,
    expert_transitions,
    fixed_token_routing,
    positions,
    router_entropy,
    router_margin,
    routing_drift,
)
from workbench.errors import NotRecorded
from workbench.traces.spans import Span

FIGURES = {  # each, and its axes of experts
    "load": lambda t: (expert_load(t), ("expert",)),
    "weight": lambda t: (expert_load(t, weighted=True), ("expert",)),
    "expert_coactivation": lambda t: (expert_coactivation(t), ("expert", "other_expert")),
    "expert_transitions": lambda t: (expert_transitions(t), ("expert", "next_expert")),
    "lift": lambda t: (expert_transitions(t, lift=True), ("expert", "next_expert")),
    "router entropy": lambda t: (router_entropy(t), ()),
    "chosen entropy": lambda t: (router_entropy(t, "chosen"), ()),
    "margin": lambda t: (router_margin(t), ()),
    "drift": lambda t: (routing_drift(t, [slice(0, 30), slice(30, 60)], n_shuffles=5)["raw"], ()),
    "fixed token": lambda t: (fixed_token_routing(t, t.tokens[0]), ()),
    "expert_specialization": lambda t: (
        expert_specialization(t, [n % 3 for n in t.tokens], n_shuffles=5)["information"],
        (),
    ),
}


def routed(active: np.ndarray, n_experts: int, *, tokens=None) -> wb.Trace:
    """A trace with routes only: `active` (layer pos choice), with equal weights."""
    n_layers, n, k = active.shape
    config = made.CONFIG | {"n_layers": n_layers, "n_experts": n_experts, "n_active": k}
    config |= {"layer_types": ["full_attention"] * n_layers, "d_vocab": 1000}
    arrays = {}
    for layer in range(n_layers):
        weights = np.zeros((n, n_experts), "f4")
        np.put_along_axis(weights, active[layer], np.float32(1 / k), -1)
        arrays[f"blocks.{layer}.mlp.hook_expert_indices"] = active[layer]
        arrays[f"blocks.{layer}.mlp.hook_expert_weights"] = weights
        arrays[f"blocks.{layer}.mlp.router.hook_out"] = np.log(weights + 1e-9)
    fields = made.tokens([1] * n if tokens is None else list(tokens))
    manifest = made.manifest(n, model=made.manifest().model | {"config": config}, **fields)
    return wb.Trace(manifest, arrays)


def even(n_layers: int, n: int, k: int, n_experts: int, seed: int = 0) -> np.ndarray:
    """Random routes."""
    rng = np.random.default_rng(seed)
    return rng.permuted(np.tile(np.arange(n_experts), (n_layers, n, 1)), axis=-1)[..., :k]


@pytest.fixture(scope="module")
def trace():
    return tiny().trace(some_tokens(60), record="")


@pytest.fixture(scope="module")
def known():
    return constructed().trace(list(range(V)) * 3, record="")


def test_a_router_that_reads_classes_has_full_information_about_them(known):
    dataset = expert_specialization(known, [n % CLASSES for n in known.tokens], n_shuffles=30)
    bias = 30 * 0.01
    assert np.all(np.abs(dataset["information"] - np.log2(CLASSES)) < bias)  # the mean of the null is subtracted
    assert (dataset["p"] == 1 / 31).all() and (dataset["null"] < 0.2).all()
    unrelated = expert_specialization(known, [n // CLASSES % 2 for n in known.tokens], n_shuffles=200)
    assert (abs(unrelated["information"]) < 0.05).all() and (unrelated["p"] > 0.02).all()


def test_conditioning_on_the_token_removes_all_information_of_the_token(known):
    labels = [n % CLASSES for n in known.tokens]
    assert (expert_specialization(known, labels, condition_on_token=True, n_shuffles=5)["information"] == 0).all()


def test_loads_match_the_token_classes(known):
    load = expert_load(known)
    assert np.allclose(load, 2 / (2 * CLASSES)) and load.attrs["n"] == 3 * V
    class_0 = expert_load(known, np.flatnonzero(np.array(known.tokens) % CLASSES == 0))
    assert np.allclose(class_0.sel(expert=[0, 1]), 1) and np.allclose(class_0.sel(expert=slice(2, None)), 0)
    assert np.allclose(class_0.attrs["entropy"], np.log(2) + 1 / (2 * 2 * 3 * V / CLASSES))
    lift = expert_coactivation(known)
    assert np.allclose(lift.sel(expert=0, other_expert=1), 2) and np.isneginf(lift.sel(expert=0, other_expert=2)).all()
    transitions = expert_transitions(known)
    assert np.allclose(transitions.sel(expert=3, next_expert=[2, 3]), 1) and np.allclose(
        transitions.sel(expert=3, next_expert=4), 0
    )


def test_rows_sum_to_the_number_of_active_experts_per_token(trace):
    k = trace.config["n_active"]
    assert np.allclose(expert_load(trace).sum("expert"), k)
    assert np.allclose(expert_load(trace, weighted=True).sum("expert"), 1, atol=1e-6)
    transitions = expert_transitions(trace).sum("next_expert")
    active = expert_load(trace).values[:-1] > 0
    assert np.allclose(transitions.values[active], k)


def test_entropies_have_their_bounds_and_known_values(trace):
    c = trace.config
    assert float(router_entropy(trace).min()) >= 0 and float(router_entropy(trace).max()) <= np.log(c["n_experts"])
    assert float(router_entropy(trace, "chosen").max()) <= np.log(c["n_active"]) + 1e-6
    flat = routed(even(1, 5, 3, 8), 8)
    assert np.allclose(router_entropy(flat, "chosen"), np.log(3))
    assert np.allclose(router_entropy(flat), np.log(3), atol=1e-6)
    with pytest.raises(ValueError, match="'router' or 'chosen', got 'load'"):
        router_entropy(trace, "load")


def test_corrected_load_entropy_of_even_routes_is_the_maximum():
    load = expert_load(routed(even(40, 25, 4, 32), 32))
    assert abs(np.mean(load.attrs["entropy"]) - load.attrs["max_entropy"]) < 0.02
    few = expert_load(routed(np.zeros((1, 9, 1), int), 32))
    assert few.attrs["entropy"] == [0]


def test_lift_of_random_routes_is_the_stated_chance_level():
    trace = routed(even(2, 60_000, 4, 16), 16)
    lift = expert_coactivation(trace)
    off = ~np.eye(16, dtype=bool)
    assert abs(lift.values[:, off].mean() - lift.attrs["even"]) < 0.01
    assert np.allclose(np.diagonal(lift.values, axis1=1, axis2=2), -np.log2(expert_load(trace)))
    assert abs(float(expert_transitions(trace, lift=True).mean())) < 0.005


def test_drift_is_zero_for_equal_segments_and_one_bit_for_disjoint_experts():
    same = routing_drift(routed(even(30, 30, 4, 32), 32), [slice(0, 15), slice(15, 30)], n_shuffles=60)
    raw, drift = (float(same[name][:, 1, 0].mean()) for name in ("raw", "drift"))
    assert 0.15 < raw < 0.3 and abs(drift) < 0.02  # two halves of the same distribution
    p = same["p"].values[:, 1, 0]
    assert (p <= 0.05).mean() < 0.2
    active = np.concatenate([even(1, 20, 2, 4), 4 + even(1, 20, 2, 4)], 1)
    other = routing_drift(routed(active, 8), [slice(0, 20), slice(20, 40)], n_shuffles=60)
    assert float(other["raw"][0, 1, 0]) == pytest.approx(1) and float(other["p"][0, 0, 1]) == pytest.approx(1 / 61)
    with pytest.raises(NotRecorded, match="at least two steps"):
        routing_drift(routed(active, 8))


def test_fixed_token_similarity_is_the_jaccard_of_the_routes():
    active = np.array([[[0, 1], [0, 1], [2, 3], [0, 2]]])
    alike = fixed_token_routing(routed(active, 4, tokens=[5, 5, 5, 5]), 5)
    assert np.allclose(alike.values[0], [1, 1, 0, 1 / 3])
    with pytest.raises(NotRecorded, match="no token 7"):
        fixed_token_routing(routed(active, 4), 7)


@pytest.mark.parametrize("name", FIGURES)
def test_results_follow_a_renumbering_of_the_experts(trace, name):
    """With a permutation per layer, expert axes are permuted and everything else stays the same."""
    rng = np.random.default_rng(4)
    c = trace.config
    order = [rng.permutation(c["n_experts"]) for _ in range(c["n_layers"])]  # old number -> new number
    arrays = {n: np.asarray(trace.raw(n)) for n in trace.names()}
    for layer, to in enumerate(order):
        block = f"blocks.{layer}.mlp"
        arrays[f"{block}.hook_expert_indices"] = to[arrays[f"{block}.hook_expert_indices"]]
        for point in ("hook_expert_weights", "router.hook_out"):
            arrays[f"{block}.{point}"] = arrays[f"{block}.{point}"][:, np.argsort(to)]
    other = wb.Trace(replace(trace.manifest, tensors={}), arrays)
    (a, axes), (b, _) = FIGURES[name](trace), FIGURES[name](other)
    for layer in range(a.sizes.get("layer", 0)):
        x, y = a.isel(layer=layer).values, b.isel(layer=layer).values
        for axis, dim in enumerate(axes):
            y = np.take(y, order[layer + (dim == "next_expert")], axis)
        assert np.allclose(x, y, atol=1e-6, equal_nan=True)
    if "layer" not in a.dims:
        assert np.allclose(a, b, atol=1e-6)


def test_positions_are_selected_by_channel_role_slice_and_list():
    spans = [Span(0, 3, 1, 3, "user"), Span(3, 9, 5, 8, "assistant", "analysis")]
    trace = wb.Trace(made.manifest(spans=spans), {})
    assert positions(trace, "analysis").tolist() == [5, 6, 7] and positions(trace, "user").tolist() == [1, 2]
    assert positions(trace, slice(-2, None)).tolist() == [7, 8] and positions(trace, [4, 1]).tolist() == [4, 1]
    with pytest.raises(
        NotRecorded, match=r"'final' selects no position.*channels and roles: analysis, assistant, user"
    ):
        positions(trace, "final")


def test_labels_of_wrong_length_are_refused(trace):
    with pytest.raises(ValueError, match=r"labels must have one entry for each of the 60 positions .*, got 3"):
        expert_specialization(trace, [1, 2, 3])
    with pytest.raises(ValueError, match="labels must be one list for each of the 2 traces, got 1 lists"):
        expert_specialization([trace, trace], [[0] * 60])
    with pytest.raises(NotRecorded, match="no position has a label"):
        expert_specialization(trace, [None] * 60)


def test_two_traces_are_pooled(known):
    labels = [n % CLASSES for n in known.tokens]
    twice = expert_specialization([known, known], [labels, labels], n_shuffles=10)
    assert twice.attrs["n"] == 6 * V and twice.attrs["n_traces"] == 2 and twice.attrs["n_prompts"] == 1
    assert np.all(np.abs(twice["information"] - np.log2(CLASSES)) < 0.2)


# p-values over prompts.


def texts_of_prompts(n_prompts: int, rng: np.random.Generator, *, n: int = 40, effect=None) -> list[wb.Trace]:
    """Texts whose routes depend on the prompt: each prefers its own experts; `effect` changes the routes."""
    traces = []
    for number in range(n_prompts):
        preferred = rng.permutation(12)[:4]
        active = np.array([[rng.permutation(preferred)[:2] for _ in range(n)]])
        if effect is not None:
            active = effect(number, active)
        traces.append(routed(active, 12, tokens=[number, *rng.integers(20, 40, n - 1)]))
    return traces


def halves(active: np.ndarray, then: np.ndarray) -> np.ndarray:
    """The first half from the text's own routes, the second half from `then`."""
    return np.where(np.arange(40)[None, :, None] < 20, active, then)


def false_alarms(p_of, n: int = 100) -> float:
    return float(np.mean([p_of(np.random.default_rng(seed)) <= 0.05 for seed in range(n)]))


def test_p_of_a_meaningless_prompt_label_is_calibrated(measured):
    def p_of(rng, cluster=True):
        texts = texts_of_prompts(10, rng)
        labels = [[bool(label)] * 40 for label in rng.permutation(10) % 2]
        if not cluster:  # treats all tokens as one prompt
            texts = [routed(np.concatenate([t["expert_indices", 0] for t in texts])[None], 12)]
            labels = [[label for named in labels for label in named]]
        return float(expert_specialization(texts, labels, n_shuffles=39)["p"][0])

    by_prompt, by_token = false_alarms(p_of), false_alarms(lambda rng: p_of(rng, cluster=False), 20)
    measured(f"a meaningless label of the prompt: p <= 0.05 in {by_prompt:.0%}, by token {by_token:.0%}")
    assert by_prompt <= 0.11 and by_token > 0.9


def test_p_of_meaningless_block_labels_is_calibrated(measured):
    def p_of(rng):
        texts = texts_of_prompts(8, rng, effect=lambda _, active: halves(active, 11 - active))
        labels = [np.roll(np.arange(40) < 20, rng.integers(40)).tolist() for _ in texts]
        return float(expert_specialization(texts, labels, n_shuffles=39)["p"][0])

    alarms = false_alarms(p_of)
    measured(f"meaningless labels in blocks: p <= 0.05 in {alarms:.0%}")
    assert alarms <= 0.11


@pytest.mark.parametrize("condition_on_token", [False, True])
@pytest.mark.parametrize("of", ["the prompt", "the position"])
def test_an_effect_in_all_prompts_is_significant(of, condition_on_token):
    rng = np.random.default_rng(5)
    labels = [np.full(40, k % 2) if of == "the prompt" else rng.integers(0, 2, 40) for k in range(16)]
    chosen = [routed(np.stack([4 * label, 4 * label + 1 + rng.integers(0, 3, 40)], -1)[None], 12,
                     tokens=[k, *rng.integers(20, 24, 39)]) for k, label in enumerate(labels)]  # fmt: skip
    dataset = expert_specialization(
        chosen, [label.tolist() for label in labels], condition_on_token=condition_on_token, n_shuffles=99
    )
    assert float(dataset["p"][0]) == 0.01 and float(dataset["information"][0]) > 0.8
    assert float(dataset["null"][0]) < float(dataset["information"][0])
    assert dataset.attrs["shuffled"] == "prompts" and dataset.attrs["n_prompts"] == 16


def test_runs_with_the_same_question_are_one_prompt(known):
    labels = [n % CLASSES for n in known.tokens]
    dataset = expert_specialization([known, known], [labels, labels], n_shuffles=10)
    assert dataset.attrs["n_prompts"] == 1 and dataset.attrs["shuffled"] == "positions"
    both = routing_drift([known, known], [[slice(0, 30), slice(30, 60)]] * 2, n_shuffles=10)
    assert both.attrs["shuffled"] == "positions"


def test_p_of_drift_over_prompts_is_calibrated(measured):
    parts = [slice(0, 20), slice(20, 40)]

    def p_of(rng):  # each prompt switches to other experts halfway
        texts = texts_of_prompts(8, rng, effect=lambda _, active: halves(active, rng.permutation(12)[active]))
        return float(routing_drift(texts, [parts] * 8, n_shuffles=39)["p"][0, 1, 0])

    alarms = false_alarms(p_of)
    measured(f"drift that differs in each prompt: p <= 0.05 in {alarms:.0%}")
    assert alarms <= 0.11
    rng = np.random.default_rng(1)
    alike = texts_of_prompts(8, rng, effect=lambda _, active: halves(active % 6, 6 + active % 6))
    dataset = routing_drift(alike, [parts] * 8, n_shuffles=400)
    assert float(dataset["p"][0, 1, 0]) < 0.03 and float(dataset["drift"][0, 0, 1]) > 0.3
    assert dataset.attrs["n_prompts"] == 8 and dataset["raw"].dims == ("layer", "step", "key_step")
    one = routing_drift(alike[0], parts, n_shuffles=20)
    assert one.attrs["shuffled"] == "positions"


def test_mismatched_traces_and_segments_are_refused(trace):
    with pytest.raises(ValueError, match="segments must be one list for each of the 2 traces, got 1 lists"):
        routing_drift([trace, trace], [[slice(0, 5), slice(5, 9)]])
    with pytest.raises(ValueError, match="the same number of segments, got 2, 3"):
        routing_drift([trace, trace], [[slice(0, 5), slice(5, 9)], [slice(0, 5), slice(5, 9), slice(9, 12)]])
    with pytest.raises(ValueError, match="traces must have at least 1 entry, got 0"):
        routing_drift([])
