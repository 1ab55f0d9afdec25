"""INIF: NDIF's own package reads the same tokens and spans from the files as the trace holds."""

import gzip
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import workbench as wb
from tests.interop.test_xarray_tables import HOSTILE, made
from workbench.errors import FileError
from workbench.interop.inif import save_inif, to_inif
from workbench.traces import Trace
from workbench.traces.spans import Span

inif = pytest.importorskip("inif", reason="inif is NDIF's package: pip install -c constraints.txt inif")


@pytest.fixture(scope="module")
def trace() -> Trace:
    return wb.trace(wb.chat("What is 247+138?", reasoning="high"))


@pytest.mark.parametrize("name", ["a.inif.json", "a.json.gz", "a.inif"])
def test_ndifs_package_loads_the_exported_trace(trace, tmp_path, name):
    document = inif.load(save_inif(trace, tmp_path / name))
    [sample] = document.samples
    assert (
        sample.id == trace.id and document.metadata.model.name == "pocket" and document.metadata.inif_version == "0.1"
    )
    assert [t.id for t in sample.tokens] == trace.tokens and [t.token for t in sample.tokens] == trace.str_tokens
    assert sample.texts == ["".join(trace.str_tokens)]
    assert (sample.input_tokens, sample.output_tokens) == (trace.prompt_length, len(trace) - trace.prompt_length)


def test_inif_selectors_find_messages_steps_and_tags(trace):
    from inif.io import from_dict
    from inif.selectors import select_by_span, select_by_tag

    document = from_dict(to_inif(trace))

    [sample] = document.samples
    for number, step in enumerate(wb.steps(trace)):
        chosen = select_by_span(sample, f"step {number}")
        assert "".join(t.token or "" for t in chosen.tokens) == step.text
    for number, span in enumerate(trace.spans):
        assert select_by_span(sample, f"message {number}").positions == list(range(span.start, span.stop))
    final = select_by_tag(sample, "final")
    assert "".join(t.token or "" for t in final.tokens) == trace.text(channel="final")
    assert select_by_tag(sample, "generated").positions == list(range(trace.prompt_length, len(trace)))


def test_summaries_are_fields_of_tokens_and_nan_is_absent(trace):
    tokens = to_inif(trace, ["logprob"])["samples"][0]["tokens"]
    assert "logprob" not in tokens[0] and "entropy" not in tokens[5]
    assert [t["logprob"] for t in tokens[1:]] == trace["logprob"][1:].tolist()


def test_the_viewer_of_the_package_escapes_what_a_model_wrote(tmp_path):
    """The viewer is not part of workbench: a hostile token is exported unchanged, and the viewer must escape it."""
    hostile = made(spans=[Span(0, 9, 1, 9, "user")])
    document = inif.load(save_inif(hostile, tmp_path / "a.inif.json"))
    assert [t.token for t in document.samples[0].tokens] == HOSTILE
    inif.save_html(document, tmp_path / "a.html")
    assert "<img src=x" not in (tmp_path / "a.html").read_text("utf-8")


@given(texts=st.lists(st.text(max_size=6), min_size=9, max_size=9))
@settings(max_examples=30, deadline=None)
def test_any_text_survives_exactly(texts, tmp_path_factory):
    trace = made(str_tokens=texts)
    document = inif.load(save_inif(trace, tmp_path_factory.mktemp("i") / "a.inif"))
    assert [t.token for t in document.samples[0].tokens] == trace.str_tokens


def test_repeated_exports_are_byte_identical_and_plain_json(trace, tmp_path):
    first, second = (save_inif(trace, tmp_path / name).read_bytes() for name in ("a.inif", "b.inif"))
    assert first == second and json.loads(gzip.decompress(first)) == to_inif(trace)


def test_several_traces_of_one_model_are_samples_of_one_document(trace):
    other = wb.trace("What is 12+30?")
    assert [s["id"] for s in to_inif([trace, other])["samples"]] == [trace.id, other.id]
    with pytest.raises(ValueError, match="about one model, got traces of pocket, made"):
        to_inif([trace, made()])
    with pytest.raises(ValueError, match="given twice"):
        to_inif([trace, trace])
    with pytest.raises(ValueError, match="of none"):
        to_inif([])
    with pytest.raises(ValueError, match=r"'margin' does not hold one number .* do: logprob, entropy"):
        to_inif(trace, ["margin"])


def test_a_failed_write_leaves_the_existing_file_unchanged(trace, tmp_path):
    path = tmp_path / "a.inif.json"
    path.write_text("mine")
    with pytest.raises(ValueError, match="margin"):
        save_inif(trace, path, ["margin"])
    with pytest.raises(FileError, match="there is no folder"):
        save_inif(trace, tmp_path / "none" / "a.json")
    assert path.read_text() == "mine" and [p.name for p in tmp_path.iterdir()] == ["a.inif.json"]
