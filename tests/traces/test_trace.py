import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import workbench as wb
from tests.traces import made
from workbench.errors import ArgumentError, ArgumentTypeError, HookNameError, NotRecorded, SelectionError
from workbench.traces import Trace, load
from workbench.traces.spans import Span

KEYS: list[Any] = [
    "logprob",
    "margin",
    ("margin", 1),
    "logits",
    "hook_logits",
    "resid_post",
    ("resid_post", 2),
    ("resid_post", -1),
    "blocks.2.hook_resid_post",
    ("pattern", np.int64(0)),
    "blocks.*.attn.hook_pattern",
]


def test_names_layers_and_stacks_give_the_right_arrays() -> None:
    trace, given = made.trace(), made.arrays()
    resid = [given[f"blocks.{layer}.hook_resid_post"].astype("f4") for layer in range(made.LAYERS)]
    assert made.same(trace["resid_post", 1], resid[1])
    assert made.same(trace["resid_post", -1], resid[2])
    assert made.same(trace["blocks.1.hook_resid_post"], resid[1])
    assert made.same(trace["blocks.1.hook_resid_post", 1], resid[1])
    assert made.same(trace["resid_post"], np.stack(resid))
    assert made.same(trace["blocks.*.hook_resid_post"], np.stack(resid))
    assert made.same(trace["logits"], given["hook_logits"]) and made.same(trace["hook_logits"], given["hook_logits"])
    assert made.same(trace["logprob"], given["logprob"])
    assert made.same(trace["margin", 1], given["margin"][1])
    assert made.same(trace["expert_indices", 0], given["blocks.0.mlp.hook_expert_indices"])


def test_a_model_of_one_layer_is_stacked_too() -> None:
    config = made.CONFIG | {"n_layers": 1, "layer_types": ["full_attention"]}
    manifest = made.manifest(model=made.manifest().model | {"config": config})
    trace = Trace(manifest, {"blocks.0.hook_mlp_out": np.ones((9, 10), "f4"), "hook_logits": np.ones((9, 11), "f4")})
    assert trace["mlp_out"].shape == (1, 9, 10) and trace["mlp_out", 0].shape == (9, 10)
    assert trace["logits"].shape == (9, 11)


def test_bfloat16_is_widened_exactly_and_raw_keeps_its_dtype() -> None:
    every = np.arange(65536, dtype="u2").view(ml_dtypes.bfloat16)
    manifest = made.manifest(65536)
    trace = Trace(manifest, {"logprob": every})
    assert trace["logprob"].dtype == np.float32 and trace.raw("logprob").dtype == ml_dtypes.bfloat16
    assert (trace["logprob"].view("u4") >> 16 == np.arange(65536))[~np.isnan(trace["logprob"])].all()
    assert made.same(trace.raw("logprob"), every)


def test_a_trace_from_disk_is_the_trace_that_was_saved(tmp_path: Path) -> None:
    trace = made.trace(notes=["é\u202e"])
    back = load(trace.save(tmp_path / "deep" / "er" / "a"))
    assert back.manifest.to_json() | {"tensors": None} == trace.manifest.to_json() | {"tensors": None}
    assert back.names() == trace.names() and back.id == trace.id
    for key in KEYS:
        assert made.same(back[key], trace[key]) and made.same(back.raw(key), trace.raw(key)), key
        assert back.source(key) == trace.source(key) == "forward"
    assert repr(back) == repr(trace) and back.summary() == trace.summary()


def test_parts_are_joined_along_positions_and_keys_are_padded(tmp_path: Path) -> None:
    trace, expected = load(made.streamed(tmp_path / "a")), made.joined()
    assert {name: made.same(trace.raw(name), array) for name, array in expected.items()} == dict.fromkeys(
        expected, True
    )
    assert trace["pattern", 0].shape == (made.HEADS, 9, 9)
    assert (trace["pattern", 0][:, :5, 5:] == 0).all()
    assert np.isneginf(trace["attn_scores", 0][:, :5, 5:]).all()
    assert trace.source("pattern") == "live"


def test_layers_may_come_from_different_passes() -> None:
    trace = made.trace()
    tensors = dict(trace.manifest.tensors)
    name = "blocks.1.hook_resid_post"
    info = tensors[name]
    tensors[name] = type(info)(info.dtype, info.shape, info.axes, "live")
    mixed = Trace(made.manifest(tensors=tensors), made.arrays())
    assert mixed.source(("resid_post", 1)) == "live" and mixed.source("resid_post") == "forward, live"


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("where", ["memory", "disk", "parts"])
def test_arrays_are_immutable(key: Any, where: str, tmp_path: Path) -> None:
    trace = made.trace() if where == "memory" else load(made.trace().save(tmp_path / "a"))
    trace = load(made.streamed(tmp_path / "b")) if where == "parts" else trace
    for array in (trace[key], trace.raw(key)):
        with pytest.raises(ValueError, match="read-only"):
            array[...] = 0


def test_traces_are_immutable() -> None:
    trace = made.trace(prompt_length=4, edits=[{"identity": "x"}])
    for name in ("tokens", "status", "manifest", "anything"):
        with pytest.raises(AttributeError):
            setattr(trace, name, None)
    trace.tokens.append(1)
    for part in (trace.str_tokens, trace.spans, trace.config):
        part.clear()
    trace.edits[0]["identity"] = "y"
    trace.verification[0]["status"] = "fails"
    assert trace.id == made.trace(edits=[{"identity": "x"}]).id and trace.verified
    assert len(trace) == len(trace.tokens) == len(trace.str_tokens) == 9 and trace.config["n_layers"] == made.LAYERS
    assert trace != made.trace(prompt_length=4, edits=[{"identity": "x"}])  # two traces are never `==`: compare ids


@pytest.mark.parametrize(
    ("key", "says"),
    [
        ("blocks.0.attn.hook_z", r"'blocks.0.attn.hook_z' was not recorded .* It contains: .*resid_post.*record='z'"),
        (("z", 0), r"'blocks.0.attn.hook_z' was not recorded .* Run again with record='z'"),
        ("z", r"'z' was not recorded .* Run again with record='z'"),
        ("entropy", r"'entropy' was not recorded .* Run again with record='entropy'"),
        (("entropy", 1), r"'entropy' was not recorded"),
    ],
)
def test_a_missing_array_error_lists_the_contents_and_the_record_to_use(key: Any, says: str) -> None:
    trace = made.trace()
    assert key not in trace
    for ask in (trace.__getitem__, trace.raw, trace.source):
        with pytest.raises(NotRecorded, match=says):
            ask(key)


@pytest.mark.parametrize(
    ("key", "error", "says"),
    [
        (("resid_post", 3), SelectionError, "^layer must be between 0 and 2, got 3.$"),
        (("resid_post", -4), SelectionError, "^layer must be between 0 and 2, got -4.$"),
        ("blocks.3.hook_resid_post", SelectionError, "^layer must be between 0 and 2, got 3.$"),
        (("resid_post", "1"), ArgumentTypeError, "^layer must be a whole number, got '1'.$"),
        (("resid_post", 1.0), ArgumentTypeError, "^layer must be a whole number, got 1.0.$"),
    ],
)
def test_a_layer_out_of_range_is_refused_with_the_common_wording(key: Any, error: type[Exception], says: str) -> None:
    trace = made.trace()
    assert key not in trace
    for ask in (trace.__getitem__, trace.raw, trace.source):
        with pytest.raises(error, match=says) as caught:
            ask(key)
        assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    ("key", "says"),
    [
        ("reisd_post", "Did you mean 'resid_post'"),
        ("logprobs", "Did you mean 'logprob'"),
        (("logits", 0), "one array without a layer axis"),
        (("logprob", 0), "one array without a layer axis"),
        (("blocks.0.hook_resid_post", 1), "one array without a layer axis"),
        (3, "is not a name"),
        (None, "is not a name"),
        (("resid_post", 1, 2), "is not a name"),
        ("\u202e\x1b", "no hook point matches"),
    ],
)
def test_an_unknown_name_error_has_the_nearest_names(key: Any, says: str) -> None:
    trace = made.trace()
    assert key not in trace
    with pytest.raises(HookNameError, match=says) as caught:
        trace[key]
    assert str(caught.value).isprintable()


def test_layers_that_are_missing_are_named() -> None:
    arrays = {name: array for name, array in made.arrays().items() if name != "blocks.1.hook_resid_post"}
    trace = Trace(made.manifest(), arrays)
    assert ("resid_post", 2) in trace and "resid_post" not in trace and ("resid_post", 1) not in trace
    with pytest.raises(
        NotRecorded, match=r"only in the layers 0, 2, not in all 3. Select one of them: trace\['resid_post', 0\]"
    ):
        trace["resid_post"]
    with pytest.raises(NotRecorded, match=r"'resid_post' was recorded in the layers 0, 2\."):
        trace["resid_post", 1]


def test_layers_of_different_shapes_are_not_stacked() -> None:
    """The layers of another architecture may have different numbers of key heads."""
    arrays = {f"blocks.{n}.attn.hook_v": np.zeros((9, 2 + n, 6), "f4") for n in range(3)}
    with pytest.raises(ArgumentError, match=r"'blocks.1.attn.hook_v' has the size 3 along 'kv_head', not 2"):
        Trace(made.manifest(), arrays)
    model = made.manifest().model | {"config": {"architecture": "Other", "n_layers": 3, "n_kv_heads": 2, "n_heads": 4}}
    trace = Trace(made.manifest(model=model), arrays)
    with pytest.raises(NotRecorded, match=r"Select one: trace\['v', 0\]"):
        trace["v"]
    assert trace["v", 2].shape == (9, 4, 6)


def test_text_selects_channel_and_role() -> None:
    spans = [
        Span(0, 3, 1, 2, "user"),
        Span(3, 6, 4, 6, "assistant", "analysis"),
        Span(6, 9, 7, 8, "assistant", "final"),
    ]
    trace = made.trace(spans=spans, str_tokens=list("abcdefghi"))
    assert trace.text() == "abcdefghi"
    assert trace.text("analysis") == trace.text(channel="analysis") == "ef"
    assert trace.text(role="assistant") == "efh"
    assert trace.text("final", role="user") == ""


@pytest.mark.parametrize(
    ("states", "verified", "says"),
    [
        ([], False, "; not verified;"),
        (["not checked"], False, "; not verified;"),
        (["holds", "not checked"], True, "; verified (1 identity);"),
        (["holds", "holds"], True, "; verified (2 identities);"),
        (["holds", "fails"], False, "; FAILED: number 1;"),
    ],
)
def test_a_trace_is_verified_if_something_holds_and_nothing_fails(states: list[str], verified: bool, says: str) -> None:
    lines = [made.HOLDS | {"identity": f"number {n}", "status": state} for n, state in enumerate(states)]
    trace = made.trace(verification=lines)
    assert trace.verified is verified
    assert says in repr(trace) and says.strip("; ") in trace.summary()


def test_the_repr_of_a_trace_is_one_line() -> None:
    assert repr(made.trace()) == (
        "<Trace made: 9 tokens, 3 layers; verified (1 identity); attn_scores, pattern, resid_post, logits, …>"
    )
    assert repr(made.trace(status="partial")).startswith("<Trace made: 9 tokens, 3 layers, partial; ")
    assert repr(Trace(made.manifest(0), {})) == "<Trace made: 0 tokens, 3 layers; verified (1 identity); no arrays>"


def test_hostile_text_is_shown_escaped() -> None:
    evil = "\u202eevil\x1b[2J\r\n<img src=x onerror=alert(1)>"
    trace = made.trace(
        model=made.manifest().model | {"name": evil, "format": evil},
        verification=[made.HOLDS | {"identity": evil, "status": "fails", "reason": evil}],
        numerics={evil: evil},
        notes=[evil],
        omitted=[evil],
        edits=[{"identity": evil}],
        created=evil,
    )
    assert repr(trace).isprintable()
    assert all(line.isprintable() for line in trace.summary().split("\n"))
    assert trace.summary().count("\n") == made.trace().summary().count("\n") + 3  # one line each, whatever they hold


def test_arrays_must_match_the_manifest() -> None:
    trace = made.trace()
    arrays = made.arrays()
    with pytest.raises(ValueError, match="'logprob'"):
        Trace(trace.manifest, {name: array for name, array in arrays.items() if name != "logprob"})
    for other in (np.zeros(8, "f4"), np.zeros(9, "f8"), np.zeros((9, 1), "f4")):
        with pytest.raises(ValueError, match="'logprob'"):
            Trace(trace.manifest, arrays | {"logprob": other})
    with pytest.raises(HookNameError):
        Trace(made.manifest(), {"hook_nothing": np.zeros(9)})


def test_many_threads_read_the_same_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("workbench.traces.reader.CACHE_BYTES", 1000)  # so small that it is emptied all the time
    trace, expected = load(made.streamed(tmp_path / "a")), made.joined()
    names = sorted(expected) * 20

    def read(name: str) -> bool:
        return made.same(trace.raw(name), expected[name])

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(read, names))


def test_a_trace_loads_without_torch(tmp_path: Path) -> None:
    path = made.streamed(tmp_path / "a")
    code = f"""
import sys
sys.modules["torch"] = None
from workbench.traces import load, verify
trace = load({str(path)!r})
assert verify({str(path)!r}).ok
print(repr(trace), trace["resid_post"].shape, float(trace["resid_post", 1][8, 3]))
trace.save({str(tmp_path / "b")!r})
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("\n")[0] == f"{load(path)!r} (3, 9, 10) {float(load(path)['resid_post', 1][8, 3])}"
    assert load(tmp_path / "b").id == load(path).id


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda trace: trace.text(channel="thinking"), "channel must be one of analysis, commentary, final"),
        (lambda trace: trace.text(role="asistant"), "role must be one of system, developer, user, assistant, tool"),
        (lambda trace: wb.steps(trace, "analyzis"), "got 'analyzis'"),
    ],
)
def test_a_channel_or_role_that_no_message_has_is_refused(ask, message):
    with pytest.raises(ArgumentError, match=message):
        ask(made.trace())


def test_a_channel_that_only_the_model_knows_is_accepted():
    trace = made.trace(spans=[Span(0, 9, 3, 9, "assistant", "diary")])
    assert trace.text(channel="diary") and trace.text(channel="final") == ""
    assert wb.steps(trace, "diary") and wb.steps(trace, "final") == []
