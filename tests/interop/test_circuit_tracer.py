"""Attribution graphs: every node and edge that circuit-tracer wrote is read, and an invalid file is refused."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import workbench as wb
from tests.interop.circuit_graph import LAYERS, TOKENS
from tests.traces.made import arrays, manifest
from workbench.errors import TraceCorrupt, TraceNotFound
from workbench.interop.circuit_tracer import read_graph, step_edges
from workbench.traces import Trace
from workbench.traces.spans import Span
from workbench.traces.steps import Step
from workbench.views import score_sheet
from workbench.views.page import page

FILE = Path(__file__).parent / "circuit_graph.json"  # written by circuit-tracer 0.5.0


@pytest.fixture
def content() -> dict:
    return json.loads(FILE.read_text("utf-8"))


def test_nodes_and_edges_are_those_that_circuit_tracer_wrote():
    graph = read_graph(FILE)
    assert graph["kind"].values.tolist() == ["token", "token", "feature", "feature", "error", "logit"]
    assert graph["layer"].values.tolist() == [-1, -1, 0, 2, 3, LAYERS + 1]
    assert graph["pos"].values.tolist() == [1, 4, 4, 5, 5, 5]
    assert graph["feature"].values.tolist() == [-1, -1, 7001, 131071, -1, -1]  # not their paired number
    assert np.array_equal(graph["activation"], [np.nan, np.nan, 12.5, 3.25, np.nan, np.nan], equal_nan=True)
    assert graph["influence"].values[:5].tolist() == [0.2, 0.4, 0.6, 0.8, 0.9]
    assert np.isnan(graph["probability"].values[:5]).all() and float(graph["probability"][5]) == 0.625
    assert str(graph["label"].values[5]) == 'Output " Austin" (p=0.625)'
    edges = list(zip(graph["source"].values, graph["target"].values, graph["weight"].values, strict=True))
    assert edges == [(0, 2, 0.5), (1, 2, 2.0), (2, 3, -1.5), (3, 5, 4.0), (4, 5, 0.25), (1, 5, -0.125)]
    assert graph["token"].values.tolist() == TOKENS and graph.attrs["scan"] == "gpt-oss-20b"


def trace_with(pieces: list[str]) -> Trace:
    return Trace(manifest(9, str_tokens=pieces, spans=[Span(0, 9, 1, 9, "assistant", "analysis")]), arrays(9))


def test_steps_get_the_sum_of_the_edges_between_their_positions():
    graph, trace = read_graph(FILE), trace_with([*TOKENS, " Austin", ".", " Yes"])
    segments = [Step(0, 3, ""), Step(4, 5, ""), Step(5, 7, ""), Step(7, 9, "")]
    summed = step_edges(graph, trace, segments)
    expected = np.zeros((4, 4))
    for source, target, weight in zip(
        graph["source"].values, graph["target"].values, graph["weight"].values, strict=True
    ):
        a, b = (
            next(i for i, s in enumerate(segments) if s.start <= graph["pos"].values[n] < s.stop)
            for n in (source, target)
        )
        expected[b, a] += weight
    assert np.array_equal(summed, expected) and expected[1, 0] == 0.5 and expected[2, 1] == -1.625
    assert summed.dims == ("step", "key_step") and summed.attrs["edges"] == 6
    assert float(step_edges(graph, trace, segments[1:2]).sum()) == 2.0  # edges from or to other steps do not count
    assert not np.triu(summed, 1).any()  # nothing flows backwards


def test_the_score_sheet_draws_step_edges(content, tmp_path):
    """A graph of the first tokens of a real run: its steps are those of the sheet."""
    trace = wb.trace(wb.chat("What is 247+138?", reasoning="high"))
    content["metadata"]["prompt_tokens"] = trace.str_tokens
    first, second = wb.steps(trace)[:2]
    for node, pos in zip(
        content["nodes"], (first.start, first.start, first.stop - 1, second.start, second.start, second.start)
    ):
        node["ctx_idx"] = pos
    path = tmp_path / "g.json"
    path.write_text(json.dumps(content))
    edges = step_edges(read_graph(path), trace)
    assert float(edges[1, 0]) == -1.5 - 0.125 and float(edges[0, 0]) == 2.5 and float(edges[1, 1]) == 4.25
    html = page(score_sheet(trace, lanes=["arcs"], arcs=edges))
    assert "attribution" in html and html != page(score_sheet(trace, lanes=["arcs"], arcs=0 * edges))


def test_a_graph_of_another_text_is_refused():
    graph = read_graph(FILE)
    for pieces in ([*TOKENS[:3], " in", *TOKENS[4:], " Austin", ".", ""], [*TOKENS[1:], "a", "b", "c", "d"]):
        with pytest.raises(ValueError, match="of another text: at position"):
            step_edges(graph, trace_with(pieces))
    short = Trace(replace(manifest(3), str_tokens=TOKENS[:3], spans=[]), {"logprob": arrays(3)["logprob"]})
    with pytest.raises(ValueError, match="at position 3 the graph has ' of', the trace nothing"):
        step_edges(graph, short)


def change(content: dict, *path, value=None) -> dict:
    inner = content
    for key in path[:-1]:
        inner = inner[key]
    if value is None:
        del inner[path[-1]]
    else:
        inner[path[-1]] = value
    return content


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("nodes",), None, "lacks 'nodes'"),
        (("links",), {}, "links is '{}'"),
        (("metadata", "prompt_tokens"), [1], "is not a string"),
        (("nodes", 2, "layer"), "zero", "layer is 'zero', not a layer"),
        (("nodes", 2, "ctx_idx"), 6, "ctx_idx must be between 0 and 5, got 6"),
        (("nodes", 2, "ctx_idx"), True, "which has the wrong type"),
        (("nodes", 2, "activation"), "much", "not a finite number"),
        (("nodes", 5, "token_prob"), 10**400, "not a finite number"),
        (("links", 0, "weight"), "1", "which has the wrong type"),
        (("links", 0, "weight"), 10**400, r"weight is larger than 1e\+300"),
        (("links", 0, "source"), "9_9_9\u202e", r"9_9_9\\u202e', which does not exist"),
        (("nodes", 3), [], r"nodes\[3\] is not a JSON object"),
    ],
)
def test_an_invalid_graph_is_refused_with_its_json_path(path, value, message, content, tmp_path):
    file = tmp_path / "g.json"
    file.write_text(json.dumps(change(content, *path, value=value)))
    with pytest.raises(TraceCorrupt, match=message):
        read_graph(file)


def test_an_edge_to_an_ambiguous_node_id_is_refused(content, tmp_path):
    """In this format an error node of layer 4 and feature 4 of layer 0 have the same id at the same position."""
    file = tmp_path / "g.json"
    content["nodes"].append(content["nodes"][2] | {"feature_type": "mlp reconstruction error", "layer": "4"})
    file.write_text(json.dumps(content))
    with pytest.raises(TraceCorrupt, match="the id of two nodes"):
        read_graph(file)
    content["links"] = [link for link in content["links"] if content["nodes"][2]["node_id"] not in link.values()]
    file.write_text(json.dumps(content))
    assert read_graph(file).sizes["node"] == 7


def test_a_missing_file_and_invalid_json_are_errors_with_the_reason(tmp_path):
    with pytest.raises(TraceNotFound, match="no file"):
        read_graph(tmp_path / "none.json")
    (tmp_path / "a.json").write_text("{")
    with pytest.raises(TraceCorrupt, match="not valid JSON"):
        read_graph(tmp_path / "a.json")


@given(data=st.data())
@settings(max_examples=150, deadline=None)
def test_a_damaged_file_is_a_corrupt_trace_or_a_complete_graph(data, tmp_path_factory):
    content = bytearray(FILE.read_bytes())
    at = data.draw(st.integers(0, len(content) - 1))
    content[at] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.mktemp("g") / "g.json"
    path.write_bytes(content)
    try:
        graph = read_graph(path)
    except TraceCorrupt:
        return
    assert graph.sizes["node"] == 6 and graph.sizes["edge"] == 6 and bool(np.isfinite(graph["weight"]).all())
