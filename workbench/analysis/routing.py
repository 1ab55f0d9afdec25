"""Which experts run, how evenly, together with which others, and what their choice is about.

An expert's number means nothing beyond its layer: expert 3 of one layer has nothing to do with expert 3 of the next. So
nothing here compares numbers across layers, and every figure follows if a layer's experts are renumbered.

The axis `layer` holds the layers whose routes the trace has, by their numbers: all of them in gpt-oss.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr

from workbench.analysis import statistics
from workbench.analysis.problem_groups import problem
from workbench.checks import resolve_position
from workbench.errors import ArgumentError, NotRecorded
from workbench.traces import Trace
from workbench.traces.steps import Step, segment_slices

Where = str | slice | Sequence[int] | np.ndarray | None


def positions(trace: Trace, where: Where = None) -> np.ndarray:
    """The positions that `where` names: all, those of a channel's or a role's messages, a slice, or a list of them.

    >>> trace = wb.trace("What is 12+30?")
    >>> positions(trace, slice(2, 5)).tolist(), len(positions(trace)) == len(trace)
    ([2, 3, 4], True)

    Raises NotRecorded if no position is left, SelectionError for a position that the trace does not have.
    """
    every = np.arange(len(trace))
    if where is None:
        chosen = every
    elif isinstance(where, str):
        spans = [every[span.content] for span in trace.spans if where in (span.channel, span.role)]
        chosen = np.concatenate(spans) if spans else every[:0]
    else:
        numbers = where if isinstance(where, slice) else np.asarray(where, int)
        for end in () if isinstance(numbers, slice) or not numbers.size else (numbers.min(), numbers.max()):
            resolve_position(end, len(trace))
        chosen = every[numbers]
    if not len(chosen):
        there = sorted({name for span in trace.spans for name in (span.channel, span.role) if name})
        raise NotRecorded(
            f"no position is in {where!r}: the trace has the positions 0..{len(trace) - 1}, "
            f"in messages of {', '.join(there) or 'no channel'}"
        )
    return chosen


def expert_load(trace: Trace, where: Where = None, *, weighted: bool = False) -> xr.DataArray:
    """How often each expert runs, or with `weighted` how much weight it gets, as a mean over positions (layer expert).

    Rows sum to the number of chosen experts, or to 1. `attrs` say over how many positions, and how large the entropy of
    such a load is, in nats, layer by layer: `entropy`, corrected for the few that were counted (see
    `statistics.entropy`), next to `max_entropy` for experts that are used evenly.

    >>> trace = wb.trace("What is 12+30?")
    >>> load = wb.routing.expert_load(trace, "analysis")
    >>> load.dims, bool(np.allclose(load.sum("expert"), trace.config["n_active"]))
    (('layer', 'expert'), True)

    Raises NotRecorded if `where` names no position.
    """
    at = positions(trace, where)
    counts = _ran(trace, at).sum(1)
    values = _stacked(trace, "expert_weights", at).mean(1) if weighted else counts / len(at)
    n_experts = trace.config["n_experts"]
    return _labelled(
        values,
        ("layer", "expert"),
        "expert load",
        "weight" if weighted else "experts per position",
        n=len(at),
        entropy=statistics.entropy(counts).tolist(),
        max_entropy=float(np.log(n_experts)),
        layers=trace.layers("expert_indices"),
    )


def router_entropy(trace: Trace, of: str = "router") -> xr.DataArray:
    """How undecided the router is, in nats (layer pos): over all experts, or among those that run.

    `of="router"`: the softmax of its logits over all experts, log(n_experts) at most. `of="chosen"`: the weights of
    those that run, log(n_active) at most. Neither is the entropy of the load: see `expert_load`.

    >>> trace = wb.trace("What is 12+30?")
    >>> bool(router_entropy(trace, "chosen").max() <= np.log(trace.config["n_active"]) + 1e-6)
    True

    Raises ArgumentError for another `of`.
    """
    if of == "router":
        logits = _stacked(trace, "router_logits")
        e = np.exp(logits - logits.max(-1, keepdims=True))
        p = e / e.sum(-1, keepdims=True)
    elif of == "chosen":
        p = _stacked(trace, "expert_weights")
    else:
        raise ArgumentError(f"of must be 'router' or 'chosen', got {of!r}.")
    values = -np.where(p > 0, p * np.log(np.maximum(p, 1e-300)), 0).sum(-1)
    layers = trace.layers("router_logits" if of == "router" else "expert_weights")
    return _labelled(values, ("layer", "pos"), f"entropy of the {of}", "nats", layers=layers)


def router_margin(trace: Trace) -> xr.DataArray:
    """By how much the last expert that runs beat the first that does not, in logits (layer pos).

    Where it is small, another rounding may choose another expert: no claim about a route should hang on it. NaN in a
    layer without experts.

    >>> bool((router_margin(wb.trace("What is 12+30?")) >= 0).all())
    True
    """
    return _labelled(np.asarray(trace["margin"], np.float64), ("layer", "pos"), "router margin", "logits")


def expert_coactivation(trace: Trace, where: Where = None) -> xr.DataArray:
    """Lift of two experts of one layer that run together, in bits (layer expert other_expert).

    log2 of how often both run at a position over what their loads would give by chance; 0 is chance, NaN where one of
    them never runs, -inf where they never meet. Of k chosen experts out of E even ones, chance itself is below
    independence: the lift of any two is log2(E (k-1) / (k (E-1))), which `attrs["even"]` says.

    >>> lift = expert_coactivation(wb.trace("What is 12+30?"))
    >>> lift.dims, bool(np.allclose(lift, lift.transpose("layer", "other_expert", "expert"), equal_nan=True))
    (('layer', 'expert', 'other_expert'), True)

    Raises NotRecorded if `where` names no position.
    """
    ran = _ran(trace, positions(trace, where))
    both = np.einsum("lpe,lpf->lef", ran, ran) / ran.shape[1]
    load = ran.mean(1)
    k, n = trace.config["n_active"], trace.config["n_experts"]
    even = float(np.log2(n * (k - 1) / (k * (n - 1)))) if k > 1 else float("-inf")
    lift = _lift(both, load[:, :, None] * load[:, None, :])
    dims, layers = ("layer", "expert", "other_expert"), trace.layers("expert_indices")
    return _labelled(lift, dims, "co-activation lift", "bits", layers=layers, n=ran.shape[1], even=even)


def expert_transitions(trace: Trace, where: Where = None, *, lift: bool = False) -> xr.DataArray:
    """How often an expert of the next layer with experts runs where one of this layer does (layer expert next_expert).

    Rows sum to the number of chosen experts, and are NaN for an expert that never runs; with `lift`, log2 over the next
    expert's own load, in bits: 0 where the two have nothing to do with each other.

    >>> moves = expert_transitions(wb.trace("What is 12+30?"))
    >>> rows = moves.sum("next_expert")
    >>> bool(np.allclose(rows.where(rows > 0, 4), 4))
    True

    Raises NotRecorded if `where` names no position.
    """
    ran = _ran(trace, positions(trace, where))
    load = ran.mean(1)
    both = np.einsum("lpe,lpf->lef", ran[:-1], ran[1:]) / ran.shape[1]
    if lift:
        values = _lift(both, load[:-1, :, None] * load[1:, None, :])
    else:
        with np.errstate(divide="ignore", invalid="ignore"):
            values = both / load[:-1, :, None]
    units = "bits" if lift else "probability"
    dims, layers = ("layer", "expert", "next_expert"), trace.layers("expert_indices")[:-1]
    return _labelled(values, dims, "expert_transitions", units, layers=layers, n=ran.shape[1])


def expert_specialization(
    traces: Trace | Sequence[Trace],
    labels: Sequence | np.ndarray | Sequence[Sequence],
    *,
    condition_on_token: bool = False,
    n_shuffles: int = 100,
    seed: int = 0,
) -> xr.Dataset:
    """What the choice of an expert tells about a label of each position, in bits, layer by layer.

    `labels` are one for each position of the trace (of each trace, if there are several); positions whose label is None
    are left out. One of the experts that run stands for all, drawn evenly. `information` is I(expert; label), less the
    mean over labels shuffled among positions, which is its bias. With `condition_on_token`, I(expert; label | token):
    what is left when the token is known, for much of what experts "specialise" in is the token itself.

    `p` is how often chance reaches the figure, and `null` the 95th percentile of chance, less the same bias. The unit
    of replication is the prompt: with several prompts (runs with the same question are one), chance is whole prompts
    that exchange their labels, see `statistics.shuffled_mutual_information`, and `attrs["shuffled"]` is "prompts". With
    a single one it is "positions", as if each were independent: such a p is about this text, and too small where
    neighbors are alike.

    >>> trace = wb.trace("What is 12+30?")
    >>> found = expert_specialization(trace, [piece.isdigit() for piece in trace.str_tokens], n_shuffles=20)
    >>> sorted(found.data_vars), found["information"].dims
    (['information', 'null', 'p'], ('layer',))

    Raises ArgumentError if labels and positions are not equally many, NotRecorded if no position has a label.
    """
    several = [traces] if isinstance(traces, Trace) else list(traces)
    lists: list[Any] = [labels] if isinstance(traces, Trace) else list(labels)
    if len(lists) != len(several):
        raise ArgumentError(f"labels must be one list for each of the {len(several)} traces, got {len(lists)} lists.")
    for trace, named in zip(several, lists):
        if len(named) != len(trace):
            raise ArgumentError(
                f"labels must be one for each of the {len(trace)} positions (None leaves it out), got {len(named)}."
            )
    rng = np.random.default_rng(seed)
    kept = [np.array([i for i, label in enumerate(named) if label is not None], int) for named in lists]
    if not sum(map(len, kept)):
        raise NotRecorded("no position has a label: each is None")
    label = np.array([str(named[i]) for named, at in zip(lists, kept) for i in at])
    token = (
        np.concatenate([np.asarray(trace.tokens)[at] for trace, at in zip(several, kept)])
        if condition_on_token
        else None
    )
    prompts = np.repeat(_prompts(several), [len(at) for at in kept])
    n_problems = len(np.unique(prompts))
    figures: dict[str, list[float]] = {"information": [], "null": [], "p": []}
    layers = several[0].layers("expert_indices")
    for layer in layers:
        chosen = np.concatenate([trace["expert_indices", layer][at] for trace, at in zip(several, kept)])
        expert = chosen[np.arange(len(chosen)), rng.integers(0, chosen.shape[1], len(chosen))]
        plain = statistics.mutual_information(expert, label, token)
        by_position = statistics.shuffled_mutual_information(expert, label, token, n_shuffles=n_shuffles, seed=seed)
        chance, bias = by_position, float(by_position.mean())
        if n_problems > 1:
            chance = statistics.shuffled_mutual_information(
                expert, label, token, clusters=prompts, n_shuffles=n_shuffles, seed=seed + 1
            )
        figures["information"].append(plain - bias)
        figures["null"].append(float(np.quantile(chance, 0.95)) - bias)
        figures["p"].append((1 + int((chance >= plain - 1e-12).sum())) / (n_shuffles + 1))
    attrs = {
        "units": "bits",
        "n": len(label),
        "n_prompts": len(several),
        "n_shuffles": n_shuffles,
        "condition": "token",
    }
    attrs |= {"n_problems": n_problems, "shuffled": "prompts" if n_problems > 1 else "positions"}
    if not condition_on_token:
        del attrs["condition"]
    return xr.Dataset({name: ("layer", values) for name, values in figures.items()}, {"layer": list(layers)}, attrs)


def routing_drift(
    traces: Trace | Sequence[Trace],
    segments: Sequence[Step | slice] | Sequence[Sequence[Step | slice]] | None = None,
    *,
    n_shuffles: int = 50,
    seed: int = 0,
) -> xr.Dataset:
    """How differently two segments of a text are routed, in bits (layer step key_step).

    The segments are the steps of the trace unless given.

    `raw` is the Jensen-Shannon divergence of their loads, `drift` that less what chance gives, and `p` how often chance
    reaches it. Of one text, chance is the positions of both segments dealt out anew (two halves of one text, 15
    positions each, differ by 0.2 bits so): such a p is about this text alone, as if positions were independent, and too
    small where neighbors are alike.

    Several traces, with a list of segments for each, answer for prompts: the loads are means over prompts, and chance
    is whole prompts that exchange the two segments. What differs in each prompt but not alike in all is chance then,
    and the smallest p is 2 / 2^prompts: give six or more. Runs with the same question are one prompt;
    `attrs["shuffled"]` says which was done, "positions" or "prompts".

    >>> trace = wb.trace("What is 12+30?")
    >>> drift = routing_drift(trace, [slice(0, 12), slice(12, 24)], n_shuffles=20)["drift"]
    >>> drift.dims, bool(np.isnan(drift[0, 0, 0]))
    (('layer', 'step', 'key_step'), True)

    Raises NotRecorded if a trace has fewer than two segments, ArgumentError if the traces have not equally many.
    """
    several = [traces] if isinstance(traces, Trace) else list(traces)
    given: list[Any] = (
        [segments] if isinstance(traces, Trace) else [None] * len(several) if segments is None else list(segments)
    )
    if len(given) != len(several):
        raise ArgumentError(f"segments must be one list for each of the {len(several)} traces, got {len(given)} lists.")
    spots = [_spots(trace, pieces) for trace, pieces in zip(several, given)]
    if not spots or len({len(at) for at in spots}) > 1:
        counts = ", ".join(str(len(at)) for at in spots)
        raise ArgumentError(f"every trace must have the same number of segments, got {counts or 'none'}.")
    rans = [_ran(trace, np.arange(len(trace))) for trace in several]
    prompts = _prompts(several)
    n_problems = len(np.unique(prompts))
    n_layers, n = len(rans[0]), len(spots[0])
    rng = np.random.default_rng(seed)
    raw, chance, reached = (np.full((n_layers, n, n), np.nan) for _ in range(3))
    loads = np.array([[ran[:, at].mean(1) for at in here] for ran, here in zip(rans, spots)])  # trace part layer expert
    for i in range(n):
        for j in range(i):
            if n_problems > 1:
                observed, null = _exchanged(loads[:, [i, j]], prompts, n_shuffles, rng)
            else:
                observed, null = _dealt([(ran, at[i], at[j]) for ran, at in zip(rans, spots)], n_shuffles, rng)
            for a, b in ((i, j), (j, i)):
                raw[:, a, b], chance[:, a, b] = observed, null.mean(0)
                reached[:, a, b] = (1 + (null >= observed - 1e-12).sum(0)) / (n_shuffles + 1)
    dims, coords = ("layer", "step", "key_step"), {"layer": list(several[0].layers("expert_indices"))}
    data = {"drift": (dims, raw - chance), "raw": (dims, raw), "p": (dims, reached)}
    attrs = {"units": "bits", "n_shuffles": n_shuffles, "n_problems": n_problems}
    attrs["shuffled"] = "prompts" if n_problems > 1 else "positions"
    return xr.Dataset(data, coords, attrs)


def fixed_token_routing(trace: Trace, token: int | str, layer: int | None = None) -> xr.DataArray:
    """How alike the routes of one token are wherever it stands, 0 to 1 (pos other_pos).

    The weighted Jaccard similarity of the executed weights, over all layers or one: the token is the same, so what
    differs is what the model has in mind. 1 on the diagonal.

    >>> trace = wb.trace("What is 12+30?")
    >>> alike = fixed_token_routing(trace, "<|message|>")
    >>> bool(np.allclose(np.diag(alike), 1)), alike.attrs["n"] == trace.str_tokens.count("<|message|>")
    (True, True)

    Raises NotRecorded if the token is nowhere.
    """
    at = np.array([i for i, (n, piece) in enumerate(zip(trace.tokens, trace.str_tokens)) if token in (n, piece)], int)
    if not len(at):
        raise NotRecorded(f"the trace has no token {token!r}")
    weights = _stacked(trace, "expert_weights", at, None if layer is None else [layer])
    flat = weights.transpose(1, 0, 2).reshape(len(at), -1)
    least = np.minimum(flat[:, None], flat[None]).sum(-1)
    most = np.maximum(flat[:, None], flat[None]).sum(-1)
    values = least / most
    coords = {"pos": at, "other_pos": at}
    attrs = {"long_name": "similarity of routes", "units": "1", "n": len(at)}
    return xr.DataArray(values, coords, ("pos", "other_pos"), attrs=attrs)


def _spots(trace: Trace, segments: Sequence[Step | slice] | None) -> list[np.ndarray]:
    """The positions of each part."""
    found = segment_slices(trace, segments)
    if len(found) < 2:
        raise NotRecorded(f"drift is between two steps at least; there are {len(found)}: give `segments`, as slices")
    return [np.arange(len(trace))[part] for part in found]


def _dealt(
    texts: Sequence[tuple[np.ndarray, np.ndarray, np.ndarray]], n_shuffles: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """The divergence of two segments of one text (layer), and with their positions dealt out anew (shuffle layer)."""
    first, second = [ran[:, a] for ran, a, _ in texts], [ran[:, b] for ran, _, b in texts]
    ran = np.concatenate(first + second, 1)
    cut = sum(len(a) for _, a, _ in texts)
    null = [_apart(ran[:, rng.permutation(ran.shape[1])], cut) for _ in range(n_shuffles)]
    return _apart(ran, cut), np.stack(null)


def _exchanged(
    loads: np.ndarray, prompts: np.ndarray, n_shuffles: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """The divergence (layer) of mean loads (trace part layer expert), and with segments exchanged (shuffle layer)."""

    def divergence(swapped: np.ndarray) -> np.ndarray:
        mixed = np.where(swapped[prompts][:, None, None, None], loads[:, ::-1], loads)
        by_prompt = np.stack([mixed[prompts == prompt].mean(0) for prompt in np.unique(prompts)])
        return statistics.jensen_shannon(*by_prompt.mean(0))

    n = int(prompts.max()) + 1
    return divergence(np.zeros(n, bool)), np.stack([divergence(rng.random(n) < 0.5) for _ in range(n_shuffles)])


def _prompts(traces: Sequence[Trace]) -> np.ndarray:
    """The number of each trace's prompt: runs with the same question have the same."""
    return np.unique([str(problem(trace)) for trace in traces], return_inverse=True)[1]


def _apart(ran: np.ndarray, cut: int) -> np.ndarray:
    """The divergence of the loads of the positions before and after `cut`, by layer."""
    return statistics.jensen_shannon(ran[:, :cut].sum(1), ran[:, cut:].sum(1))


def _stacked(
    trace: Trace, name: str, at: np.ndarray | slice = slice(None), layers: Sequence[int] | None = None
) -> np.ndarray:
    """The arrays of the layers that have one, in float64, at some positions."""
    return np.stack([np.asarray(trace[name, n][at], np.float64) for n in layers or trace.layers(name)])


def _ran(trace: Trace, at: np.ndarray) -> np.ndarray:
    """1 where an expert runs (layer pos expert)."""
    chosen = np.stack([trace["expert_indices", layer][at] for layer in trace.layers("expert_indices")])
    ran = np.zeros((*chosen.shape[:2], trace.config["n_experts"]))
    np.put_along_axis(ran, chosen, 1.0, -1)
    return ran


def _lift(both: np.ndarray, chance: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(chance > 0, np.log2(both / chance), np.nan)


def _labelled(
    values: np.ndarray, dims: tuple[str, ...], name: str, units: str, layers: Sequence[int] = (), **attrs: Any
) -> xr.DataArray:
    coords = {dim: np.arange(n) for dim, n in zip(dims, values.shape)} | ({"layer": list(layers)} if layers else {})
    return xr.DataArray(values, coords, dims, attrs={"long_name": name, "units": units, **attrs})
