"""Expert routing: which experts run, how evenly, together with which others, and what the choice depends on.

An expert's number means nothing outside its layer: expert 3 of one layer is unrelated to expert 3 of the next. No
function here compares numbers across layers, and renumbering a layer's experts permutes the results accordingly.

The axis `layer` holds the numbers of the layers whose routing the trace has: all layers in gpt-oss.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr

from workbench.analysis import statistics
from workbench.analysis.problem_groups import problem
from workbench.analysis.trace_lists import trace_list
from workbench.checks import (
    check_choice,
    check_count,
    check_flag,
    check_items,
    check_seed,
    check_slice,
    check_type,
    check_whole,
    resolve_layer,
    resolve_position,
)
from workbench.errors import ArgumentError, NotRecorded
from workbench.text import visible
from workbench.traces import Trace
from workbench.traces.steps import Step, segment_slices
from workbench.units import with_units

Positions = str | slice | Sequence[int] | np.ndarray | None


def positions(trace: Trace, where: Positions = None) -> np.ndarray:
    """The positions that `where` selects: all (None), messages of a channel or role, a slice, or a list.

    >>> trace = wb.trace("What is 12+30?")
    >>> positions(trace, slice(2, 5)).tolist(), len(positions(trace)) == len(trace)
    ([2, 3, 4], True)

    Raises NotRecorded if `where` selects no position, SelectionError for a position that the trace does not have.
    """
    all_positions = np.arange(len(trace))
    if where is None:
        chosen = all_positions
    elif isinstance(where, str):
        spans = [all_positions[span.content] for span in trace.spans if where in (span.channel, span.role)]
        chosen = np.concatenate(spans) if spans else all_positions[:0]
    elif isinstance(where, slice):
        chosen = all_positions[check_slice("where", where)]
    else:
        chosen = np.array([resolve_position(pos, len(trace)) for pos in check_items("where", where, low=0)], int)
    if not len(chosen):
        names = sorted({name for span in trace.spans for name in (span.channel, span.role) if name})
        raise NotRecorded(
            f"where={where!r} selects no position: the trace has positions 0 to {len(trace) - 1} "
            f"and these channels and roles: {', '.join(names) or 'none'}"
        )
    return chosen


def expert_load(trace: Trace, where: Positions = None, *, weighted: bool = False) -> xr.DataArray:
    """How often each expert runs, or with `weighted` its mean routing weight, over positions (layer expert).

    Rows sum to the number of active experts per token, or to 1 if weighted. `where` selects positions: a channel, a
    role, a slice or a list. `attrs["n"]` is the number of positions. `attrs["entropy"]` is the entropy of the load in
    nats, layer by layer, corrected for the small sample (see `wb.statistics.entropy`); compare it with
    `attrs["max_entropy"]`, the entropy if all experts ran equally often.

    >>> trace = wb.trace("What is 12+30?")
    >>> load = wb.routing.expert_load(trace, "analysis")
    >>> load.dims, bool(np.allclose(load.sum("expert"), trace.config["n_active"]))
    (('layer', 'expert'), True)

    Raises NotRecorded if `where` selects no position.
    """
    check_type("expert_load", trace, Trace)
    weighted = check_flag("weighted", weighted)
    selected = positions(trace, where)
    counts = _active(trace, selected).sum(1)
    values = _stacked(trace, "expert_weights", selected).mean(1) if weighted else counts / len(selected)
    n_experts = trace.config["n_experts"]
    return _labeled(
        values,
        ("layer", "expert"),
        "expert load",
        "weight" if weighted else "experts per position",
        n=len(selected),
        entropy=statistics.entropy(counts).tolist(),
        max_entropy=float(np.log(n_experts)),
        layers=trace.layers("expert_indices"),
    )


def router_entropy(trace: Trace, of: str = "router") -> xr.DataArray:
    """How undecided the router is at each position: an entropy in nats (layer pos).

    With `of="router"` it is the entropy of the softmax of the router logits over all experts, at most log(n_experts).
    With `of="chosen"` it is the entropy of the weights of the experts that run, at most log(n_active). Neither is the
    entropy of the load, which `expert_load` returns.

    >>> trace = wb.trace("What is 12+30?")
    >>> bool(router_entropy(trace, "chosen").max() <= np.log(trace.config["n_active"]) + 1e-6)
    True

    Raises ArgumentError for another `of`.
    """
    check_type("router_entropy", trace, Trace)
    if check_choice("of", of, ("router", "chosen")) == "router":
        logits = _stacked(trace, "router_logits")
        exponentials = np.exp(logits - logits.max(-1, keepdims=True))
        p = exponentials / exponentials.sum(-1, keepdims=True)
    else:
        p = _stacked(trace, "expert_weights")
    values = -np.where(p > 0, p * np.log(np.maximum(p, 1e-300)), 0).sum(-1)
    layers = trace.layers("router_logits" if of == "router" else "expert_weights")
    return _labeled(values, ("layer", "pos"), f"entropy of the {of}", "nats", layers=layers)


def router_margin(trace: Trace) -> xr.DataArray:
    """The router logit of the last expert that runs minus that of the first that does not (layer pos).

    Where the margin is small, a different rounding can select a different expert, so no claim should depend on the
    route there. NaN in a layer without experts.

    >>> bool((router_margin(wb.trace("What is 12+30?")) >= 0).all())
    True
    """
    check_type("router_margin", trace, Trace)
    return _labeled(np.asarray(trace["margin"], np.float64), ("layer", "pos"), "router margin", "logits")


def expert_coactivation(trace: Trace, where: Positions = None) -> xr.DataArray:
    """Co-activation of experts of one layer: the lift of each pair in bits (layer expert other_expert).

    The lift is log2 of the share of positions where both experts run, divided by the product of their loads. 0 means
    independent. It is NaN if one of them never runs, and -inf if they never run together.

    If all E experts run equally often and pair at random, the lift is below 0, because the k active experts of a
    position are always distinct: every pair has lift log2(E (k-1) / (k (E-1))). Compare with this value,
    `attrs["even"]`. `attrs["n"]` is the number of positions.

    >>> lift = expert_coactivation(wb.trace("What is 12+30?"))
    >>> lift.dims, bool(np.allclose(lift, lift.transpose("layer", "other_expert", "expert"), equal_nan=True))
    (('layer', 'expert', 'other_expert'), True)

    Raises NotRecorded if `where` selects no position.
    """
    check_type("expert_coactivation", trace, Trace)
    active = _active(trace, positions(trace, where))
    both = np.einsum("lpe,lpf->lef", active, active) / active.shape[1]
    load = active.mean(1)
    k, n = trace.config["n_active"], trace.config["n_experts"]
    even = float(np.log2(n * (k - 1) / (k * (n - 1)))) if k > 1 else float("-inf")
    lift = _lift(both, load[:, :, None] * load[:, None, :])
    dims, layers = ("layer", "expert", "other_expert"), trace.layers("expert_indices")
    return _labeled(lift, dims, "co-activation lift", "bits", layers=layers, n=active.shape[1], even=even)


def expert_transitions(trace: Trace, where: Positions = None, *, lift: bool = False) -> xr.DataArray:
    """How often each expert of the next MoE layer runs at positions where a given expert of this layer runs.

    Returns probabilities as (layer expert next_expert). Rows sum to the number of active experts and are NaN for an
    expert that never runs. With `lift`, the values are log2 of the probability divided by the next expert's load,
    in bits; 0 where the two are independent.

    >>> transitions = expert_transitions(wb.trace("What is 12+30?"))
    >>> rows = transitions.sum("next_expert")
    >>> bool(np.allclose(rows.where(rows > 0, 4), 4))
    True

    Raises NotRecorded if `where` selects no position.
    """
    check_type("expert_transitions", trace, Trace)
    lift = check_flag("lift", lift)
    active = _active(trace, positions(trace, where))
    load = active.mean(1)
    both = np.einsum("lpe,lpf->lef", active[:-1], active[1:]) / active.shape[1]
    if lift:
        values = _lift(both, load[:-1, :, None] * load[1:, None, :])
    else:
        with np.errstate(divide="ignore", invalid="ignore"):
            values = both / load[:-1, :, None]
    units = "bits" if lift else "probability"
    dims, layers = ("layer", "expert", "next_expert"), trace.layers("expert_indices")[:-1]
    return _labeled(values, dims, "expert transitions", units, layers=layers, n=active.shape[1])


def expert_specialization(
    traces: Trace | Sequence[Trace],
    labels: Sequence | np.ndarray | Sequence[Sequence],
    *,
    condition_on_token: bool = False,
    n_shuffles: int = 100,
    seed: int = 0,
) -> xr.Dataset:
    """Mutual information between expert choice and a label of each position, in bits, layer by layer.

    Much of what looks like specialization is the token itself. With `condition_on_token`, the result is
    I(expert; label | token), the information about the label that the choice adds to the token.

    Args:
        traces: one run or several.
        labels: one label for each position of the trace, or one such list for each trace. Positions with the label None
            are left out.
        condition_on_token: condition on the token at the position.
        n_shuffles: number of shuffles for the bias and for the null.
        seed: of the shuffles and of the choice of one active expert.

    Returns:
        Dataset over (layer):
        `information`, I(expert; label), with one of the active experts of each position drawn at random, minus its bias
        (its mean when labels are shuffled among positions);
        `null`, the 95th percentile under the null, minus the same bias;
        `p`, the p-value: the share of shuffles that reach the information.
        `attrs["shuffled"]` is what the null shuffles, "prompts" or "positions". `attrs["n"]`, `attrs["n_prompts"]` and
        `attrs["n_traces"]` count positions, prompts and traces.

    The unit of replication is the prompt. With several prompts (runs with the same question count as one), the null
    exchanges the labels of whole prompts (see `wb.statistics.shuffled_mutual_information`). With a single prompt, it
    shuffles positions as if they were independent. Such a p is about this text only, and is too small where neighboring
    positions are alike.

    >>> trace = wb.trace("What is 12+30?")
    >>> dataset = expert_specialization(trace, [token.isdigit() for token in trace.str_tokens], n_shuffles=20)
    >>> sorted(dataset.data_vars), dataset["information"].dims
    (['information', 'null', 'p'], ('layer',))

    Raises:
        ArgumentError: the numbers of labels and positions differ.
        NotRecorded: no position has a label.
    """
    listed = trace_list("expert_specialization", traces)
    condition_on_token = check_flag("condition_on_token", condition_on_token)
    n_shuffles, seed = check_count("n_shuffles", n_shuffles), check_seed(seed)
    label_lists: list[Any] = [labels] if isinstance(traces, Trace) else check_items("labels", labels)
    if len(label_lists) != len(listed):
        raise ArgumentError(
            f"labels must be one list for each of the {len(listed)} traces, got {len(label_lists)} lists."
        )
    for i, (trace, trace_labels) in enumerate(zip(listed, label_lists)):
        name = "labels" if isinstance(traces, Trace) else f"labels[{i}]"
        if len(check_items(name, trace_labels)) != len(trace):
            raise ArgumentError(
                f"{name} must have one entry for each of the {len(trace)} positions (None: left out), "
                f"got {len(trace_labels)}."
            )
    rng = np.random.default_rng(seed)
    labeled = [
        np.array([i for i, label in enumerate(trace_labels) if label is not None], int) for trace_labels in label_lists
    ]
    if not sum(map(len, labeled)):
        raise NotRecorded("no position has a label: all labels are None")
    label = np.array([str(trace_labels[i]) for trace_labels, at in zip(label_lists, labeled) for i in at])
    token = (
        np.concatenate([np.asarray(trace.tokens)[at] for trace, at in zip(listed, labeled)])
        if condition_on_token
        else None
    )
    prompts = np.repeat(_prompts(listed), [len(at) for at in labeled])
    n_prompts = len(np.unique(prompts))
    measures: dict[str, list[float]] = {"information": [], "null": [], "p": []}
    layers = listed[0].layers("expert_indices")
    for layer in layers:
        chosen = np.concatenate([trace["expert_indices", layer][at] for trace, at in zip(listed, labeled)])
        expert = chosen[np.arange(len(chosen)), rng.integers(0, chosen.shape[1], len(chosen))]
        information = statistics.mutual_information(expert, label, token)
        by_position = statistics.shuffled_mutual_information(expert, label, token, n_shuffles=n_shuffles, seed=seed)
        null, bias = by_position, float(by_position.mean())
        if n_prompts > 1:
            null = statistics.shuffled_mutual_information(
                expert, label, token, clusters=prompts, n_shuffles=n_shuffles, seed=seed + 1
            )
        measures["information"].append(information - bias)
        measures["null"].append(float(np.quantile(null, 0.95)) - bias)
        measures["p"].append((1 + int((null >= information - 1e-12).sum())) / (n_shuffles + 1))
    attrs = {
        "n": len(label),
        "n_traces": len(listed),
        "n_prompts": n_prompts,
        "n_shuffles": n_shuffles,
        "condition": "token",
    }
    attrs["shuffled"] = "prompts" if n_prompts > 1 else "positions"
    if not condition_on_token:
        del attrs["condition"]
    data = {name: ("layer", values) for name, values in measures.items()}
    return with_units(xr.Dataset(data, {"layer": list(layers)}, attrs), "bits", p="probability")


def routing_drift(
    traces: Trace | Sequence[Trace],
    segments: Sequence[Step | slice] | Sequence[Sequence[Step | slice]] | None = None,
    *,
    n_shuffles: int = 50,
    seed: int = 0,
) -> xr.Dataset:
    """How differently two segments of a text are routed: Jensen-Shannon divergence of expert loads, in bits.

    Args:
        traces: one run, or several with the same number of segments.
        segments: the segments to compare; for several traces, a list for each. The steps of the trace unless given.
        n_shuffles: number of shuffles for the null.
        seed: of the shuffles.

    Returns:
        Dataset over (layer step key_step):
        `raw`, the Jensen-Shannon divergence of the two loads;
        `drift`, `raw` minus its mean under the null;
        `p`, the p-value: the share of shuffles that reach `raw`.
        `attrs["shuffled"]` is what the null shuffles, "positions" or "prompts". `attrs["n_prompts"]` and
        `attrs["n_traces"]` count prompts and traces.

    The null of a single text shuffles the positions of both segments. It matters: two halves of one text, 15 positions
    each, differ by 0.2 bits by chance. Such a p is about this text only, treats positions as independent, and is too
    small where neighboring positions are alike.

    With several traces the unit is the prompt (runs with the same question count as one). Loads are means over prompts,
    and the null exchanges the two segments of whole prompts. Differences that are not consistent across prompts then
    count as chance. The smallest possible p is 2 / 2^prompts, so use six prompts or more.

    >>> trace = wb.trace("What is 12+30?")
    >>> drift = routing_drift(trace, [slice(0, 12), slice(12, 24)], n_shuffles=20)["drift"]
    >>> drift.dims, bool(np.isnan(drift[0, 0, 0]))
    (('layer', 'step', 'key_step'), True)

    Raises:
        NotRecorded: a trace has fewer than two segments.
        ArgumentError: the traces have different numbers of segments.
    """
    listed = trace_list("routing_drift", traces)
    n_shuffles, seed = check_count("n_shuffles", n_shuffles), check_seed(seed)
    if isinstance(traces, Trace) or segments is None:
        segment_lists: list[Any] = [segments] * len(listed)
    else:
        segment_lists = check_items("segments", segments)
    if len(segment_lists) != len(listed):
        raise ArgumentError(
            f"segments must be one list for each of the {len(listed)} traces, got {len(segment_lists)} lists."
        )
    segment_positions = [
        _segment_positions(trace, trace_segments) for trace, trace_segments in zip(listed, segment_lists)
    ]
    if not segment_positions or len({len(spans) for spans in segment_positions}) > 1:
        counts = ", ".join(str(len(spans)) for spans in segment_positions)
        raise ArgumentError(f"every trace must have the same number of segments, got {counts or 'none'}.")
    active = [_active(trace, np.arange(len(trace))) for trace in listed]
    prompts = _prompts(listed)
    n_prompts = len(np.unique(prompts))
    n_layers, n = len(active[0]), len(segment_positions[0])
    rng = np.random.default_rng(seed)
    raw, null_mean, p = (np.full((n_layers, n, n), np.nan) for _ in range(3))
    loads = np.array(
        [[trace_active[:, span].mean(1) for span in spans] for trace_active, spans in zip(active, segment_positions)]
    )  # (trace segment layer expert)
    for i in range(n):
        for j in range(i):
            if n_prompts > 1:
                observed, null = _exchanged_prompts(loads[:, [i, j]], prompts, n_shuffles, rng)
            else:
                observed, null = _shuffled_positions(
                    [(trace_active, spans[i], spans[j]) for trace_active, spans in zip(active, segment_positions)],
                    n_shuffles,
                    rng,
                )
            for a, b in ((i, j), (j, i)):
                raw[:, a, b], null_mean[:, a, b] = observed, null.mean(0)
                p[:, a, b] = (1 + (null >= observed - 1e-12).sum(0)) / (n_shuffles + 1)
    dims, coords = ("layer", "step", "key_step"), {"layer": list(listed[0].layers("expert_indices"))}
    data = {"drift": (dims, raw - null_mean), "raw": (dims, raw), "p": (dims, p)}
    attrs: dict[str, Any] = {"n_shuffles": n_shuffles, "n_traces": len(listed), "n_prompts": n_prompts}
    attrs["shuffled"] = "prompts" if n_prompts > 1 else "positions"
    return with_units(xr.Dataset(data, coords, attrs), "bits", p="probability")


def fixed_token_routing(trace: Trace, token: int | str, layer: int | None = None) -> xr.DataArray:
    """How similarly one token is routed at its different positions, from 0 to 1 (pos other_pos).

    The values are weighted Jaccard similarities of the weights of the experts that run, over all layers or one. The
    token is the same everywhere, so differences are due to context or position. The diagonal is 1. `attrs["n"]` is the
    number of occurrences.

    >>> trace = wb.trace("What is 12+30?")
    >>> similarity = fixed_token_routing(trace, "<|message|>")
    >>> bool(np.allclose(np.diag(similarity), 1)), similarity.attrs["n"] == trace.str_tokens.count("<|message|>")
    (True, True)

    Raises NotRecorded if the token does not occur.
    """
    check_type("fixed_token_routing", trace, Trace)
    if not isinstance(token, str):
        token = check_whole("token", token, 0)
    layer = None if layer is None else resolve_layer(layer, trace.config["n_layers"])
    occurrences = np.array(
        [i for i, (token_id, text) in enumerate(zip(trace.tokens, trace.str_tokens)) if token in (token_id, text)], int
    )
    if not len(occurrences):
        raise NotRecorded(f"the trace has no token {visible(repr(token))[:80]}")
    weights = _stacked(trace, "expert_weights", occurrences, None if layer is None else [layer])
    flat = weights.transpose(1, 0, 2).reshape(len(occurrences), -1)
    minimum = np.minimum(flat[:, None], flat[None]).sum(-1)
    maximum = np.maximum(flat[:, None], flat[None]).sum(-1)
    values = minimum / maximum
    coords = {"pos": occurrences, "other_pos": occurrences}
    attrs = {"long_name": "similarity of routes", "units": "1", "n": len(occurrences)}
    return xr.DataArray(values, coords, ("pos", "other_pos"), attrs=attrs)


def _segment_positions(trace: Trace, segments: Sequence[Step | slice] | None) -> list[np.ndarray]:
    """The positions of each segment."""
    slices = segment_slices(trace, segments)
    if len(slices) < 2:
        raise NotRecorded(f"drift needs at least two steps, got {len(slices)}; give `segments` as slices")
    return [np.arange(len(trace))[part] for part in slices]


def _shuffled_positions(
    texts: Sequence[tuple[np.ndarray, np.ndarray, np.ndarray]], n_shuffles: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """The divergence of two segments (layer), and the same with their positions shuffled (shuffle layer)."""
    first, second = [active[:, a] for active, a, _ in texts], [active[:, b] for active, _, b in texts]
    active = np.concatenate(first + second, 1)
    split = sum(len(a) for _, a, _ in texts)
    null = [_load_divergence(active[:, rng.permutation(active.shape[1])], split) for _ in range(n_shuffles)]
    return _load_divergence(active, split), np.stack(null)


def _exchanged_prompts(
    loads: np.ndarray, prompts: np.ndarray, n_shuffles: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """The divergence of the mean loads of two segments (layer), and the same with the segments of random prompts
    exchanged (shuffle layer). `loads` is (trace segment layer expert).
    """

    def divergence(swapped: np.ndarray) -> np.ndarray:
        mixed = np.where(swapped[prompts][:, None, None, None], loads[:, ::-1], loads)
        by_prompt = np.stack([mixed[prompts == prompt].mean(0) for prompt in np.unique(prompts)])
        return statistics.jensen_shannon(*by_prompt.mean(0))

    n = int(prompts.max()) + 1
    return divergence(np.zeros(n, bool)), np.stack([divergence(rng.random(n) < 0.5) for _ in range(n_shuffles)])


def _prompts(traces: Sequence[Trace]) -> np.ndarray:
    """The number of each trace's prompt. Runs with the same question have the same number."""
    return np.unique([str(problem(trace)) for trace in traces], return_inverse=True)[1]


def _load_divergence(active: np.ndarray, split: int) -> np.ndarray:
    """The divergence of the loads of the positions before and after `split`, by layer."""
    return statistics.jensen_shannon(active[:, :split].sum(1), active[:, split:].sum(1))


def _stacked(
    trace: Trace, name: str, at: np.ndarray | slice = slice(None), layers: Sequence[int] | None = None
) -> np.ndarray:
    """A recorded array at the positions `at`, stacked over the layers that have it, in float64: (layer pos …)."""
    return np.stack([np.asarray(trace[name, n][at], np.float64) for n in layers or trace.layers(name)])


def _active(trace: Trace, at: np.ndarray) -> np.ndarray:
    """1 where an expert runs (layer pos expert)."""
    chosen = np.stack([trace["expert_indices", layer][at] for layer in trace.layers("expert_indices")])
    active = np.zeros((*chosen.shape[:2], trace.config["n_experts"]))
    np.put_along_axis(active, chosen, 1.0, -1)
    return active


def _lift(both: np.ndarray, chance: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(chance > 0, np.log2(both / chance), np.nan)


def _labeled(
    values: np.ndarray, dims: tuple[str, ...], name: str, units: str, layers: Sequence[int] = (), **attrs: Any
) -> xr.DataArray:
    coords = {dim: np.arange(n) for dim, n in zip(dims, values.shape)} | ({"layer": list(layers)} if layers else {})
    return xr.DataArray(values, coords, dims, attrs={"long_name": name, "units": units, **attrs})
