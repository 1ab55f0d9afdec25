"""Traces from strangers whose bytes match their hashes, but whose parts contradict each other or are too large."""

import json
from collections.abc import Callable
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import workbench as wb
from tests.traces.contradictions import Base, Fields, consume, good
from workbench.errors import TraceError
from workbench.interop.xarray_tables import from_xarray, to_xarray
from workbench.recording.resume import CACHE_POINTS, NEXT_LOGITS
from workbench.traces import Trace
from workbench.traces import verify as verify_bytes
from workbench.traces.reader import encode_fields


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Base:
    return good(tmp_path_factory.mktemp("good") / "base.trace")


def read_all(path: Path) -> dict[str, str]:
    """What every reader of the trace says; raises the TraceError of the manifest or of the first array."""
    report = verify_bytes(path)
    if report.problems:
        raise report.problems[0]
    return consume(path)


def typed(outcomes: dict[str, str]) -> bool:
    return not {name: outcome for name, outcome in outcomes.items() if outcome not in ("right", "refused")}


def test_the_good_trace_is_read_by_everything(attempt, base):
    outcomes = attempt.right(lambda: read_all(base.folder), typed, seconds=30)
    refused = {name for name, outcome in outcomes.items() if outcome == "refused"}
    assert refused <= {"retrieval", "basis", "receiver_heads"}  # which need more of a text than this one has


# An array that does not fit the tokens, the config or its name.

X = "blocks.2."


def _entry(place: tuple[int, ...] | int, value: float) -> Callable[[np.ndarray], np.ndarray]:
    def change(a: np.ndarray) -> np.ndarray:
        b = a.copy()
        b[place] = value
        return b

    return change


ARRAYS: dict[str, tuple[str, Callable[[np.ndarray], np.ndarray], str]] = {
    "logprob of ten positions": ("logprob", lambda a: a[:10], "size 10 along 'pos'"),
    "entropy of two texts": ("entropy", lambda a: np.r_[a, a], "along 'pos'"),
    "a token id of -5": ("top_ids", _entry((5, 0), -5), "has the id -5"),
    "a token id of 2**31 - 1": ("top_ids", _entry((5, 0), 2**31 - 1), "has the id 2147483647"),
    "an id of the lens above the vocabulary": ("lens_ids", _entry((1, 2, 3), 10**6), "has the id 1000000"),
    "token ids of 64 bits": ("top_ids", lambda a: a.astype("i8") + 2**40, "has the id"),
    "infinite entropy": ("entropy", _entry(3, np.inf), "value inf"),
    "NaN in logprob": ("logprob", _entry(3, np.nan), "value nan"),
    "a log-probability above 0": ("logprob", _entry(3, 2.5), "value 2.5"),
    "a top log-probability of NaN": ("top_logprobs", _entry((3, 3), np.nan), "value nan"),
    "an expert of -1": (X + "mlp.hook_expert_indices", _entry((3, 0), -1), "has the id -1"),
    "an expert that there is not": (X + "mlp.hook_expert_indices", _entry((3, 0), 99), "has the id 99"),
    "an expert twice": (X + "mlp.hook_expert_indices", lambda a: np.zeros_like(a), "same expert twice"),
    "experts as floats": (X + "mlp.hook_expert_indices", lambda a: a.astype("f4"), "has the dtype F32"),
    "experts as bytes": (X + "mlp.hook_expert_indices", lambda a: a.astype("i1"), "has the dtype I8"),
    "one expert fewer in each choice": (X + "mlp.hook_expert_indices", lambda a: a[:, :1], "along 'choice'"),
    "a residual stream of integers": (X + "hook_resid_post", lambda a: np.zeros(a.shape, "i4"), "has the dtype I32"),
    "a residual stream of Booleans": (X + "hook_resid_post", lambda a: np.zeros(a.shape, bool), "has the dtype BOOL"),
    "a narrow residual stream": (X + "hook_resid_post", lambda a: a[:, :64], "along 'd_model'"),
    "a transposed residual stream": (X + "hook_resid_post", lambda a: a.T, "along 'pos'"),
    "an empty residual stream": (X + "hook_resid_post", lambda a: a[:0], "along 'pos'"),
    "a negative probability": (X + "attn.hook_pattern", _entry((0, 3, 1), -0.5), "value -0.5"),
    "a probability of 7": (X + "attn.hook_pattern", _entry((0, 3, 1), 7), "value 7"),
    "a NaN pattern": (X + "attn.hook_pattern", _entry((0, 3, 1), np.nan), "value nan"),
    "a sink above 1": (X + "attn.hook_sink", _entry((0, 3), 3), "value 3"),
    "a pattern with fewer keys": (X + "attn.hook_pattern", lambda a: a[..., :-1], "along 'key'"),
    "queries of one head fewer": (X + "attn.hook_rot_q", lambda a: a[:, 1:], "along 'head'"),
    "keys of one head": (X + "attn.hook_rot_k", lambda a: a[:, :1], "along 'kv_head'"),
    "sinks of another model": ("sinks", lambda a: a[:, :3], "along 'head'"),
    "an infinite sink": ("sinks", _entry((0, 0), np.inf), "value inf"),
    "a negative norm": ("resid_norm", _entry((0, 0), -1), "value -1.0"),
    "margins of a layer fewer": ("margin", lambda a: a[:-1], "along 'layer'"),
    "a lens of more ranks than the predictions": ("lens_ids", lambda a: np.tile(a, (1, 1, 5)), "rank"),
    "steps that are not square": ("step_attention", lambda a: a[..., :-1], "key_step"),
    "an expert weight of -1": (X + "mlp.hook_expert_weights", _entry((0, 0), -1), "value -1"),
}


@pytest.mark.parametrize("case", ARRAYS)
def test_an_array_that_cannot_be_of_this_run(case, attempt, base, tmp_path):
    name, change, match = ARRAYS[case]
    path = base.with_array(name, np.ascontiguousarray(change(base.arrays[name])), tmp_path / "a.trace")
    attempt.refused(lambda: read_all(path), match)


def test_the_axes_of_another_array(attempt, base, tmp_path):
    axes = ["pos", "layer"]
    path = base.with_array("attn_out_norm", base.arrays["attn_out_norm"], tmp_path / "a.trace", axes)
    attempt.refused(lambda: wb.load(path), "has the axes (pos layer), not (layer pos)")


def test_a_layer_that_there_is_not(attempt, base, tmp_path):
    n_layers = base.fields["model"]["config"]["n_layers"]
    path = base.renamed("blocks.2.hook_mlp_out", f"blocks.{n_layers}.hook_mlp_out", tmp_path / "a.trace")
    attempt.refused(lambda: wb.load(path), f"it has {n_layers} layers")


# A manifest whose fields contradict each other.


def _config(**changes: Any) -> Callable[[Fields], object]:
    return lambda fields: fields["model"]["config"].update(changes)


def _nest(depth: int) -> Any:
    nest: Any = 1
    for _ in range(depth):
        nest = [nest]
    return nest


def _spans(times: int, **changes: Any) -> Callable[[Fields], object]:
    return lambda fields: fields["spans"].extend([fields["spans"][-1] | changes] * times)


CALL = {"tool": "functions.calc", "arguments": "", "positions": [30, 32], "result_positions": None}
CALL |= dict.fromkeys(("result", "started", "seconds", "error"))
TOOK = {"seconds": 1.0, "phases": {"decode": 1.0}, "first_token": None, "n_prefilled": 0, "n_decoded": 0}
TOOK |= {"peak_memory": None, "peak_device_memory": None, "bytes_written": 0, "energy": None}
NO_PLACE = dict.fromkeys(("start", "stop", "content_start", "content_stop"), 51)
FIELDS: dict[str, tuple[Callable[[Fields], object], str]] = {
    "a billion experts": (_config(n_experts=10**9), "n_experts of the config must be a whole number"),
    "4,000 experts in layers of arrays of 32": (_config(n_experts=4000), "not 4000 (n_experts of the config)"),
    "more active experts than experts": (_config(n_active=33, n_experts=32), "there are 32 experts"),
    "key heads that do not divide the heads": (_config(n_kv_heads=3), "cannot share 3 key heads"),
    "half a head": (_config(n_heads=7.5), "n_heads of the config must be"),
    "True layers": (_config(n_layers=True), "n_layers of the config must be"),
    "a layer more": (_config(n_layers=7), "layer_types of the config must be a list of 7"),
    "a negative window": (_config(window=-1), "window of the config must be"),
    "no window": (lambda f: f["model"]["config"].pop("window"), "no window"),
    "no kinds of layers": (lambda f: f["model"]["config"].pop("layer_types"), "needs layer_types"),
    "kinds of layers that are numbers": (_config(layer_types=[1] * 6), "must be a list of 6 texts"),
    "kinds of layers that are unknown": (_config(layer_types=["x"] * 6), "gpt-oss has"),
    "a vocabulary of ten tokens": (_config(d_vocab=10), "d_vocab of the config"),
    "sinks that are a text": (_config(sinks="no"), "sinks of the config must be of type bool"),
    "a number of 100 bits": (_config(rope_theta=2**100), "more than 64 bits"),
    "100,000 overlapping messages": (_spans(100_000), "must be in order"),
    "100,000 messages without tokens": (_spans(100_000, **NO_PLACE), "have tokens of their own"),
    "messages in reverse": (lambda f: f["spans"].reverse(), "must be in order"),
    "numerics nested 420 deep": (lambda f: f["numerics"].update(x=_nest(420)), "nested more than 32"),
    "numerics nested 33 deep": (lambda f: f["numerics"].update(x=_nest(33)), "nested more than 32"),
    "a config nested 900 deep": (_config(x=_nest(900)), "nested more than 32"),
    "an unknown dtype": (lambda f: f["numerics"].update(dtype="int3"), "numerics['dtype']"),
    "more differences than comparisons": (
        lambda f: f.update(replayed_routing={"compared": 1, "different": 2}),
        "more differences than comparisons",
    ),
    "edited points as one text": (lambda f: f.update(edits=[{"identity": "x", "points": "abc"}]), "points"),
    "a tally below zero": (lambda f: f.update(edits=[{"identity": "x", "n_calls": -1}]), "n_calls"),
    "a claim against its own tolerance": (
        lambda f: f["verification"][0].update(status="holds", max_error=1.0, tolerance=1e-5),
        "above its tolerance",
    ),
    "a negative temperature": (lambda f: f["generation"].update(temperature=-1.0), "temperature"),
    "a top_p of 2": (lambda f: f["generation"].update(top_p=2.0), "top_p"),
    "a seed of 4,000 digits": (lambda f: f["generation"].update(seed=10**4000), "seed"),
    "a stop token below zero": (lambda f: f["generation"].update(stop=[-1]), "stop"),
    "one token more": (lambda f: (f["tokens"].append(1), f["str_tokens"].append("x")), "the number of tokens"),
    "a gap between writers": (lambda f: f["written"][1].__setitem__(0, f["written"][1][0] + 1), "without gaps"),
    "tokens without a writer": (lambda f: f["written"].pop(), "must cover all"),
    "tokens of nobody": (lambda f: f["written"][1].__setitem__(2, "nobody"), "must be"),
    "100,000 writers": (lambda f: f.update(written=[[0, 1, "model"]] * 100_000), "there are only"),
    "a writer of hidden characters": (lambda f: f["written"][1].__setitem__(2, "a\u202eb"), "must be"),
    "writers that are no positions": (lambda f: f.update(written=[[None, {}, []]]), "[start, stop, who]"),
    "a call beyond the text": (lambda f: f.update(calls=[CALL | {"positions": [30, 10**9]}]), "within"),
    "a call by the prompt": (lambda f: f.update(calls=[CALL | {"positions": [1, 3]}]), "did not write"),
    "100,000 calls": (lambda f: f.update(calls=[CALL] * 100_000), "there are 100000 calls"),
    "a result that no tool wrote": (
        lambda f: f.update(calls=[CALL | {"result_positions": [36, 38], "result": "7"}]),
        "did not write",
    ),
    "the id of another trace that is a path": (lambda f: f.update(follows="../" * 10 + "aa"), "not the id of a trace"),
    "phases longer than the run": (lambda f: f.update(took=TOOK | {"phases": {"decode": 1e300}}), "add up to"),
    "an unknown phase": (lambda f: f.update(took=TOOK | {"phases": {"<b>": 1.0}}), "a key of took"),
    "no tokens": (lambda f: f.update(tokens=[], str_tokens=[], spans=[], written=[]), "the number of tokens"),
}


@pytest.mark.parametrize("case", FIELDS)
def test_a_manifest_that_contradicts_itself(case, attempt, base, tmp_path):
    change, match = FIELDS[case]
    path = base.with_fields(change, tmp_path / "a.trace")
    attempt.refused(lambda: wb.load(path), match)


ODD: dict[str, Callable[[Fields], object]] = {
    "of an architecture that nobody knows": _config(architecture="Other"),
    "of an architecture without sinks": _config(architecture="Other", sinks=False),
    "a window of a billion": _config(window=10**9),
    "a window of one": _config(window=1),
    "every layer slides": _config(layer_types=["sliding_attention"] * 6),
    "texts of NUL": lambda f: f.update(str_tokens=["\0"] * len(f["tokens"])),
    "texts of nothing": lambda f: f.update(str_tokens=[""] * len(f["tokens"])),
    "no messages": lambda f: f["spans"].clear(),
    "a config without sizes": lambda f: (
        f["model"]["config"].update({"n_experts": 32}) or f["model"]["config"].pop("n_heads")
    ),
    "nothing claimed": lambda f: f["verification"].clear(),
    "numerics nested 30 deep": lambda f: f["numerics"].update(x=_nest(30)),
}


@pytest.mark.parametrize("case", ODD)
def test_an_odd_trace_is_read_or_refused_by_everything(case, attempt, base, tmp_path):
    path = base.with_fields(ODD[case], tmp_path / "a.trace")
    attempt.safe(lambda: read_all(path), typed, seconds=30)


@pytest.mark.parametrize("name", ["entropy", "blocks.1.attn.hook_pattern", "blocks.1.hook_resid_post", "margin"])
def test_a_run_of_nan_that_claims_nothing_is_read_by_everything(name, attempt, base, tmp_path):
    nan = np.full_like(base.arrays[name], np.nan)
    path = base.with_array(name, nan, tmp_path / "a.trace")
    fields = json.loads((path / "manifest.json").read_bytes())["manifest"] | {"verification": []}
    (path / "manifest.json").write_bytes(encode_fields(fields))
    attempt.safe(lambda: read_all(path), typed, seconds=30)


# Manifests that are too large.


def _forged(path: Path, body: bytes) -> Path:
    path.mkdir()
    digest = sha256(body).hexdigest().encode()
    (path / "manifest.json").write_bytes(b'{"manifest":' + body + b',"sha256":"' + digest + b'"}\n')
    return path


@pytest.mark.parametrize("item", [b"[]", b"{}", b"1", b'""', b"[[]]"])
def test_sixty_megabytes_of_nothing(item, attempt, base, tmp_path):
    body = b'{"schema":3,"numerics":{"x":[' + (item + b",") * ((60 << 20) // (len(item) + 1)) + item + b"]}}"
    path = _forged(tmp_path / "a.trace", body)
    attempt.refused(lambda: wb.load(path), "more than 3,000,000 values", seconds=20)


@pytest.mark.parametrize("deep", [b"[" * 1_000_000, b'{"a":' * 1_000_000])
def test_a_manifest_nested_a_million_deep(deep, attempt, tmp_path):
    path = _forged(tmp_path / "a.trace", b'{"schema":3,"numerics":' + deep + b"}")
    attempt.refused(lambda: wb.load(path), "the manifest", seconds=20)


# State of an interrupted run.


@pytest.fixture(scope="module")
def interrupted() -> tuple[wb.Model, Trace]:
    model = wb.Model("pocket")

    def stop(x, hook):
        if hook.positions[-1] >= 30:
            raise KeyboardInterrupt
        return x

    with model.edit("blocks.0.hook_mlp_out", stop), pytest.raises(KeyboardInterrupt):
        model.generate("What is 12+30?", max_tokens=40, record="")
    assert model.partial is not None
    # as if the run had had no edit: this one changed nothing
    return model, _trace(model.partial, edits=[])


def _trace(partial: Trace, arrays: dict[str, np.ndarray] | None = None, **fields: Any) -> Trace:
    changed = {name: partial.raw(name) for name in partial.names()} | (arrays or {})
    return Trace(replace(partial.manifest, tensors={}, **fields), changed)


CACHE_K, CACHE_V = (point.replace("*", "1") for point in CACHE_POINTS)
STATE: dict[str, tuple[str, Callable[[np.ndarray], np.ndarray]]] = {
    "keys of one head": (CACHE_K, lambda a: a[:1]),
    "values of one position": (CACHE_V, lambda a: a[:, :1]),
    "values of half the width": (CACHE_V, lambda a: a[..., ::2]),
    "keys as half floats": (CACHE_K, lambda a: a.astype("f2")),
    "NaN as the next logits": (NEXT_LOGITS, lambda a: a * np.nan),
    "infinity among the next logits": (NEXT_LOGITS, lambda a: np.r_[np.float32(np.inf), a[1:]]),
    "logits of fewer tokens": (NEXT_LOGITS, lambda a: a[:-1]),
}


@pytest.mark.parametrize("case", STATE)
def test_a_saved_state_that_would_be_broadcast(case, attempt, interrupted):
    model, partial = interrupted
    name, change = STATE[case]
    array = np.ascontiguousarray(change(partial.raw(name)))
    attempt.refused(lambda: model.resume(_trace(partial, {name: array})))


@pytest.mark.parametrize(
    "changes", [{"max_tokens": None}, {"max_tokens": 1}, {"stop": None}, {"seed": None}, {"top_p": None}], ids=str
)
def test_settings_that_no_interrupted_run_has(changes, attempt, interrupted):
    model, partial = interrupted
    generation = partial.manifest.generation | changes
    attempt.refused(lambda: model.resume(_trace(partial, generation=generation)), "cannot be resumed")


# A text with NUL.


def test_a_text_with_nul_goes_into_xarray_and_back(attempt, base, tmp_path):
    path = base.with_fields(lambda f: f.update(str_tokens=["\0"] * len(f["tokens"])), tmp_path / "a.trace")
    trace = attempt.right(
        lambda: wb.load(path), lambda t: t.str_tokens[0] == "\0" and "\0" not in repr(t) + t.summary()
    )
    data = attempt.right(lambda: to_xarray(trace, "logprob"), lambda data: str(data["text"].values[0]) == "␀")
    attempt.right(lambda: from_xarray(data), lambda back: back.str_tokens[0] == "\0")  # netCDF has no NUL


def test_all_errors_here_are_trace_errors(base, tmp_path):
    path = base.with_fields(_config(n_experts=10**9), tmp_path / "a.trace")
    with pytest.raises(TraceError):
        wb.load(path)
