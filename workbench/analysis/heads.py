"""What each head does: how much it gates itself away, how far it looks, and by which rule.

Everything here is mass: attention as it is, with what went to the sink missing. A head that sinks on most tokens and
fires on one scores low on average and high where it fires; dividing by what is left would hide the difference.
"""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import xarray as xr

from workbench.errors import ArgumentError, NotRecorded
from workbench.traces import Trace, patterns
from workbench.traces.steps import Step, segment_slices

QUERIES = 256  # of a layer that are held at a time
NEAR = 4  # steps behind a step that do not count as far back (arXiv 2506.19143)


def sink_mass(trace: Trace) -> xr.DataArray:
    """What each head gives to its sink, query by query (layer head query): 1 is a head that writes its bias only.

    A head's output is (1 - sink) times what it would be without one: the sink is a gate. `attrs["logit"]` are the
    learned sinks, which are the same for every text.

    >>> mass = wb.attention.sink_mass(wb.trace("What is 12+30?"))
    >>> mass.dims, bool(((mass >= 0) & (mass <= 1)).all())
    (('layer', 'head', 'query'), True)
    """
    values = np.asarray(trace["sink"], np.float64)
    coords = {dim: np.arange(n) for dim, n in zip(("layer", "head", "query"), values.shape)}
    attrs = {"long_name": "mass on the sink", "units": "probability", "logit": np.asarray(trace["sinks"]).tolist()}
    return xr.DataArray(values, coords, ("layer", "head", "query"), attrs=attrs)


def breakdown(trace: Trace) -> xr.Dataset:
    """Where each head's attention goes, as means over queries (layer head): the parts sum to 1.

    `sink`; `self`, the query's own token; `first`, the first token of the text; `local`, everything else that a window
    reaches; `beyond`, what lies outside of it, which sliding layers cannot see. `distance` is how many tokens away it
    is on average, per unit of mass that is not in the sink; NaN where there is none.

    >>> ledger = wb.attention.breakdown(wb.trace("What is 12+30?"))
    >>> parts = sum(ledger[part] for part in ("sink", "self", "first", "local", "beyond"))
    >>> bool(np.allclose(parts, 1, atol=1e-5)), float(ledger["beyond"].sel(layer=0).max())
    (True, 0.0)

    Raises NotRecorded if the trace holds no patterns: record="attention" keeps what gives them.
    """
    window = trace.config["window"]

    def measure(at: np.ndarray, pattern: np.ndarray, sink: np.ndarray) -> list[np.ndarray]:
        behind = at[:, None] - np.arange(pattern.shape[-1])
        own, first = behind == 0, (np.arange(pattern.shape[-1]) == 0) & (behind > 0)
        far = (behind >= window) & ~first
        near = (behind > 0) & (behind < window) & ~first
        masses = [(pattern * mask).sum((-1, -2)) for mask in (own, first, near, far)]
        return [sink.sum(-1), *masses, (pattern * behind).sum((-1, -2))]

    sums = _summed(trace, measure)
    sink, own, first, near, far, walked = sums
    with np.errstate(divide="ignore", invalid="ignore"):
        distance = np.where(own + first + near + far > 0, walked / (own + first + near + far), np.nan)
    n = len(trace)
    values = {"sink": sink / n, "self": own / n, "first": first / n, "local": near / n, "beyond": far / n}
    found = _by_head({**values, "distance": distance}, {"units": "probability", "n": n})
    found["distance"].attrs = {"long_name": "mean distance", "units": "tokens"}
    return found


def head_scores(trace: Trace) -> xr.Dataset:
    """How much each head follows the textbook rules (layer head), as mass per query where the rule applies.

    `previous_token`: on the token before. `duplicate_token`: on earlier places of the same token. `induction`: on what
    followed those. Queries to which a rule does not apply do not count; `attrs["n"]` says how many did. On random
    tokens repeated with period P a perfect induction head scores 1, a sliding one 0 where P exceeds its window.

    >>> scores = wb.attention.head_scores(wb.trace("What is 12+30?"))
    >>> sorted(scores.data_vars), scores["induction"].dims
    (['duplicate_token', 'induction', 'previous_token'], ('layer', 'head'))

    Raises NotRecorded if the trace holds no patterns: record="attention" keeps what gives them.
    """
    tokens = np.asarray(trace.tokens)
    n = len(tokens)
    same = np.tril(tokens[:, None] == tokens[None], -1)
    after = np.zeros_like(same)
    after[:, 1:] = same[:, :-1]
    after &= np.tri(n, dtype=bool)  # what followed an earlier place, up to the query itself
    rules = {"previous_token": np.eye(n, k=-1, dtype=bool), "duplicate_token": same, "induction": after}
    applies = {name: rule.any(-1).sum() for name, rule in rules.items()}

    def measure(at: np.ndarray, pattern: np.ndarray, sink: np.ndarray) -> list[np.ndarray]:
        return [(pattern * rule[at, : pattern.shape[-1]]).sum((-1, -2)) for rule in rules.values()]

    sums = _summed(trace, measure)
    values = {name: total / max(applies[name], 1) for name, total in zip(rules, sums)}
    counts = {name: int(count) for name, count in applies.items()}
    return _by_head(values, {"units": "probability", "n": counts})


def retrieval_scores(trace: Trace, needle: slice) -> xr.DataArray:
    """Which heads copy: of the tokens written from `needle`, for how many a head looked at the very place (layer head).

    A written token is copied if it stands in the needle and nowhere else before it; it counts for the heads whose
    largest attention, at the position that predicted it, is on that place (arXiv 2404.15574).

    >>> trace = wb.trace("What is 12+30?")
    >>> retrieval_scores(trace, slice(0, trace.prompt_length)).dims
    ('layer', 'head')

    Raises NotRecorded if no token was copied from there, or if the trace holds no patterns.
    """
    tokens = trace.tokens
    inside = range(len(tokens))[needle]
    places: dict[int, list[int]] = {}
    for pos, token in enumerate(tokens[: trace.prompt_length]):
        places.setdefault(token, []).append(pos)
    copied = [
        (pos - 1, places[token][0])
        for pos, token in enumerate(tokens)
        if pos >= trace.prompt_length and len(places.get(token, ())) == 1 and places[token][0] in inside
    ]
    if not copied:
        raise NotRecorded(f"nothing that was written stands in {needle} and nowhere else before: nothing was copied")
    hits = np.zeros((trace.config["n_layers"], trace.config["n_heads"]))
    for layer in range(len(hits)):
        for query, place in copied:
            pattern, _ = patterns.rows(trace, layer, slice(None), slice(query, query + 1))
            top = pattern[:, 0].argmax(-1)
            hits[layer] += (top == place) & (pattern[:, 0].max(-1) > 0)
    return _by_head({"retrieval": hits / len(copied)}, {"n": len(copied)})["retrieval"]


def step_attention(trace: Trace, segments: Sequence[Step | slice] | None = None) -> xr.DataArray:
    """How much the tokens of one step look at another (layer head step key_step): a mean over queries, a sum over keys.

    So a row sums to 1 less what went to the sink and to tokens in no step. The segments are the trace's steps, or
    yours.

    >>> attention = wb.attention.step_attention(wb.trace("What is 12+30?"), [slice(0, 9), slice(9, 18)])
    >>> attention.dims, float(attention.sel(step=0, key_step=1).max())  # nobody looks ahead
    (('layer', 'head', 'step', 'key_step'), 0.0)

    Raises NotRecorded without segments, or if the trace holds neither patterns nor, for its own steps, record="steps".
    """
    dims = ("layer", "head", "step", "key_step")
    if segments is None and "step_attention" in trace:
        values = np.asarray(trace["step_attention"])
    else:
        cut = segment_slices(trace, segments)
        if not cut:
            raise NotRecorded("the trace has no steps, for nothing was thought in it: give `segments`, as slices")
        size = np.array([len(range(len(trace))[part]) for part in cut])
        inside = np.zeros((len(trace), len(cut)))
        for number, part in enumerate(cut):
            inside[part, number] = 1

        def measure(at: np.ndarray, pattern: np.ndarray, sink: np.ndarray) -> list[np.ndarray]:
            pooled = pattern @ inside[: pattern.shape[-1]]  # head query key_step
            return [np.einsum("hqs,qt->hts", pooled, inside[at])]

        values = _summed(trace, measure)[0] / size[:, None]
    coords = {dim: np.arange(n) for dim, n in zip(dims, values.shape)}
    return xr.DataArray(values, coords, dims, attrs={"long_name": "attention between steps", "units": "probability"})


def receiver_heads(attention: xr.DataArray, *, min_distance: int = NEAR) -> xr.Dataset:
    """Which steps are looked back at, and which heads single some out (arXiv 2506.19143), from `step_attention`.

    `vertical` (layer head step): the mean attention of all steps at least `min_distance` further on; NaN where there is none.
    `kurtosis` (layer head): Fisher's, over the steps; large for a head that picks few. One step looked at by n gives
    (n² - 3n + 3) / (n - 1) - 3.

    >>> far = np.zeros((1, 1, 14, 14))
    >>> far[..., 6] = 1  # all look at step 6
    >>> found = receiver_heads(xr.DataArray(far, dims=("layer", "head", "step", "key_step")))
    >>> int(found["vertical"][0, 0].argmax("step")), round(float(found["kurtosis"][0, 0]), 2)
    (6, 5.11)

    Raises ArgumentError if there are fewer than `min_distance` + 3 steps.
    """
    n = attention.sizes["step"]
    if n < min_distance + 3:
        raise ArgumentError(
            f"{n} steps are too few: the nearest {min_distance} do not count, so at least {min_distance + 3} are needed."
        )
    values = attention.transpose("layer", "head", "step", "key_step").values
    vertical = np.full((*values.shape[:2], n), np.nan)
    for step in range(n - min_distance):
        vertical[..., step] = values[:, :, step + min_distance :, step].mean(-1)
    known = vertical[..., : n - min_distance]
    apart = known - known.mean(-1, keepdims=True)
    spread = (apart**2).mean(-1)
    with np.errstate(divide="ignore", invalid="ignore"):
        kurtosis = np.where(spread > 0, (apart**4).mean(-1) / spread**2 - 3, np.nan)
    data = {"vertical": (("layer", "head", "step"), vertical), "kurtosis": (("layer", "head"), kurtosis)}
    coords = {name: np.arange(size) for name, size in zip(("layer", "head", "step"), vertical.shape)}
    return xr.Dataset(data, coords, {"min_distance": min_distance, "n": n - min_distance})


def rollout(trace: Trace) -> xr.DataArray:
    """How much of each token has flowed into each position by the last layer (query key): rows sum to 1.

    The product over layers of half the heads' mean pattern and half the residual stream (arXiv 2005.00928); what a head
    gives to its sink stays where it is.

    >>> flow = rollout(wb.trace("What is 12+30?"))
    >>> bool(np.allclose(flow.sum("key"), 1)), bool(np.allclose(np.triu(flow, 1), 0))
    (True, True)

    Raises NotRecorded if the trace holds no patterns: record="attention" keeps what gives them.
    """
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
    """Queries, their patterns (head query key) and sinks (head query), some at a time."""
    for start in range(0, len(trace), QUERIES):
        at = np.arange(start, min(start + QUERIES, len(trace)))
        pattern, sink = patterns.tile(trace, layer, slice(None), slice(start, at[-1] + 1), slice(0, at[-1] + 1))
        yield at, pattern.astype(np.float64), sink.astype(np.float64)


def _summed(trace: Trace, measure: Callable[[np.ndarray, np.ndarray, np.ndarray], list[np.ndarray]]) -> np.ndarray:
    """What `measure` gives for each block of queries, summed, for all layers (figure layer head …)."""
    layers = []
    for layer in range(trace.config["n_layers"]):
        total: list[np.ndarray] | None = None
        for block in _blocks(trace, layer):
            part = measure(*block)
            total = part if total is None else [a + b for a, b in zip(total, part)]
        layers.append(total)
    return np.stack([np.stack(figure) for figure in zip(*layers)])


def _by_head(values: dict[str, np.ndarray], attrs: dict) -> xr.Dataset:
    shape = next(iter(values.values())).shape
    coords = {"layer": np.arange(shape[0]), "head": np.arange(shape[1])}
    return xr.Dataset({name: (("layer", "head"), value) for name, value in values.items()}, coords, attrs)
