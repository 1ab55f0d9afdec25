from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.traces import made
from workbench.errors import ArgumentError, TraceCorrupt, TraceError, TraceUnsafe, TraceVersion
from workbench.traces.canonical_json import canonical, parse
from workbench.traces.manifest import Chunk, Manifest, TensorInfo
from workbench.traces.reader import decode_manifest, encode_manifest
from workbench.traces.spans import Span

INFO = TensorInfo("F32", (9, 10), ("pos", "d_model"), "live", (Chunk("part-00000.safetensors", (9, 10), "a" * 64),))
TOOK = {
    "seconds": 1.5, "phases": {"prefill": 0.5, "decode": 1.0}, "first_token": 0.6, "n_prefilled": 5, "n_decoded": 4,
    "peak_memory": 10**9, "peak_device_memory": None, "bytes_written": 0, "energy": {"package-0": 12.5},
}  # fmt: skip
FULL = made.manifest(
    generation=made.GENERATION,
    prompt_length=4,
    edits=[{"identity": "zero(blocks.0.hook_mlp_out)", "n_calls": 9, "change": 0.5}],
    replayed_routing={"compared": 27, "different": 1},
    omitted=["band for sliding layers"],
    notes=["<script>alert(1)</script>\u202e\x00"],
    spans=[Span(0, 4, 1, 3, "user"), Span(4, 9, 6, 9, "assistant", "analysis", None, None, "json", False)],
    tensors={"blocks.0.hook_resid_post": INFO},
    follows="0123456789abcdef" * 2,
    took=TOOK,
)


@pytest.mark.parametrize("manifest", [made.manifest(), made.manifest(0), FULL], ids=["plain", "empty", "full"])
def test_a_manifest_is_unchanged_after_writing_and_reading(manifest: Manifest) -> None:
    assert decode_manifest(encode_manifest(manifest)) == manifest
    assert Manifest.from_json(manifest.to_json()) == manifest


texts = st.text(st.characters(), max_size=20)
plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(1 - 2**64, 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
)


@given(
    st.lists(texts, max_size=6),
    st.dictionaries(texts, plain, max_size=3),
    st.lists(texts, max_size=2),
    st.floats(0) | st.just(float("nan")),
)
def test_any_text_and_any_plain_value_are_unchanged_after_writing_and_reading(
    pieces: list[str], numerics: dict, notes: list[str], worst: float
) -> None:
    manifest = made.manifest(
        len(pieces),
        str_tokens=pieces,
        numerics=numerics,
        notes=notes,
        edits=[{"identity": "x", **numerics, "identity": "x"}],  # noqa: F601
        verification=[made.HOLDS | {"status": "fails", "max_error": worst}],
    )
    data = encode_manifest(manifest)
    assert data.isascii() and decode_manifest(data) == manifest
    for given_text, stored_text in zip(pieces, manifest.str_tokens, strict=True):
        half = any("\ud800" <= char <= "\udfff" for char in given_text)
        assert stored_text != given_text if half else stored_text == given_text


def test_numpy_numbers_and_tuples_become_plain() -> None:
    manifest = made.manifest(
        2, tokens=np.array([3, 4]), numerics={"threads": np.int64(2), "versions": ("a", np.float32(0.5))}
    )
    assert manifest.tokens == [3, 4] and type(manifest.tokens[0]) is int
    assert manifest.numerics == {"threads": 2, "versions": ["a", 0.5]}


@pytest.mark.parametrize("worst", [float("nan"), float("inf"), np.float32("nan")])
def test_a_max_error_that_is_not_finite_is_moved_to_the_reason(worst: float) -> None:
    (line,) = made.manifest(
        verification=[made.HOLDS | {"status": "fails", "max_error": worst, "reason": "overflow"}]
    ).verification
    assert line["max_error"] is None
    assert line["reason"] == f"overflow (the worst difference was {float(worst)})"


def test_the_id_depends_on_the_run_and_not_on_its_results() -> None:
    one = made.manifest(prompt_length=4, generation=made.GENERATION)
    for change in (
        {"created": "2031-01-01"},
        {"status": "partial"},
        {"notes": ["x"]},
        {"verification": []},
        {"tokens": one.tokens[:4] + [1, 1, 1, 1, 1]},
        {"generation": made.GENERATION | {"finish_reason": "length"}},
        {"generation": made.GENERATION | {"temperature": 0.0}},
        {"took": TOOK},
        {"follows": "0" * 32},
    ):
        assert replace(one, **change).id == one.id, change
    for change in (
        {"model": one.model | {"weights_digest": "other"}},
        {"model": one.model | {"tokenizer_digest": None}},
        {"tokens": [*one.tokens[:3], 10 - one.tokens[3], *one.tokens[4:]]},
        {"record": ["patterns"]},
        {"edits": [{"identity": "zero"}]},
        {"generation": made.GENERATION | {"seed": 2}},
        {"generation": None},
        {"numerics": one.numerics | {"dtype": "bfloat16"}},
    ):
        assert replace(one, **change).id != one.id, change


def test_an_id_stays_the_same_between_releases() -> None:
    assert FULL.id == "d3b87da6d1884bef33104d0dab9025d0"


def test_the_content_hash_is_independent_of_the_time_only() -> None:
    assert replace(FULL, created="x", took=None).content_hash == FULL.content_hash
    assert replace(FULL, took=TOOK | {"n_decoded": 5}).content_hash == FULL.content_hash
    assert replace(FULL, follows=None).content_hash != FULL.content_hash
    measured = [line | {"max_error": 3e-7, "reason": "largest in layer 2"} for line in FULL.verification]
    assert measured and replace(FULL, verification=measured).content_hash == FULL.content_hash
    failed = [line | {"status": "fails"} for line in FULL.verification]
    assert replace(FULL, verification=failed).content_hash != FULL.content_hash
    assert replace(FULL, notes=[]).content_hash != FULL.content_hash
    assert replace(FULL, tensors={}).content_hash != FULL.content_hash


WRONG_WRITTEN: list[Any] = [  # of nine tokens
    None,
    "prompt",
    {},
    [],
    [[0, 9]],
    [[0, 9, "prompt", 1]],
    [{"start": 0, "stop": 9, "who": "prompt"}],
    [[0, 8, "prompt"]],
    [[0, 10, "prompt"]],
    [[1, 9, "prompt"]],
    [[0, 4, "prompt"], [5, 9, "model"]],
    [[0, 5, "prompt"], [4, 9, "model"]],
    [[4, 9, "model"], [0, 4, "prompt"]],
    [[0, 4, "prompt"], [4, 4, "python"], [4, 9, "model"]],
    [[0, 4, "prompt"], [4, 9, "prompt"]],
    [[0.0, 9, "prompt"]],
    [[False, 9, "prompt"]],
    *([[0, 9, who]] for who in ("", "user", "assistant", "final", "a b", "a\n", "a\u202eb", "x" * 300, 3, None, [])),
]
WRONG_TOOK: list[dict[str, Any]] = [
    {"seconds": -1.5},
    {"seconds": 2.0},  # the phases add up to 1.5
    {"phases": {"prefill": 0.5, "decode": -1.0, "write": 2.0}},
    {"phases": {"prefill": 0.5, "coffee": 1.0}},
    {"phases": [0.5, 1.0]},
    {"first_token": 1.6},
    {"n_decoded": -1},
    {"n_decoded": 1.0},
    {"peak_memory": "1 GB"},
    {"energy": {}},
    {"energy": {"package-0": -1.0}},
    {"energy": 12.5},
    {"more": 1},
]
WRONG: list[tuple[str, Any]] = [
    ("status", "done"),
    ("created", 3),
    ("model", {}),
    ("model", {**made.manifest().model, "config": {}}),
    ("model", {**made.manifest().model, "config": {"n_layers": True}}),
    ("model", {**made.manifest().model, "config": {"n_layers": 10**9}}),
    ("model", {**made.manifest().model, "more": 1}),
    ("tokens", [1.0] * 9),
    ("tokens", [True] * 9),
    ("tokens", [-1] * 9),
    ("tokens", [0] * 8),
    ("tokens", "123456789"),
    ("tokens", None),
    ("str_tokens", [None] * 9),
    ("str_tokens", {}),
    *[("written", written) for written in WRONG_WRITTEN],
    *[("took", TOOK | change) for change in WRONG_TOOK],
    ("took", {}),
    ("follows", "abc"),
    ("follows", "A" * 32),
    ("follows", 7),
    ("record", "residuals"),
    ("edits", [{}]),
    ("edits", [{"identity": 3}]),
    ("generation", {}),
    ("generation", made.GENERATION | {"top_k": 3}),
    ("generation", made.GENERATION | {"stop": [[9]]}),
    ("generation", made.GENERATION | {"temperature": "0"}),
    ("numerics", []),
    ("replayed_routing", {"compared": 1}),
    ("replayed_routing", {"compared": 1, "different": -1}),
    ("verification", [made.HOLDS | {"status": "true"}]),
    ("verification", [{}]),
    ("notes", [1]),
]
SPAN = {"start": 0, "stop": 9, "content_start": 0, "content_stop": 9, "role": "user"}
SPAN |= {"channel": None, "recipient": None, "author": None, "content_type": None, "complete": True}
WRONG_IN_JSON: list[tuple[str, Any]] = [
    ("schema", True),
    ("schema", "1"),
    ("schema", None),
    ("spans", [{}]),
    ("spans", [3]),
    ("spans", {}),
    ("spans", [SPAN | {"stop": 10}]),
    ("spans", [SPAN | {"content_start": 5, "content_stop": 4}]),
    ("spans", [SPAN | {"role": None}]),
    ("spans", [SPAN | {"channel": 3}]),
    ("spans", [SPAN | {"start": 0.0}]),
    ("tensors", []),
    ("tensors", {"a": None}),
    ("tensors", {"a": {}}),
    *[
        ("tensors", {"a": INFO.to_json() | change})
        for change in (
            {"dtype": "F128"},
            {"dtype": ["F32"]},
            {"shape": [9]},
            {"shape": [9, 11]},
            {"shape": [-9, 10]},
            {"shape": [9.0, 10]},
            {"shape": "ab"},
            {"axes": ["pos", "pos"]},
            {"axes": ["pos", 3]},
            {"axes": ["pos", {}]},
            {"axes": "ab"},
            {"source": "dead"},
            {"source": []},
            {"chunks": [["part-00000.safetensors", [9, 10]]]},
            {"chunks": [["../../etc/passwd", [9, 10], "a" * 64]]},
            {"chunks": [["part-00000.safetensors", [9, 10], "A" * 64]]},
            {"chunks": [["part-00000.safetensors", [9], "a" * 64]]},
            {"chunks": [["part-00000.safetensors", [5, 10], "a" * 64], ["part-00000.safetensors", [4, 10], "a" * 64]]},
            {"chunks": [["part-00000.safetensors", [5, 10], "a" * 64], ["part-00001.safetensors", [4, 11], "a" * 64]]},
            {"more": 1},
        )
    ],
]


@pytest.mark.parametrize(("field", "value"), WRONG)
def test_an_invalid_manifest_cannot_be_made_or_read(field: str, value: Any) -> None:
    with pytest.raises(ValueError):
        made.manifest(**{field: value})
    with pytest.raises(TraceCorrupt):
        Manifest.from_json(made.manifest().to_json() | {field: value})


@pytest.mark.parametrize(("field", "value"), WRONG_IN_JSON)
def test_json_that_does_not_describe_a_trace_is_corrupt(field: str, value: Any) -> None:
    with pytest.raises(TraceCorrupt):
        Manifest.from_json(made.manifest().to_json() | {field: value})


@pytest.mark.parametrize("field", list(made.manifest().to_json()))
def test_no_key_may_be_missing(field: str) -> None:
    data = made.manifest().to_json()
    del data[field]
    with pytest.raises(TraceCorrupt):
        Manifest.from_json(data)


@pytest.mark.parametrize("data", [None, 3, [], "x", {}, {"schema": 3}, made.manifest().to_json() | {"more": 1}])
def test_a_json_value_that_is_not_a_manifest_is_corrupt(data: Any) -> None:
    with pytest.raises(TraceCorrupt):
        Manifest.from_json(data)


@pytest.mark.parametrize(
    ("schema", "reader"),
    [
        (0, "no released version reads it"),
        (1, r"commit e287424\) reads it; or record it again"),
        (2, r"commit e944f1b\) reads it; or record it again"),
    ]
    + [(newer, "update gpt-oss-workbench") for newer in (4, 10**30)],
)
def test_another_schema_names_the_version_that_reads_it(schema: int, reader: str) -> None:
    with pytest.raises(
        TraceVersion, match=f"has schema {schema}; this version of workbench reads schema 3: .*{reader}"
    ):
        Manifest.from_json({"schema": schema, "whatever": "the future brings"})


@pytest.mark.parametrize("name", ["../../etc/x", "<img onerror>", "A", "", "a..b", "a" * 300, ".a", "a\n", "a\u202eb"])
def test_an_invalid_tensor_name_is_unsafe(name: str) -> None:
    with pytest.raises(TraceUnsafe):
        made.manifest(tensors={name: INFO})
    with pytest.raises(TraceUnsafe):
        Manifest.from_json(made.manifest().to_json() | {"tensors": {name: INFO.to_json()}})


@pytest.mark.parametrize("shape", [[2**62, 0], [2**31, 2**31], [1] * 9, [10**400]])
def test_a_shape_that_no_memory_could_hold_is_unsafe(shape: list[int]) -> None:
    axes = [f"a{n}" for n in range(len(shape))]
    with pytest.raises(TraceUnsafe):
        Manifest.from_json(
            made.manifest().to_json() | {"tensors": {"a": INFO.to_json() | {"shape": shape, "axes": axes}}}
        )


def test_small_pieces_cannot_make_a_huge_whole() -> None:
    pieces = [["part-00000.safetensors", [1, 0, 2**31], "a" * 64], ["part-00001.safetensors", [1, 2**31, 0], "a" * 64]]
    info = {
        "dtype": "F32",
        "shape": [1, 2**31, 2**31],
        "axes": ["head", "query", "key"],
        "source": "live",
        "chunks": pieces,
    }
    with pytest.raises(TraceUnsafe):
        Manifest.from_json(made.manifest().to_json() | {"tensors": {"a": info}})


@pytest.mark.parametrize(
    "text", [b'{"a":1,"a":2}', b"NaN", b"[1e999]", b"-Infinity", b"[" * 5000, b"\xff", b"", b"9" * 9999]
)
def test_json_that_only_python_accepts_is_corrupt(text: bytes) -> None:
    with pytest.raises(TraceCorrupt):
        parse(text, "the test")


def test_errors_show_hostile_text_safely() -> None:
    with pytest.raises(TraceError) as caught:
        Manifest.from_json(made.manifest().to_json() | {"a\u202e\x1b[2J\n": 1})
    assert str(caught.value).isprintable()


def test_equal_values_have_equal_bytes() -> None:
    assert canonical({"b": 1, "a": [True, None, 0.1]}) == canonical({"a": [True, None, 0.1], "b": 1})
    with pytest.raises(ValueError):
        canonical(float("nan"))


def test_the_repr_of_a_manifest_is_one_safe_line() -> None:
    shown = repr(made.manifest(model=made.manifest().model | {"name": "a\u202e\n"}))
    assert shown.isprintable() and "9 tokens" in shown


def info(dtype: str, axes: str, *shape: int) -> TensorInfo:
    return TensorInfo(dtype, shape, tuple(axes.split()))


@pytest.mark.parametrize(
    ("tensors", "match"),
    [
        ({"logprob": info("F32", "pos", 8)}, "size 8 along 'pos', not 9"),
        ({"margin": info("F32", "layer pos", 4, 9)}, "size 4 along 'layer', not 3"),
        ({"margin": info("F32", "pos layer", 9, 3)}, r"axes \(pos layer\), not \(layer pos\)"),
        ({"top_ids": info("F32", "pos rank", 9, 5)}, "dtype F32; allowed are I32, I64"),
        ({"entropy": info("I32", "pos", 9)}, "dtype I32; allowed are F16"),
        ({"top_ids": info("I32", "pos rank", 9, 5), "top_logprobs": info("F32", "pos rank", 9, 4)}, "along 'rank'"),
        ({"top_ids": info("I32", "pos rank", 9, 12)}, "rank of top is larger than that of d_vocab"),
        ({"blocks.3.hook_mlp_out": info("F32", "pos d_model", 9, 10)}, "it has 3 layers"),
        ({"blocks.0.attn.hook_rot_k": info("F32", "pos kv_head d_head", 9, 1, 6)}, "size 1 along 'kv_head', not 2"),
        ({"step_attention": info("F32", "layer head step key_step", 3, 4, 5, 6)}, "size 6 along 'key_step', not 5"),
    ],
    ids=str,
)
def test_arrays_that_do_not_fit_the_text_and_the_config_are_refused(tensors: dict, match: str) -> None:
    with pytest.raises(ArgumentError, match=match):
        made.manifest(tensors=tensors)


@pytest.mark.parametrize(
    ("config", "match"),
    [
        ({"n_experts": 10**9}, "n_experts of the config must be a whole number from 0 to 4,096"),
        ({"n_active": 8}, "n_active of the config is 8, but there are 7 experts"),
        ({"n_kv_heads": 3}, "the 4 query heads of the config cannot share 3 key heads"),
        ({"layer_types": ["full_attention"]}, "must be a list of 3 texts"),
        ({"layer_types": ["full"] * 3}, "'full'; gpt-oss has"),
        ({"window": 0}, "no window"),
        ({"d_vocab": 2}, "is not below 2"),
    ],
    ids=str,
)
def test_a_config_that_contradicts_itself_is_refused(config: dict, match: str) -> None:
    with pytest.raises(ArgumentError, match=match):
        made.manifest(model=made.manifest().model | {"config": made.CONFIG | config})


def test_messages_must_be_in_order_and_have_tokens() -> None:
    first, second = Span(0, 4, 1, 3, "user"), Span(4, 9, 6, 9, "assistant")
    assert made.manifest(spans=[first, second]).spans == [first, second]
    for spans in ([second, first], [first, first], [first, Span(3, 9, 6, 9, "assistant")], [Span(2, 2, 2, 2, "user")]):
        with pytest.raises(ArgumentError, match="in order and have tokens of their own"):
            made.manifest(spans=spans)


def test_another_architecture_may_have_layers_that_differ() -> None:
    """Latent attention has queries and values of different sizes; sinks and experts may be missing."""
    config = {
        "architecture": "Other",
        "n_layers": 2,
        "n_heads": 4,
        "window": 0,
        "layer_types": ["linear_attention"] * 2,
    }
    tensors = {
        "blocks.0.attn.hook_rot_q": info("F16", "pos head d_head", 9, 4, 12),
        "blocks.0.attn.hook_rot_k": info("F16", "pos kv_head d_head", 9, 4, 12),
        "blocks.0.attn.hook_v": info("F16", "pos kv_head d_head", 9, 4, 8),
        "blocks.1.attn.hook_v": info("F16", "pos kv_head d_head", 9, 2, 8),
        "mine": info("U8", "pos thing", 9, 3),
    }
    made.manifest(model=made.manifest().model | {"config": config}, tensors=tensors)
    tensors["blocks.0.attn.hook_rot_k"] = info("F16", "pos kv_head d_head", 9, 3, 12)
    with pytest.raises(ArgumentError, match="cannot share 3 key heads"):
        made.manifest(model=made.manifest().model | {"config": config}, tensors=tensors)
