"""Attribution graphs of circuit-tracer and Neuronpedia, read from their JSON without either library.

The weight of an edge is how much one feature, token or error node of the replacement model adds to another node.
`read_graph` reads the JSON file that circuit-tracer writes for its own page and that Neuronpedia offers for download.
`step_edges` sums the edges from step to step, for the arcs of the score sheet.
"""

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr

from workbench.checks import check_type
from workbench.errors import ArgumentError, TraceCorrupt, TraceNotFound
from workbench.paths import expanded
from workbench.text import visible
from workbench.traces import Trace
from workbench.traces.steps import Step, segment_slices
from workbench.untrusted import parse_json, read_text

KINDS = {  # feature_type in the file -> kind of node here
    "embedding": "token",
    "cross layer transcoder": "feature",
    "transcoder": "feature",
    "mlp reconstruction error": "error",
    "logit": "logit",
}
EMBEDDED = -1  # the layer of a token's embedding
LARGE = 1e300
MAX_BYTES, MAX_VALUES = 256 << 20, 8_000_000  # of a file; a graph of 10,000 nodes and a million edges has 3 million


def read_graph(path: os.PathLike[str] | str) -> xr.Dataset:
    """The nodes and edges of an attribution graph in a JSON file, as a Dataset over (node; edge).

    Variables over `node`:
        kind: "token", "feature", "error" or "logit"; any other feature_type is kept as it is in the file
        layer: -1 for a token's embedding; n_layers + 1 for a logit, as in the file
        pos: position in the prompt
        feature: its number in its layer's transcoder; -1 for the other kinds
        activation, influence: NaN where the file has none; `influence` is cumulative (circuit-tracer prunes by it)
        probability: of a logit; NaN for the other kinds and where the file has none
        label: the file's text; "" where it has none
    Variables over `edge`: `source` and `target` (indices of nodes) and `weight`.
    The coordinate `token` (pos) is the prompt. Texts are as in the file: display them through `workbench.text`.

    >>> graph = read_graph("tests/interop/circuit_graph.json")
    >>> graph.sizes["node"], graph.sizes["edge"], graph.attrs["slug"]
    (6, 6, 'capital')

    Raises TraceNotFound if the file does not exist, TraceCorrupt if it is not an attribution graph (invalid JSON, a
    missing key or one of another type, an edge from or to an unknown node, an edge whose node id is not unique) or is
    larger than any that circuit-tracer writes.
    """
    path = expanded(path)
    if not os.path.lexists(path):
        raise TraceNotFound(f"there is no file {visible(str(path))[:500]}")
    text = read_text(path, TraceCorrupt, MAX_BYTES)
    data = parse_json(text, visible(str(path)), TraceCorrupt, MAX_VALUES)
    content = _checked_object(data, path.name, metadata=dict, nodes=list, links=list)
    metadata = _checked_object(content["metadata"], "metadata", prompt_tokens=list, slug=str)
    tokens = metadata["prompt_tokens"]
    _check(all(isinstance(token, str) for token in tokens), "metadata.prompt_tokens holds a value that is not a string")
    rows = [_node(node, number, len(tokens)) for number, node in enumerate(content["nodes"])]
    index_of: dict[str, int] = {}
    duplicate_ids = set()
    for index, node in enumerate(content["nodes"]):
        if index_of.setdefault(node["node_id"], index) != index:
            duplicate_ids.add(node["node_id"])
    edges = []
    for number, link in enumerate(content["links"]):
        link = _checked_object(link, f"links[{number}]", source=str, target=str, weight=(int, float))
        _check(abs(link["weight"]) < LARGE, f"links[{number}].weight is larger than {LARGE:g}")
        for node_id in (link["source"], link["target"]):
            _check(node_id in index_of, f"links[{number}] names the node {node_id[:40]!r}, which does not exist")
            _check(node_id not in duplicate_ids, f"links[{number}] names {node_id[:40]!r}, the id of two nodes")
        edges.append((index_of[link["source"]], index_of[link["target"]], float(link["weight"])))
    columns: dict[str, Any] = {}
    for name, kind in _COLUMNS.items():
        columns[name] = "node", np.array([row[name] for row in rows], kind)
    for column, (name, kind) in enumerate((("source", np.int64), ("target", np.int64), ("weight", np.float64))):
        columns[name] = "edge", np.array([edge[column] for edge in edges], kind)
    coords = {
        "id": ("node", np.array([node["node_id"] for node in content["nodes"]], object)),
        "token": ("pos", np.array(tokens, object)),
    }
    attrs = {key: metadata[key] for key in ("slug", "scan", "prompt") if isinstance(metadata.get(key), str)}
    return xr.Dataset(columns, coords, attrs)


def step_edges(graph: xr.Dataset, trace: Trace, segments: Sequence[Step] | None = None) -> xr.DataArray:
    """Attribution from step to step (step key_step): the sum of a graph's edge weights between their positions.

    An entry sums the edges from nodes at positions of `key_step` to nodes at positions of `step`. Steps beyond the end
    of the graph's prompt have 0. `segments` are the steps of the chain of thought by default. Show the sums with
    `score_sheet(trace, arcs=step_edges(…))`.

    >>> step_edges(graph, trace).dims  # doctest: +SKIP
    ('step', 'key_step')

    Raises ArgumentError if the graph belongs to another text: its tokens must be the first tokens of the trace.
    """
    check_type("step_edges", graph, xr.Dataset, "read_graph")
    check_type("step_edges", trace, Trace)
    missing = [name for name in ("token", "pos", "source", "target", "weight") if name not in graph.variables]
    if missing:
        raise ArgumentError(f"graph must be the Dataset of read_graph; this one has no {', '.join(missing)}.")
    tokens = graph["token"].values.tolist()
    if trace.str_tokens[: len(tokens)] != tokens:
        at = next((i for i, (a, b) in enumerate(zip(tokens, trace.str_tokens)) if a != b), min(len(tokens), len(trace)))
        graph_token, trace_token = (
            visible(repr(texts[at])) if at < len(texts) else "nothing" for texts in (tokens, trace.str_tokens)
        )
        raise ArgumentError(
            f"the graph is of another text: at position {at} the graph has {graph_token}, the trace {trace_token}. "
            f"Give the trace of the graph's prompt."
        )
    parts = segment_slices(trace, segments)
    step_at = np.full(len(trace), -1)
    for number, step in enumerate(parts):
        step_at[step.start : step.stop] = number
    step_of_node = step_at[graph["pos"].values]
    source, target = step_of_node[graph["source"].values], step_of_node[graph["target"].values]
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
    place = f"nodes[{number}]"
    fields = _checked_object(
        node, place, node_id=str, feature=(int, type(None)), layer=(str, int), ctx_idx=int, feature_type=str
    )
    pos, kind = fields["ctx_idx"], KINDS.get(fields["feature_type"], fields["feature_type"])
    _check(0 <= pos < length, f"{place}.ctx_idx must be between 0 and {length - 1}, got {pos}")
    layer = EMBEDDED if fields["layer"] == "E" else _layer(fields["layer"], place)
    feature = fields["feature"] if kind == "feature" else None
    name = fields["node_id"].split("_")
    if feature is not None and len(name) == 3 and name[0] == str(layer) and name[2] == str(pos) and name[1].isdecimal():
        feature = int(name[1])  # `feature` itself is layer and number combined into one (Cantor's pairing)
    _check(feature is None or 0 <= feature < 2**62, f"{place}.feature must be between 0 and 2**62 - 1, got {feature}")
    return {
        "kind": kind,
        "layer": layer,
        "pos": pos,
        "feature": -1 if feature is None else feature,
        "activation": _number(node, "activation", place),
        "influence": _number(node, "influence", place),
        "probability": _number(node, "token_prob", place) if kind == "logit" else np.nan,
        "label": node["clerp"] if isinstance(node.get("clerp"), str) else "",
    }


def _layer(value: str | int, place: str) -> int:
    text = str(value)
    _check(text.isascii() and text.isdecimal() and len(text) < 6, f"{place}.layer is {text[:40]!r}, not a layer")
    return int(text)


def _number(node: dict[str, Any], key: str, place: str) -> float:
    value = node.get(key)
    _check(
        value is None or (type(value) in (int, float) and abs(value) < LARGE),
        f"{place}.{key} is {str(value)[:40]!r}, not a finite number",
    )
    return np.nan if value is None else float(value)


def _checked_object(value: Any, place: str, **kinds: Any) -> dict[str, Any]:
    """`value` itself, if it is a JSON object that has these keys with values of these types."""
    _check(isinstance(value, dict), f"{place} is not a JSON object")
    for key, kind in kinds.items():
        _check(key in value, f"{place} lacks {key!r}")
        fits = isinstance(value[key], kind) and not isinstance(value[key], bool)
        _check(fits, f"{place}.{key} is {str(value[key])[:40]!r}, which has the wrong type")
    return value


def _check(condition: bool, problem: str) -> None:
    if not condition:
        raise TraceCorrupt(f"this is not an attribution graph: {visible(problem)}")
