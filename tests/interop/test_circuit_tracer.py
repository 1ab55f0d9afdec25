"""Attribution graphs: what circuit-tracer wrote is what is read, node by node and edge by edge, and nothing else is."""

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
def told() -> dict:
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


def of(pieces: list[str]) -> Trace:
    return Trace(manifest(9, str_tokens=pieces, spans=[Span(0, 9, 1, 9, "assistant", "analysis")]), arrays(9))


def test_steps_get_the_sum_of_the_edges_between_their_positions():
    graph, trace = read_graph(FILE), of([*TOKENS, " Austin", ".", " Yes"])
    parts = [Step(0, 3, ""), Step(4, 5, ""), Step(5, 7, ""), Step(7, 9, "")]
    found = step_edges(graph, trace, parts)
    want = np.zeros((4, 4))
    for source, target, weight in zip(
        graph["source"].values, graph["target"].values, graph["weight"].values, strict=True
    ):
        a, b = (
            next(i for i, s in enumerate(parts) if s.start <= graph["pos"].values[n] < s.stop) for n in (source, target)
        )
        want[b, a] += weight
    assert np.array_equal(found, want) and want[1, 0] == 0.5 and want[2, 1] == -1.625
    assert found.dims == ("step", "key_step") and found.attrs["edges"] == 6
    assert float(step_edges(graph, trace, parts[1:2]).sum()) == 2.0  # edges of other steps are in none
    assert not np.triu(found, 1).any()  # nothing flows backwards


def test_the_score_sheet_draws_them(told, tmp_path):
    """A graph of the first tokens of a real run: its steps are those of the sheet."""
    trace = wb.trace(wb.chat("What is 247+138?", reasoning="high"))
    told["metadata"]["prompt_tokens"] = trace.str_tokens
    first, second = wb.steps(trace)[:2]
    for node, pos in zip(
        told["nodes"], (first.start, first.start, first.stop - 1, second.start, second.start, second.start)
    ):
        node["ctx_idx"] = pos
    path = tmp_path / "g.json"
    path.write_text(json.dumps(told))
    edges = step_edges(read_graph(path), trace)
    assert float(edges[1, 0]) == -1.5 - 0.125 and float(edges[0, 0]) == 2.5 and float(edges[1, 1]) == 4.25
    drawn = page(score_sheet(trace, lanes=["arcs"], arcs=edges))
    assert "attribution" in drawn and drawn != page(score_sheet(trace, lanes=["arcs"], arcs=0 * edges))


def test_a_graph_of_another_text_is_refused():
    graph = read_graph(FILE)
    for pieces in ([*TOKENS[:3], " in", *TOKENS[4:], " Austin", ".", ""], [*TOKENS[1:], "a", "b", "c", "d"]):
        with pytest.raises(ValueError, match="of another text: at position"):
            step_edges(graph, of(pieces))
    short = Trace(replace(manifest(3), str_tokens=TOKENS[:3], spans=[]), {"logprob": arrays(3)["logprob"]})
    with pytest.raises(ValueError, match="at position 3 it has ' of', the trace nothing"):
        step_edges(graph, short)


def change(told: dict, *path, value=None) -> dict:
    inner = told
    for key in path[:-1]:
        inner = inner[key]
    if value is None:
        del inner[path[-1]]
    else:
        inner[path[-1]] = value
    return told


@pytest.mark.parametrize(
    ("path", "value", "says"),
    [
        (("nodes",), None, "lacks 'nodes'"),
        (("links",), {}, "links is '{}'"),
        (("metadata", "prompt_tokens"), [1], "is no text"),
        (("nodes", 2, "layer"), "zero", "has the layer 'zero'"),
        (("nodes", 2, "ctx_idx"), 6, "at position 6, of 6"),
        (("nodes", 2, "ctx_idx"), True, "which it cannot be"),
        (("nodes", 2, "activation"), "much", "no number"),
        (("nodes", 5, "token_prob"), 10**400, "no number"),
        (("links", 0, "weight"), "1", "which it cannot be"),
        (("links", 0, "weight"), 10**400, "over every number"),
        (("links", 0, "source"), "9_9_9\u202e", r"9_9_9\\u202e', and there is no such node"),
        (("nodes", 3), [], r"nodes\[3\] is no JSON object"),
    ],
)
def test_what_is_no_graph_is_refused_with_the_place(path, value, says, told, tmp_path):
    file = tmp_path / "g.json"
    file.write_text(json.dumps(change(told, *path, value=value)))
    with pytest.raises(TraceCorrupt, match=says):
        read_graph(file)


def test_two_nodes_of_one_name_are_refused_where_an_edge_could_mean_either(told, tmp_path):
    """An error of layer 4 and feature 4 of layer 0 have one name in this format, at the same position."""
    file = tmp_path / "g.json"
    told["nodes"].append(told["nodes"][2] | {"feature_type": "mlp reconstruction error", "layer": "4"})
    file.write_text(json.dumps(told))
    with pytest.raises(TraceCorrupt, match="two nodes have that name"):
        read_graph(file)
    told["links"] = [link for link in told["links"] if told["nodes"][2]["node_id"] not in link.values()]
    file.write_text(json.dumps(told))
    assert read_graph(file).sizes["node"] == 7


def test_a_file_that_is_not_there_or_no_json_is_an_error_that_says_so(tmp_path):
    with pytest.raises(TraceNotFound, match="no file"):
        read_graph(tmp_path / "none.json")
    (tmp_path / "a.json").write_text("{")
    with pytest.raises(TraceCorrupt, match="not valid JSON"):
        read_graph(tmp_path / "a.json")


@given(data=st.data())
@settings(max_examples=150, deadline=None)
def test_a_damaged_file_is_an_error_of_ours_or_a_whole_graph(data, tmp_path_factory):
    whole = bytearray(FILE.read_bytes())
    at = data.draw(st.integers(0, len(whole) - 1))
    whole[at] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.mktemp("g") / "g.json"
    path.write_bytes(whole)
    try:
        graph = read_graph(path)
    except TraceCorrupt:
        return
    assert graph.sizes["node"] == 6 and graph.sizes["edge"] == 6 and bool(np.isfinite(graph["weight"]).all())
