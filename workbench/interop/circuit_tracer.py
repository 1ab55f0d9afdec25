"""Attribution graphs of circuit-tracer and Neuronpedia, read from their JSON without either: nodes and edges as arrays.

A graph says how much one feature, token or error of the replacement model adds to another. `read_graph` reads the file
that circuit-tracer writes for its own page and that Neuronpedia gives to download; `step_edges` sums it from step to
step, for the arcs of the score sheet.
"""

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr

from workbench.errors import ArgumentError, TraceCorrupt, TraceNotFound
from workbench.paths import expanded
from workbench.text import visible
from workbench.traces import Trace
from workbench.traces.canonical_json import parse
from workbench.traces.steps import Step, steps

KINDS = {  # their feature_type -> ours
    "embedding": "token",
    "cross layer transcoder": "feature",
    "transcoder": "feature",
    "mlp reconstruction error": "error",
    "logit": "logit",
}
EMBEDDED = -1  # the layer of a token's embedding
LARGE = 1e300


def read_graph(path: os.PathLike | str) -> xr.Dataset:
    """The graph in a JSON file (node; edge).

    Of each node: `kind` ("token", "feature", "error", "logit", or theirs if it is another), `layer` (-1 for a token's
    embedding; a logit's is theirs, n_layers + 1), `pos`, `feature` (of its layer's transcoder; -1 if it is none),
    `activation`, `influence` (cumulated, as they prune by it) and `probability` of a logit, NaN where the file has
    none, and `label`. Of each edge: `source` and `target` (places of nodes) and `weight`. `token` (pos) is the prompt.
    Texts are as the file has them: show them through `workbench.text`.

    >>> graph = read_graph("tests/interop/circuit_graph.json")
    >>> graph.sizes["node"], graph.sizes["edge"], graph.attrs["slug"]
    (6, 6, 'capital')

    Raises TraceNotFound if there is no file, TraceCorrupt if it is not such a graph: not JSON, a key missing or of
    another type, an edge from or to a node that there is not, or two nodes of one name with an edge to it.
    """
    path = expanded(path)
    try:
        data = parse(path.read_bytes(), str(path))
    except FileNotFoundError:
        raise TraceNotFound(f"there is no file {visible(str(path))}") from None
    told = _take(data, path.name, metadata=dict, nodes=list, links=list)
    about = _take(told["metadata"], "metadata", prompt_tokens=list, slug=str)
    tokens = about["prompt_tokens"]
    _want(all(isinstance(token, str) for token in tokens), "metadata.prompt_tokens holds something that is no text")
    rows = [_node(node, number, len(tokens)) for number, node in enumerate(told["nodes"])]
    places: dict[str, int] = {}
    twice = set()
    for place, node in enumerate(told["nodes"]):
        twice |= {node["node_id"]} & set(places)
        places.setdefault(node["node_id"], place)
    ends = []
    for number, link in enumerate(told["links"]):
        link = _take(link, f"links[{number}]", source=str, target=str, weight=(int, float))
        _want(abs(link["weight"]) < LARGE, f"links[{number}].weight is over every number")
        for end in (link["source"], link["target"]):
            _want(end in places, f"links[{number}] ends at {end[:40]!r}, and there is no such node")
            _want(end not in twice, f"links[{number}] ends at {end[:40]!r}, and two nodes have that name")
        ends.append((places[link["source"]], places[link["target"]], float(link["weight"])))
    columns: dict[str, Any] = {}
    for name, kind in _COLUMNS.items():
        columns[name] = "node", np.array([row[name] for row in rows], kind)
    for name, kind, at in (("source", np.int64, 0), ("target", np.int64, 1), ("weight", np.float64, 2)):
        columns[name] = "edge", np.array([end[at] for end in ends], kind)
    coords = {
        "id": ("node", np.array([node["node_id"] for node in told["nodes"]], object)),
        "token": ("pos", np.array(tokens, object)),
    }
    attrs = {
        key: told["metadata"][key] for key in ("slug", "scan", "prompt") if isinstance(told["metadata"].get(key), str)
    }
    return xr.Dataset(columns, coords, attrs)


def step_edges(graph: xr.Dataset, trace: Trace, parts: Sequence[Step] | None = None) -> xr.DataArray:
    """What a graph adds from step to step (step key_step): the sum of the weights of its edges from nodes at positions
    of `key_step` to nodes at positions of `step`. Steps that the graph's prompt does not reach have 0.

    `parts` are the steps of the chain of thought by default. Shown with `score_sheet(trace, arcs=step_edges(…))`.

    >>> step_edges(graph, trace).dims  # doctest: +SKIP
    ('step', 'key_step')

    Raises ArgumentError if the graph is of another text: its tokens must be the first of the trace.
    """
    tokens = graph["token"].values.tolist()
    if trace.str_tokens[: len(tokens)] != tokens:
        at = next((i for i, (a, b) in enumerate(zip(tokens, trace.str_tokens)) if a != b), min(len(tokens), len(trace)))
        theirs, ours = (
            visible(repr(texts[at])) if at < len(texts) else "nothing" for texts in (tokens, trace.str_tokens)
        )
        raise ArgumentError(f"the graph is of another text: at position {at} it has {theirs}, the trace {ours}")
    parts = steps(trace) if parts is None else parts
    step_at = np.full(len(trace), -1)
    for number, step in enumerate(parts):
        step_at[step.start : step.stop] = number
    of = step_at[graph["pos"].values]  # by node
    source, target = of[graph["source"].values], of[graph["target"].values]
    both = (source >= 0) & (target >= 0)
    summed = np.zeros((len(parts), len(parts)))
    np.add.at(summed, (target[both], source[both]), graph["weight"].values[both])
    numbers = np.arange(len(parts))
    attrs = {"long_name": "attribution", "units": "1", "edges": int(both.sum()), "n": graph.sizes["edge"]}
    return xr.DataArray(summed, {"step": numbers, "key_step": numbers}, ("step", "key_step"), attrs=attrs)


_COLUMNS: dict[str, Any] = {
    "kind": object,
    "layer": np.int64,
    "pos": np.int64,
    "feature": np.int64,
    "activation": np.float64,
    "influence": np.float64,
    "probability": np.float64,
    "label": object,
}


def _node(node: Any, number: int, length: int) -> dict[str, Any]:
    what = f"nodes[{number}]"
    told = _take(node, what, node_id=str, feature=(int, type(None)), layer=(str, int), ctx_idx=int, feature_type=str)
    pos, kind = told["ctx_idx"], KINDS.get(told["feature_type"], told["feature_type"])
    _want(0 <= pos < length, f"{what} is at position {pos}, of {length}")
    layer = EMBEDDED if told["layer"] == "E" else _layer(told["layer"], what)
    feature = told["feature"] if kind == "feature" else None
    name = told["node_id"].split("_")
    if feature is not None and len(name) == 3 and name[0] == str(layer) and name[2] == str(pos) and name[1].isdecimal():
        feature = int(name[1])  # `feature` itself is layer and number paired into one (Cantor's pairing)
    _want(feature is None or 0 <= feature < 2**62, f"{what} has the feature {feature}")
    return {
        "kind": kind,
        "layer": layer,
        "pos": pos,
        "feature": -1 if feature is None else feature,
        "activation": _number(node, "activation", what),
        "influence": _number(node, "influence", what),
        "probability": _number(node, "token_prob", what) if kind == "logit" else np.nan,
        "label": node["clerp"] if isinstance(node.get("clerp"), str) else "",
    }


def _layer(value: str | int, what: str) -> int:
    text = str(value)
    _want(text.isascii() and text.isdecimal() and len(text) < 6, f"{what} has the layer {text[:40]!r}")
    return int(text)


def _number(node: dict[str, Any], key: str, what: str) -> float:
    value = node.get(key)
    _want(
        value is None or (type(value) in (int, float) and abs(value) < LARGE),
        f"{what}.{key} is {str(value)[:40]!r}, no number",
    )
    return np.nan if value is None else float(value)


def _take(value: Any, what: str, **kinds: Any) -> dict[str, Any]:
    """The same, if it is an object that has these keys with values of these types."""
    _want(isinstance(value, dict), f"{what} is no JSON object")
    for key, kind in kinds.items():
        _want(key in value, f"{what} lacks {key!r}")
        fits = isinstance(value[key], kind) and not isinstance(value[key], bool)
        _want(fits, f"{what}.{key} is {str(value[key])[:40]!r}, which it cannot be")
    return value


def _want(truth: bool, otherwise: str) -> None:
    if not truth:
        raise TraceCorrupt(f"this is no attribution graph: {visible(otherwise)}")
