"""What each attention head does: how much goes to its sink, how far it attends, and which textbook rule it follows.

All scores are attention mass: raw attention probabilities, which sum to 1 minus the share of the sink. A head that
attends to its sink at most queries, and to another token at a single query, scores low on average and high at that
query. Dividing by 1 - sink would hide this difference.
"""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import xarray as xr

from workbench.checks import check_axes, check_items, check_slice, check_type, check_whole
from workbench.errors import ArgumentError, NotRecorded
from workbench.text import shown
from workbench.traces import Trace, patterns
from workbench.traces.steps import Step, segment_slices
from workbench.units import with_units

QUERY_CHUNK = 256  # queries of one layer held in memory at a time
MIN_DISTANCE = 4  # steps: nearer ones do not count as looking back (arXiv 2506.19143)


def sink_mass(trace: Trace) -> xr.DataArray:
    """The attention probability that each head gives to its learned sink, for each query: (layer head query).

    A head's output is 1 - sink times what it would be without a sink, so the sink acts as a gate. At 1 the head
    contributes only the output bias. `attrs["logit"]` holds the learned sink logits (layer head), which do not depend
    on the text.

    >>> mass = wb.attention.sink_mass(wb.trace("What is 12+30?"))
    >>> mass.dims, bool(((mass >= 0) & (mass <= 1)).all())
    (('layer', 'head', 'query'), True)
    """
    check_type("sink_mass", trace, Trace)
    values = np.asarray(trace["sink"], np.float64)
    coords = {dim: np.arange(n) for dim, n in zip(("layer", "head", "query"), values.shape)}
    attrs = {"long_name": "mass on the sink", "units": "probability", "logit": np.asarray(trace["sinks"]).tolist()}
    return xr.DataArray(values, coords, ("layer", "head", "query"), attrs=attrs)


def breakdown(trace: Trace) -> xr.Dataset:
    """Where each head's attention goes, as mean probabilities over queries (layer head); the parts sum to 1.

    Returns a Dataset over (layer, head):
    `sink`, the learned sink;
    `self`, the query's own token;
    `first`, the first token of the text;
    `local`, all other keys within the sliding window's width;
    `beyond`, keys further back, which sliding layers cannot attend to;
    `distance`, the mean distance in tokens, weighted by the attention outside the sink (NaN if there is none).
    `attrs["n"]` is the number of queries.

    This describes where attention goes. It does not show that the output depends on it: for that, compare with
    `wb.patching.attention_knockout`.

    >>> shares = wb.attention.breakdown(wb.trace("What is 12+30?"))
    >>> total = sum(shares[part] for part in ("sink", "self", "first", "local", "beyond"))
    >>> bool(np.allclose(total, 1, atol=1e-5)), float(shares["beyond"].sel(layer=0).max())
    (True, 0.0)

    Raises NotRecorded if the trace holds no patterns; record="attention" records what they are recomputed from.
    """
    check_type("breakdown", trace, Trace)
    window = trace.config["window"]

    def measure(at: np.ndarray, pattern: np.ndarray, sink: np.ndarray) -> list[np.ndarray]:
        behind = at[:, None] - np.arange(pattern.shape[-1])
        own, first = behind == 0, (np.arange(pattern.shape[-1]) == 0) & (behind > 0)
        far = (behind >= window) & ~first
        near = (behind > 0) & (behind < window) & ~first
        masses = [(pattern * mask).sum((-1, -2)) for mask in (own, first, near, far)]
        return [sink.sum(-1), *masses, (pattern * behind).sum((-1, -2))]

    totals = _summed(trace, measure)
    sink, own, first, near, far, weighted_distance = totals
    with np.errstate(divide="ignore", invalid="ignore"):
        distance = np.where(own + first + near + far > 0, weighted_distance / (own + first + near + far), np.nan)
    n = len(trace)
    values = {"sink": sink / n, "self": own / n, "first": first / n, "local": near / n, "beyond": far / n}
    dataset = _by_head({**values, "distance": distance}, {"n": n})
    dataset["distance"].attrs["long_name"] = "mean distance"
    return with_units(dataset, "probability", distance="tokens")


def head_scores(trace: Trace) -> xr.Dataset:
    """How closely each head follows three textbook rules (layer head): mean attention mass on the keys the rule names.

    `previous_token`: on the token before the query. `duplicate_token`: on earlier occurrences of the query's token.
    `induction`: on the tokens that followed those occurrences (Olsson et al. 2022, arXiv 2209.11895).

    Means are over the queries to which a rule applies; `attrs["n"]` has their number for each rule. On random tokens
    repeated with period P, a perfect induction head scores 1, and a sliding-window head scores 0 if P exceeds its
    window. The scores do not depend on what the heads write. A uniform head also has a score above 0 (1 / number of
    visible keys), so compare heads with each other.

    >>> scores = wb.attention.head_scores(wb.trace("What is 12+30?"))
    >>> sorted(scores.data_vars), scores["induction"].dims
    (['duplicate_token', 'induction', 'previous_token'], ('layer', 'head'))

    Raises NotRecorded if the trace holds no patterns; record="attention" records what they are recomputed from.
    """
    check_type("head_scores", trace, Trace)
    tokens = np.asarray(trace.tokens)
    n = len(tokens)
    same = np.tril(tokens[:, None] == tokens[None], -1)
    after = np.zeros_like(same)
    after[:, 1:] = same[:, :-1]
    after &= np.tri(n, dtype=bool)  # keys right after an earlier occurrence, up to the query itself
    rules = {"previous_token": np.eye(n, k=-1, dtype=bool), "duplicate_token": same, "induction": after}
    applies = {name: rule.any(-1).sum() for name, rule in rules.items()}

    def measure(at: np.ndarray, pattern: np.ndarray, sink: np.ndarray) -> list[np.ndarray]:
        return [(pattern * rule[at, : pattern.shape[-1]]).sum((-1, -2)) for rule in rules.values()]

    totals = _summed(trace, measure)
    values = {name: total / max(applies[name], 1) for name, total in zip(rules, totals)}
    counts = {name: int(count) for name, count in applies.items()}
    return with_units(_by_head(values, {"n": counts}), "probability")


def retrieval_scores(
    trace: Trace, needle: str | slice | Sequence[slice], answer: str | slice | Sequence[slice] | None = None
) -> xr.DataArray:
    """Which heads copy from `needle` (layer head): the share of copied tokens whose place in it they attended to.

    A head scores for a copied token if its largest attention, at the position that predicted the token, is on the place
    it was copied from (retrieval heads, Wu et al. 2024, arXiv 2404.15574). `attrs["n"]` is the number of copied tokens.

    `needle` and `answer` are slices (as from `trace.find`) or a text, which stands for all its occurrences. Without
    `answer`, as in the paper, a generated token counts as copied if it occurs exactly once in the prompt and that place
    is in `needle`. With `answer`, each of its tokens that `needle` has before it counts, and each such place is a hit.
    It may occur elsewhere too, in a chain of thought for instance; a head that attends to it there does not score.
    White space around a token makes no difference: "Kay" is copied from " Kay".

    >>> trace = wb.trace("Mod 10: a=3, b=a+4. Find b.")
    >>> retrieval_scores(trace, slice(0, trace.prompt_length)).dims
    ('layer', 'head')
    >>> scores = retrieval_scores(trace, "a=3", answer=trace.find("3")[1:])
    >>> float(scores.max()) <= 1, scores.attrs["units"]
    (True, 'share of copied tokens')

    Raises NotRecorded if no token was copied from `needle`, a text does not occur, or the trace holds no patterns.
    """
    check_type("retrieval_scores", trace, Trace)
    inside = _occurring("needle", needle, trace)
    if answer is None:
        copied = _only_in_needle(trace, inside)
        rule = "no generated token occurs exactly once in the prompt, inside this; give `answer` for tokens that do not"
    else:
        copied = _in_needle_too(trace, inside, _occurring("answer", answer, trace))
        rule = "no token of `answer` is in it, before its own position"
    if not copied:
        raise NotRecorded(f"nothing was copied from {shown(needle)}: {rule}")
    hits = np.zeros((trace.config["n_layers"], trace.config["n_heads"]))
    for layer in range(len(hits)):
        for query, places in copied:
            pattern, _ = patterns.rows(trace, layer, slice(None), slice(query, query + 1))
            top = pattern[:, 0].argmax(-1)
            hits[layer] += np.isin(top, places) & (pattern[:, 0].max(-1) > 0)
    scores = _by_head({"retrieval": hits / len(copied)}, {})["retrieval"]
    scores.attrs = {"long_name": "retrieval score", "units": "share of copied tokens", "n": len(copied)}
    return scores


def _occurring(name: str, where: str | slice | Sequence[slice], trace: Trace) -> list[int]:
    """The positions in slices, or of all occurrences of a text."""
    if isinstance(where, str):
        slices = trace.find(where)
        if not slices:
            raise NotRecorded(f"{name} {shown(where)} does not occur in this text")
    else:
        slices = [where] if isinstance(where, slice) else check_items(name, where)
    return sorted({pos for part in slices for pos in range(len(trace))[check_slice(name, part)]})


def _only_in_needle(trace: Trace, inside: Sequence[int]) -> list[tuple[int, list[int]]]:
    """The query that predicted each copied token, and the only place of it in the prompt, which is in `inside`."""
    tokens, in_needle, generated = trace.tokens, {*inside}, trace.written_by("model").tolist()
    places: dict[int, list[int]] = {}
    for pos, token in enumerate(tokens[: trace.prompt_length]):
        places.setdefault(token, []).append(pos)
    return [
        (pos - 1, places[tokens[pos]])
        for pos in generated
        if len(places.get(tokens[pos], ())) == 1 and places[tokens[pos]][0] in in_needle
    ]


def _in_needle_too(trace: Trace, inside: Sequence[int], answer: Sequence[int]) -> list[tuple[int, list[int]]]:
    """The query that predicted each token of the answer, and the places in `inside` with the same text before it."""
    pieces = [piece.strip() or piece for piece in trace.str_tokens]
    pairs = [(at - 1, [place for place in inside if place < at and pieces[place] == pieces[at]]) for at in answer]
    return [(query, places) for query, places in pairs if places]


def step_attention(trace: Trace, segments: Sequence[Step | slice] | None = None) -> xr.DataArray:
    """How much the tokens of one step attend to another step: (layer head step key_step).

    Each value is a mean over the queries in `step` and a sum over the keys in `key_step`. A row therefore sums to 1
    minus the attention to the sink and to tokens outside all steps. `segments` are the steps of the trace's chain of
    thought unless given.

    >>> attention = wb.attention.step_attention(wb.trace("What is 12+30?"), [slice(0, 9), slice(9, 18)])
    >>> attention.dims, float(attention.sel(step=0, key_step=1).max())  # attention is causal
    (('layer', 'head', 'step', 'key_step'), 0.0)

    Raises NotRecorded if there are no segments, or if the trace holds no patterns. The trace's own steps need no
    patterns if it was recorded with record="steps".
    """
    check_type("step_attention", trace, Trace)
    dims = ("layer", "head", "step", "key_step")
    if segments is None and "step_attention" in trace:
        values = np.asarray(trace["step_attention"])
    else:
        slices = segment_slices(trace, segments)
        if not slices:
            raise NotRecorded("this trace has no steps, because it has no chain of thought; give `segments` as slices")
        size = np.array([len(range(len(trace))[part]) for part in slices])
        inside = np.zeros((len(trace), len(slices)))
        for number, part in enumerate(slices):
            inside[part, number] = 1

        def measure(queries: np.ndarray, pattern: np.ndarray, sink: np.ndarray) -> list[np.ndarray]:
            pooled = pattern @ inside[: pattern.shape[-1]]  # head query key_step
            return [np.einsum("hqs,qt->hts", pooled, inside[queries])]

        values = _summed(trace, measure)[0] / size[:, None]
    coords = {dim: np.arange(n) for dim, n in zip(dims, values.shape)}
    return xr.DataArray(values, coords, dims, attrs={"long_name": "attention between steps", "units": "probability"})


def receiver_heads(attention: xr.DataArray, *, min_distance: int = MIN_DISTANCE) -> xr.Dataset:
    """Which steps later steps look back at, and which heads single some out (arXiv 2506.19143), from `step_attention`.

    `vertical` (layer head step): mean attention that a step receives from all steps at least `min_distance` later; NaN
    where there are none. `kurtosis` (layer head): Fisher's excess kurtosis of `vertical` over steps. It is large for a
    head that attends to few steps. If one of n steps receives all the attention, it is (n² - 3n + 3) / (n - 1) - 3.

    A receiver head shows where attention goes, not that these steps matter for the answer: compare with
    `wb.reasoning.suppression`.

    >>> far = np.zeros((1, 1, 14, 14))
    >>> far[..., 6] = 1  # all steps attend to step 6
    >>> receivers = receiver_heads(xr.DataArray(far, dims=("layer", "head", "step", "key_step")))
    >>> int(receivers["vertical"][0, 0].argmax("step")), round(float(receivers["kurtosis"][0, 0]), 2)
    (6, 5.11)

    Raises ArgumentError if there are fewer than `min_distance` + 3 steps.
    """
    check_type("receiver_heads", attention, xr.DataArray)
    check_axes("attention", attention, ("layer", "head", "step", "key_step"))
    min_distance = check_whole("min_distance", min_distance, 1)
    n = attention.sizes["step"]
    if n < min_distance + 3:
        raise ArgumentError(
            f"{n} steps are too few: with min_distance={min_distance}, at least {min_distance + 3} are needed."
        )
    values = attention.transpose("layer", "head", "step", "key_step").values
    vertical = np.full((*values.shape[:2], n), np.nan)
    for step in range(n - min_distance):
        vertical[..., step] = values[:, :, step + min_distance :, step].mean(-1)
    defined = vertical[..., : n - min_distance]
    deviation = defined - defined.mean(-1, keepdims=True)
    variance = (deviation**2).mean(-1)
    with np.errstate(divide="ignore", invalid="ignore"):
        kurtosis = np.where(variance > 0, (deviation**4).mean(-1) / variance**2 - 3, np.nan)
    data = {"vertical": (("layer", "head", "step"), vertical), "kurtosis": (("layer", "head"), kurtosis)}
    coords = {name: np.arange(size) for name, size in zip(("layer", "head", "step"), vertical.shape)}
    dataset = xr.Dataset(data, coords, {"min_distance": min_distance, "n": n - min_distance})
    return with_units(dataset, vertical="probability", kurtosis="1")


def rollout(trace: Trace) -> xr.DataArray:
    """Attention rollout (arXiv 2005.00928): how much of each token has flowed into each position by the last layer.

    The result (query key) is the product over layers of ½ · (mean pattern of the heads) + ½ · identity, where the
    identity is for the residual stream. Attention to the sink stays at the query's own position. Rows sum to 1. Rollout
    ignores values, MLPs and experts: it summarizes attention and does not measure an effect.

    >>> flow = rollout(wb.trace("What is 12+30?"))
    >>> bool(np.allclose(flow.sum("key"), 1)), bool(np.allclose(np.triu(flow, 1), 0))
    (True, True)

    Raises NotRecorded if the trace holds no patterns; record="attention" records what they are recomputed from.
    """
    check_type("rollout", trace, Trace)
    n = len(trace)
    flow = np.eye(n)
    for layer in range(trace.config["n_layers"]):
        pattern, sink = patterns.rows(trace, layer, slice(None))
        mixed = pattern.mean(0, dtype=np.float64) + np.diag(sink.mean(0, dtype=np.float64))
        flow = (mixed + np.eye(n)) / 2 @ flow
    coords = {"query": np.arange(n), "key": np.arange(n)}
    return xr.DataArray(
        flow, coords, ("query", "key"), attrs={"long_name": "attention rollout", "units": "probability"}
    )


def _blocks(trace: Trace, layer: int) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Queries, their patterns (head query key) and sinks (head query), QUERY_CHUNK queries at a time."""
    for start in range(0, len(trace), QUERY_CHUNK):
        queries = np.arange(start, min(start + QUERY_CHUNK, len(trace)))
        pattern, sink = patterns.tile(
            trace, layer, slice(None), slice(start, queries[-1] + 1), slice(0, queries[-1] + 1)
        )
        yield queries, pattern.astype(np.float64), sink.astype(np.float64)


def _summed(trace: Trace, measure: Callable[[np.ndarray, np.ndarray, np.ndarray], list[np.ndarray]]) -> np.ndarray:
    """`measure` of each block of queries, summed over blocks, for all layers: (measure layer head …)."""
    layers = []
    for layer in range(trace.config["n_layers"]):
        total: list[np.ndarray] | None = None
        for block in _blocks(trace, layer):
            part = measure(*block)
            total = part if total is None else [a + b for a, b in zip(total, part)]
        layers.append(total)
    return np.stack([np.stack(values) for values in zip(*layers)])


def _by_head(values: dict[str, np.ndarray], attrs: dict) -> xr.Dataset:
    shape = next(iter(values.values())).shape
    coords = {"layer": np.arange(shape[0]), "head": np.arange(shape[1])}
    return xr.Dataset({name: (("layer", "head"), value) for name, value in values.items()}, coords, attrs)
