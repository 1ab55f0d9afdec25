"""Attacks by files that describe a model: config.json, indexes, safetensors, GGUF, adapters, caches, names of models.

A stranger wrote every byte of the folder; the machine may also limit the memory, or have a compiler that is none.
"""

import json
import os
import pickle
import shutil
import socket
import struct
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import workbench as wb
from tests.checkpoints import Random
from workbench.model import memory
from workbench.model.checkpoints import load
from workbench.model.checkpoints.adapter import CONFIG as ADAPTER_CONFIG
from workbench.model.checkpoints.adapter import WEIGHTS as ADAPTER_WEIGHTS
from workbench.model.checkpoints.adapter import read_adapter
from workbench.model.checkpoints.bundled import embedded_folder

SEED = Random(seed=1, n_layers=2)
LAYERS = SEED.config.n_layers
NAN, INF = float("nan"), float("inf")


@pytest.fixture
def pocket(tmp_path: Path) -> Path:
    """A folder with links to the files of pocket, each of which a test may replace."""
    folder = tmp_path / "model"
    folder.mkdir()
    for file in embedded_folder().iterdir():
        (folder / file.name).symlink_to(file)
    return folder


def put(folder: Path, name: str, content: str | bytes | dict) -> Path:
    """The folder, with this content in the file of that name."""
    file = folder / name
    file.unlink(missing_ok=True)
    data = json.dumps(content) if isinstance(content, dict) else content
    file.write_bytes(data if isinstance(data, bytes) else data.encode("utf-8", "surrogatepass"))
    return folder


def raw(name: str = "config.json") -> dict:
    return json.loads((embedded_folder() / name).read_text())


def special(file: Path, kind: str) -> None:
    """Something that is not a file, in place of the file."""
    file.unlink(missing_ok=True)
    if kind == "FIFO":
        os.mkfifo(file)
    elif kind == "endless device":
        file.symlink_to("/dev/zero")
    elif kind == "folder":
        file.mkdir()
    elif kind == "link to itself":
        file.symlink_to(file.name)
    elif kind == "socket":
        here = os.open(file.parent, os.O_RDONLY)  # a socket's path may have 107 bytes
        with socket.socket(socket.AF_UNIX) as it:
            it.bind(f"/proc/self/fd/{here}/{file.name}")
        os.close(here)
    else:
        file.symlink_to("nowhere")


KINDS = ["FIFO", "endless device", "folder", "link to itself", "socket", "link to nothing"]

# -- config.json

TEXTS = {
    "nested lists": b"[" * 100_000,
    "nested objects": b'{"a":' * 100_000,
    "nested inside a value": json.dumps(raw()).replace("{", '{"x":' + "[" * 5000 + "]" * 5000 + ",", 1).encode(),
    "empty": b"",
    "not UTF-8": b'{"model_type": "\xff"}',
    "UTF-16": json.dumps(raw()).encode("utf-16"),
    "NUL": json.dumps(raw()).encode() + b"\0",
    "a list": b"[]",
    "a number": b"1",
    "a million lists": b"[" + b"[]," * 1_200_000 + b"[]]",
    "a key twice": json.dumps(raw()).replace("{", '{"swiglu_limit": 3.0,', 1).encode(),
    "a key of rope_scaling twice": json.dumps(raw()).replace('"rope_type"', '"factor": 2, "rope_type"', 1).encode(),
    "half a surrogate pair": json.dumps(raw() | {"layer_types": ["\ud800"] * 6}).encode(),
    "a number of 5,000 digits": json.dumps(raw() | {"hidden_size": "X"}).replace('"X"', "9" * 5000).encode(),
}


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_config_json_of_a_damaged_or_hostile_form(attempt, pocket, text):
    attempt.refused(lambda: load(put(pocket, "config.json", text)), "config.json")


ROPE = raw()["rope_scaling"]
HUGE = 10**400
SETTINGS: list[tuple[str, dict]] = [
    ("hidden_size", {"hidden_size": HUGE}),
    ("hidden_size", {"hidden_size": 1e300}),
    ("hidden_size", {"hidden_size": -1}),
    ("hidden_size", {"hidden_size": 2**31}),
    ("hidden_size", {"hidden_size": True}),
    ("hidden_size", {"hidden_size": [128]}),
    ("vocab_size", {"vocab_size": 2**31 - 1}),
    ("vocab_size", {"vocab_size": HUGE}),
    ("num_attention_heads", {"num_attention_heads": 0}),
    ("num_key_value_heads", {"num_key_value_heads": 0}),
    ("n_kv_heads", {"num_key_value_heads": 3}),
    ("head_dim", {"head_dim": HUGE}),
    ("d_head", {"head_dim": 31}),
    ("intermediate_size", {"intermediate_size": 0}),
    ("num_local_experts", {"num_local_experts": -32}),
    ("n_active", {"num_experts_per_tok": 33}),
    ("num_experts_per_tok", {"num_experts_per_tok": 0}),
    ("max_position_embeddings", {"max_position_embeddings": 0}),
    ("sliding_window", {"sliding_window": -128}),
    ("sliding_window", {"sliding_window": "128"}),
    ("num_hidden_layers", {"num_hidden_layers": 10**7, "layer_types": None}),
    ("num_hidden_layers", {"num_hidden_layers": 10**7}),
    ("num_hidden_layers", {"num_hidden_layers": 0, "layer_types": []}),
    ("num_hidden_layers", {"num_hidden_layers": -1, "layer_types": None}),
    ("layer_types", {"layer_types": ["full_attention"] * 400_000}),
    ("layer_types", {"layer_types": {"0": "full_attention"}}),
    ("layer type", {"layer_types": ["x" * 100_000] * 6}),
    ("rms_norm_eps", {"rms_norm_eps": HUGE}),
    ("rms_norm_eps", {"rms_norm_eps": 0}),
    ("rms_norm_eps", {"rms_norm_eps": -1e-5}),
    ("rms_norm_eps", {"rms_norm_eps": 1e-300}),
    ("rms_norm_eps", {"rms_norm_eps": 5}),
    ("swiglu_limit", {"swiglu_limit": -7}),
    ("swiglu_limit", {"swiglu_limit": 0.0}),
    ("swiglu_limit", {"swiglu_limit": NAN}),
    ("swiglu_limit", {"swiglu_limit": INF}),
    ("swiglu_limit", {"swiglu_limit": 1e38}),
    ("swiglu_limit", {"swiglu_limit": "7"}),
    ("swiglu_alpha", {"swiglu_alpha": 0}),
    ("swiglu_alpha", {"swiglu_alpha": -1.702}),
    ("swiglu_alpha", {"swiglu_alpha": NAN}),
    ("rope_theta", {"rope_theta": 1}),
    ("rope_theta", {"rope_theta": 0}),
    ("rope_theta", {"rope_theta": -150000}),
    ("rope_theta", {"rope_theta": HUGE}),
    ("rope_theta", {"rope_theta": INF}),
    ("factor", {"rope_scaling": ROPE | {"factor": 0}}),
    ("factor", {"rope_scaling": ROPE | {"factor": -32}}),
    ("factor", {"rope_scaling": ROPE | {"factor": 0.01}}),
    ("factor", {"rope_scaling": ROPE | {"factor": 1e20}}),
    ("factor", {"rope_scaling": ROPE | {"factor": NAN}}),
    ("beta_fast", {"rope_scaling": ROPE | {"beta_fast": 0}}),
    ("beta_fast", {"rope_scaling": ROPE | {"beta_fast": -32}}),
    ("beta_fast", {"rope_scaling": ROPE | {"beta_fast": INF}}),
    ("beta_slow", {"rope_scaling": ROPE | {"beta_slow": NAN}}),
    ("beta_slow", {"rope_scaling": ROPE | {"beta_slow": 0}}),
    ("rope_beta_slow", {"rope_scaling": ROPE | {"beta_slow": 40}}),
    ("original_max_position_embeddings", {"rope_scaling": ROPE | {"original_max_position_embeddings": 0}}),
    ("original_max_position_embeddings", {"rope_scaling": ROPE | {"original_max_position_embeddings": HUGE}}),
    ("attention_factor", {"rope_scaling": ROPE | {"attention_factor": HUGE}}),
    ("rope_type", {"rope_scaling": ROPE | {"rope_type": {"a": 1}}}),
    ("truncate", {"rope_scaling": ROPE | {"truncate": 1}}),
    ("quantized by", {"quantization_config": {"quant_method": "x" * 10**6}}),
    ("eos_token_id", {"eos_token_id": 1.5}),
    ("eos_token_id", {"eos_token_id": [[1]]}),
    ("model_type", {"model_type": "\x1b[2J" + "x" * 10**6}),
]


@pytest.mark.parametrize(("words", "changes"), SETTINGS, ids=[f"{c}"[:60] for _, c in SETTINGS])
def test_a_setting_of_config_json_that_is_senseless(attempt, pocket, words, changes):
    error = attempt.refused(lambda: load(put(pocket, "config.json", raw() | changes)), words)
    assert len(str(error)) < 1500, "the error has all of a value that may be megabytes"


def test_an_original_config_and_a_gguf_have_ranges_too(attempt, tmp_path):
    folder = SEED.write_original(tmp_path / "original")
    config = json.loads((folder / "config.json").read_text())
    for words, change in (
        ("rope_ntk_alpha", {"rope_ntk_alpha": NAN}),
        ("rope_ntk_beta", {"rope_ntk_beta": 0}),
        ("rope_scaling_factor", {"rope_scaling_factor": 1e25}),
        ("initial_context_length", {"initial_context_length": 0}),
        ("num_hidden_layers", {"num_hidden_layers": 10**7}),
        ("swiglu_limit", {"swiglu_limit": -7}),
    ):
        attempt.refused(lambda change=change: load(put(folder, "config.json", config | change)), words)


# -- files that are none, or far too large


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["config.json", "generation_config.json", "tokenizer.json", "model.safetensors"])
def test_a_file_of_a_model_that_is_not_a_file(attempt, pocket, name, kind):
    special(pocket / name, kind)
    attempt.refused(lambda: load(pocket), name.partition(".")[0])


def test_a_fifo_in_place_of_the_weights_in_a_process_of_its_own(attempt, pocket):
    """The library would open it in native code, where neither a signal nor a time limit of Python reaches."""
    special(pocket / "model.safetensors", "FIFO")
    code = "import sys, workbench as wb\ntry: wb.Model(sys.argv[1])\nexcept wb.errors.CheckpointError as e: print(e)"
    done = attempt.script(code, str(pocket), seconds=50)
    assert "not a file" in done.stdout, done.stderr
    attempt.judged("refused")


def test_a_sparse_file_of_300_mb_in_place_of_json(attempt, pocket):
    for name in ("config.json", "generation_config.json", "tokenizer.json"):
        (pocket / name).unlink()
        with (pocket / name).open("wb") as file:
            file.truncate(300 << 20)
        attempt.refused(lambda: load(pocket), "limit")
        shutil.copy(embedded_folder() / name, pocket / name) if (embedded_folder() / name).exists() else (
            pocket / name
        ).unlink()


TOKENIZERS = {
    "not UTF-8": b'{"added_tokens": [{"id": 1, "content": "\xff"}]}',
    "nested": b'{"added_tokens": ' + b"[" * 100_000,
    "a text for an id": b'{"added_tokens": [{"id": "1", "content": "<|return|>"}]}',
    "a list for an id": b'{"added_tokens": [{"id": [1], "content": "<|return|>"}]}',
    "a list of numbers": b'{"added_tokens": [1, 2]}',
    "an object": b'{"added_tokens": {"1": {}}}',
    "cut": b'{"added_tokens": [{"id": 1, ',
    "not JSON": b"added_tokens",
}


@pytest.mark.parametrize("text", TOKENIZERS.values(), ids=TOKENIZERS)
def test_the_added_tokens_of_a_hostile_tokenizer(attempt, pocket, text):
    attempt.refused(lambda: load(put(pocket, "tokenizer.json", text)), "tokenizer.json")


TOKENIZER_CONFIGS = {
    "a list": b'{"added_tokens_decoder": [1]}',
    "no content": b'{"added_tokens_decoder": {"1": {}}}',
    "a number for the content": b'{"added_tokens_decoder": {"1": {"content": 5}}}',
    "nested": b'{"added_tokens_decoder": ' + b"[" * 10**5,
    "not UTF-8": b"\xff",
}


@pytest.mark.parametrize("content", TOKENIZER_CONFIGS.values(), ids=TOKENIZER_CONFIGS)
def test_the_added_tokens_of_a_hostile_tokenizer_config(attempt, pocket, content):
    (pocket / "tokenizer.json").unlink()
    attempt.refused(lambda: load(put(pocket, "tokenizer_config.json", content)), "tokenizer_config.json")


def test_an_id_of_5000_digits_in_tokenizer_config_is_no_stop_token(attempt, pocket):
    expected = load(pocket).stop_ids
    (pocket / "tokenizer.json").unlink()
    tokens = {"9" * 5000: {"content": "<|return|>"}, "-1": {"content": "<|call|>"}, "٣": {"content": "<|endoftext|>"}}
    put(pocket, "tokenizer_config.json", {"added_tokens_decoder": tokens})
    attempt.right(lambda: load(pocket).stop_ids, lambda ids: set(ids) <= set(expected))


def test_stop_tokens_are_not_taken_from_a_text_that_only_looks_like_the_list(attempt, pocket):
    trap = {"normalizer": {"added_tokens": [{"id": 3, "content": "<|return|>"}]}, "x": '"added_tokens": ['}
    expected = load(pocket).stop_ids
    put(pocket, "tokenizer.json", json.dumps(trap | raw("tokenizer.json")))
    attempt.right(lambda: load(pocket).stop_ids, lambda ids: ids == expected)


@pytest.mark.parametrize(
    "text", [b"\xff\xfe", b"[" * 10**5, b'{"eos_token_id": "1"}', b'{"eos_token_id": 1, "eos_token_id": 2}', b"[]"]
)
def test_a_hostile_generation_config(attempt, pocket, text):
    attempt.refused(lambda: load(put(pocket, "generation_config.json", text)), "")


# -- names of models


@pytest.mark.parametrize(
    "name",
    ["", " ", "~nosuchuser", "~nosuchuser/model", "a" * 5000, "a/" + "b" * 5000, "a\0b", "openai/../../etc", "/",
     "\x1b[2J/x", "\udc80", "openai/gpt-oss-20b\n", "file:///etc", b"pocket", b"", 5, None, ["pocket"], Path("\0")],
    ids=lambda name: repr(name)[:30],
)  # fmt: skip
def test_a_name_that_leads_to_no_model(attempt, tmp_path, monkeypatch, name):
    monkeypatch.chdir(embedded_folder())  # where "" must not find a model
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    attempt.refused(lambda: load(name))


@pytest.mark.parametrize("path", ["", "~nosuchuser/adapter", "a" * 5000, "a\0b"], ids=lambda p: p[:20])
def test_a_name_that_leads_to_no_adapter(attempt, adapter, monkeypatch, path):
    monkeypatch.chdir(adapter)  # where "" must not find an adapter
    attempt.refused(lambda: read_adapter(path, SEED.config))


def test_a_folder_named_with_control_characters_is_shown_without_them(attempt, tmp_path):
    folder = tmp_path / "a\x1b[2Jb\u202e"
    folder.mkdir()
    (folder / "x\x1b[31m.txt").write_text("")
    attempt.refused(lambda: load(folder), "no weights")


CACHES = {
    "not UTF-8": b"\xff\xfe",
    "endless": b"a" * 10_000,
    "another folder": b"../../../../etc",
    "absolute": b"/etc",
    "long": b"a" * 900,
    "empty": b"",
    "a line feed inside": b"abc\ndef",
}


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    """A Hugging Face cache with one complete model and one that a test damages; the folder of the second."""
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    for name in ("good", "bad"):
        repo = tmp_path / "hub" / f"models--openai--gpt-oss-{name}"
        (repo / "refs").mkdir(parents=True)
        (repo / "refs" / "main").write_text("abc")
        SEED.write_hf_mxfp4(repo / "snapshots" / "abc")
    return repo


def listed_by_doctor(problem: bool):
    """Whether doctor lists both models, and whether the damaged one has a problem."""

    def check(report) -> bool:
        cached = {one.name: one for one in report.cached}
        good, bad = cached["openai/gpt-oss-good"], cached["openai/gpt-oss-bad"]
        return "token ids" in good.problem and bool(str(report)) and (bad.problem != good.problem) == problem

    return check


@pytest.mark.parametrize("text", CACHES.values(), ids=CACHES)
def test_a_hostile_refs_main(attempt, cache, text):
    (cache / "refs" / "main").write_bytes(text)
    attempt.refused(lambda: load("openai/gpt-oss-bad"), "main")
    attempt.right(wb.doctor, listed_by_doctor(problem=True))


@pytest.mark.parametrize("kind", KINDS[:-1])
def test_refs_main_and_weights_in_the_cache_that_are_not_files(attempt, cache, kind):
    special(cache / "snapshots" / "abc" / "model.safetensors", kind)
    attempt.right(wb.doctor, listed_by_doctor(problem=True))
    special(cache / "refs" / "main", kind)
    attempt.refused(lambda: load("openai/gpt-oss-bad"), "main") if kind != "link to itself" else None
    attempt.right(wb.doctor, listed_by_doctor(problem=True))


@pytest.mark.parametrize(
    "name", ["config.json", "chat_template.jinja", "tokenizer.json", "model.safetensors.index.json"]
)
def test_doctor_survives_files_that_are_not_utf_8(attempt, cache, name):
    (cache / "snapshots" / "abc" / name).write_bytes(b"\xff" * 100)
    attempt.right(wb.doctor, lambda report: len(report.cached) == 2 and bool(str(report)))


@pytest.mark.parametrize("path", ["a" * 5000, "~nosuchuser/hub", "a\x1bb", "$NOTHING"], ids=lambda p: p[:20])
def test_doctor_survives_a_cache_at_an_impossible_path(attempt, monkeypatch, path):
    monkeypatch.setenv("HF_HUB_CACHE", path)
    attempt.right(wb.doctor, lambda report: report.cached == () and report.cache_disk_free > 0)


def test_doctor_survives_a_current_folder_that_was_deleted(attempt, tmp_path, monkeypatch):
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    attempt.right(wb.doctor, lambda report: report.disk_free > 0)


# -- safetensors and their index


def safetensors(header: bytes | dict, data: bytes = b"", length: int | None = None) -> bytes:
    text = json.dumps(header).encode() if isinstance(header, dict) else header
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def entry(shape: list, start: int, stop: int, dtype: str = "BF16") -> dict:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, stop]}


HEADERS = {
    "overlap": safetensors({"a": entry([4], 0, 8), "b": entry([4], 4, 12)}, b"x" * 12),
    "the same bytes": safetensors({"a": entry([4], 0, 8), "b": entry([4], 0, 8)}, b"x" * 8),
    "a hole": safetensors({"a": entry([4], 0, 8), "b": entry([4], 16, 24)}, b"x" * 24),
    "bytes at the end": safetensors({"a": entry([4], 0, 8)}, b"x" * 800),
    "a shape that overflows": safetensors({"a": entry([2**62, 2**62], 0, 8)}, b"x" * 8),
    "a shape that wraps to 0": safetensors({"a": entry([2**32, 2**32], 0, 0)}),
    "zero size": safetensors({"model.norm.weight": entry([0], 0, 0)}),
    "a negative shape": safetensors({"a": entry([-4], 0, 8)}, b"x" * 8),
    "a shape of decimals": safetensors({"a": entry([4.0], 0, 8)}, b"x" * 8),
    "offsets backwards": safetensors({"a": entry([4], 8, 0)}, b"x" * 8),
    "an unknown dtype": safetensors({"a": entry([4], 0, 8, "COMPLEX")}, b"x" * 8),
    "an 8-bit dtype": safetensors({"model.norm.weight": entry([8], 0, 8, "F8_E4M3")}, b"x" * 8),
    "a name twice": safetensors(b'{"a":%b,"a":%b}' % ((json.dumps(entry([4], 0, 8)).encode(),) * 2), b"x" * 8),
    "a name of a megabyte": safetensors({"\x1b[2J" * 200_000: entry([4], 0, 8)}, b"x" * 8),
    "a layer of 5,000 digits": safetensors({f"model.layers.{'9' * 5000}.x": entry([4], 0, 8)}, b"x" * 8),
    "nested": safetensors(b'{"a":' * 100_000),
    "not UTF-8": safetensors(b'{"\xff":1}'),
    "a list": safetensors(b"[]"),
    "no header": safetensors(b""),
    "a header longer than the file": safetensors(b"{}", length=2**63),
    "only 3 bytes": b"\0\0\0",
    "empty": b"",
    "a pickle": pickle.dumps({"a": 1}),
}


@pytest.mark.parametrize("data", HEADERS.values(), ids=HEADERS)
def test_hostile_safetensors(attempt, pocket, data):
    error = attempt.refused(lambda: load(put(pocket, "model.safetensors", data)))
    assert len(str(error)) < 3000


def test_a_header_of_100_mb(attempt, pocket):
    file = pocket / "model.safetensors"
    file.unlink()
    with file.open("wb") as opened:
        opened.write(struct.pack("<Q", 99_000_000) + b'{"a":')
        opened.truncate(100_000_000)
    attempt.refused(lambda: load(pocket), "header of 99,000,000 bytes")


INDEXES = {
    "an absolute path": {"weight_map": {"a": "/etc/passwd"}},
    "another folder": {"weight_map": {"a": "../model.safetensors"}},
    "a folder of its own": {"weight_map": {"a": "."}},
    "a NUL": {"weight_map": {"a": "x\0y"}},
    "a name of 5,000 letters": {"weight_map": {"a": "x" * 5000}},
    "a list": {"weight_map": ["a"]},
    "nothing": {"weight_map": {}},
    "numbers": {"weight_map": {"a": 1}},
    "a million tensors": {"weight_map": {str(n): "x" for n in range(1_000_000)}},
    "not JSON": b"\xff",
    "nested": b"[" * 100_000,
    "a key twice": b'{"weight_map": {"a": "x", "a": "y"}}',
}


@pytest.mark.parametrize("index", INDEXES.values(), ids=INDEXES)
def test_a_hostile_index(attempt, pocket, index):
    (pocket / "model.safetensors").unlink()
    put(pocket, "model.safetensors.index.json", index)
    attempt.refused(lambda: load(pocket), "index", seconds=30)  # 1.5 s of a core that is not shared


def test_a_shard_that_the_index_names_twice_is_read_once(attempt, pocket):
    names = list(load_file(pocket / "model.safetensors"))
    (pocket / "model.safetensors").rename(pocket / "model-1.safetensors")
    put(pocket, "model.safetensors.index.json", {"weight_map": dict.fromkeys(names, "model-1.safetensors")})
    expected = load("pocket").digest
    attempt.right(lambda: load(pocket).digest, lambda digest: digest == expected)


class Trap:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "consolidated.00.pth", "adapter_model.bin"])
def test_pickles_are_never_opened(attempt, pocket, tmp_path, name):
    (pocket / "model.safetensors").unlink()
    (pocket / name).write_bytes(pickle.dumps(Trap(tmp_path / "PWNED")))
    attempt.refused(lambda: load(pocket), "never opened")
    assert not (tmp_path / "PWNED").exists()


# -- GGUF

pytest.importorskip("gguf", reason="no gguf in this environment")


@pytest.fixture(scope="module")
def gguf_bytes(tmp_path_factory) -> bytes:
    return SEED.write_gguf(tmp_path_factory.mktemp("gguf") / "x.gguf").read_bytes()


def text(value: bytes) -> bytes:
    return struct.pack("<Q", len(value)) + value


def gguf_file(settings: list[bytes], tensors: tuple[bytes, ...] = (), counts: tuple[int, int] | None = None) -> bytes:
    n_tensors, n_settings = counts or (len(tensors), len(settings))
    return b"GGUF" + struct.pack("<IQQ", 3, n_tensors, n_settings) + b"".join((*settings, *tensors)) + b"\0" * 64


def array(kind: int, n: int, data: bytes = b"") -> bytes:
    return text(b"tokenizer.ggml.tokens") + struct.pack("<IIQ", 9, kind, n) + data


def tensor(shape: tuple[int, ...], offset: int = 0, kind: int = 0, name: bytes = b"a", n: int | None = None) -> bytes:
    n = len(shape) if n is None else n
    return text(name) + struct.pack(f"<I{len(shape)}QIQ", n, *shape, kind, offset)


KEY = text(b"general.architecture") + struct.pack("<I", 8) + text(b"gpt-oss")
GGUFS = {
    "an array of 2**60 numbers": gguf_file([array(4, 2**60)]),
    "an array of 2**60 texts": gguf_file([array(8, 2**60)]),
    "an array of 2**63 bytes": gguf_file([array(0, 2**63)]),
    "6 million empty texts": gguf_file([array(8, 6_000_000, b"\0" * 48_000_000)]),
    "an array of arrays": gguf_file([array(9, 2)]),
    "an array of an unknown type": gguf_file([array(77, 2)]),
    "2**60 tensors": gguf_file([KEY], counts=(2**60, 1)),
    "2**60 settings": gguf_file([KEY], counts=(0, 2**60)),
    "a key of 2**63 bytes": gguf_file([struct.pack("<Q", 2**63)]),
    "a key of 60 MB": gguf_file([struct.pack("<Q", 60_000_000)]),
    "a key that is not UTF-8": gguf_file([text(b"\xff") + struct.pack("<IB", 0, 1)]),
    "a setting twice": gguf_file([KEY, KEY]),
    "a setting of an unknown type": gguf_file([text(b"a") + struct.pack("<I", 500)]),
    "no bytes": b"",
    "only the magic": b"GGUF",
    "another magic": b"GGML" + b"\0" * 100,
    "big-endian": b"GGUF" + struct.pack(">IQQ", 3, 0, 0),
    "2**31 axes": gguf_file([KEY], (tensor((1,), n=2**31),)),
    "no axes": gguf_file([KEY], (tensor(()),)),
    "a shape of 2**62 x 2**62": gguf_file([KEY], (tensor((2**62, 2**62)),)),
    "an axis of 0": gguf_file([KEY], (tensor((0,)),)),
    "a tensor after the end": gguf_file([KEY], (tensor((1000,)),)),
    "an offset of 2**63": gguf_file([KEY], (tensor((4,), 2**63),)),
    "a tensor twice": gguf_file([KEY], (tensor((4,)), tensor((4,), 32))),
    "a tensor type of 2**31": gguf_file([KEY], (tensor((4,), kind=2**31),)),
    "half a block": gguf_file([KEY], (tensor((4,), kind=8),)),
    "an alignment of 0": gguf_file([text(b"general.alignment") + struct.pack("<II", 4, 0)]),
    "an alignment of 3": gguf_file([text(b"general.alignment") + struct.pack("<II", 4, 3)]),
    "an alignment of 2**31": gguf_file([text(b"general.alignment") + struct.pack("<II", 4, 2**31)]),
    "an alignment that is a text": gguf_file([text(b"general.alignment") + struct.pack("<I", 8) + text(b"32")]),
}


@pytest.mark.parametrize("data", GGUFS.values(), ids=GGUFS)
def test_a_hostile_header_of_gguf(attempt, tmp_path, data):
    (tmp_path / "x.gguf").write_bytes(data)
    attempt.refused(lambda: load(tmp_path / "x.gguf"), "x.gguf")


@pytest.mark.parametrize("value", [0, 32, 1, 8, 2**20, 2**40, 2**64 - 32])
@pytest.mark.parametrize("name", [b"output_norm.weight", b"blk.0.attn_sinks.weight", b"blk.1.ffn_down_exps.weight"])
def test_a_gguf_tensor_that_lies_elsewhere(attempt, tmp_path, gguf_bytes, name, value):
    """The last field of a tensor's entry is its offset: it would be loaded from the bytes of another tensor."""
    at = gguf_bytes.index(text(name)) + 8 + len(name)
    n_axes = struct.unpack_from("<I", gguf_bytes, at)[0]
    at += 4 + 8 * n_axes + 4
    assert struct.unpack_from("<Q", gguf_bytes, at)[0] != value
    (tmp_path / "x.gguf").write_bytes(gguf_bytes[:at] + struct.pack("<Q", value) + gguf_bytes[at + 8 :])
    attempt.refused(lambda: load(tmp_path / "x.gguf"), "the tensor")


def test_two_gguf_tensors_that_change_places(attempt, tmp_path, gguf_bytes):
    """They tile the file, so this is another model: the digest differs."""
    a, b = (gguf_bytes.index(text(name)) + 8 for name in (b"blk.0.attn_q.bias", b"blk.1.attn_q.bias"))
    swapped = bytearray(gguf_bytes)
    swapped[a : a + 17], swapped[b : b + 17] = gguf_bytes[b : b + 17], gguf_bytes[a : a + 17]
    (tmp_path / "a.gguf").write_bytes(gguf_bytes)
    (tmp_path / "b.gguf").write_bytes(swapped)
    honest = load(tmp_path / "a.gguf").digest
    attempt.right(lambda: load(tmp_path / "b.gguf").digest, lambda digest: digest != honest)


def test_a_gguf_with_bytes_after_the_last_tensor(attempt, tmp_path, gguf_bytes):
    (tmp_path / "x.gguf").write_bytes(gguf_bytes + b"x" * 5000)
    attempt.refused(lambda: load(tmp_path / "x.gguf"), "after the last tensor")


PIECES = ["x-00001-of-99999.gguf", "x-00003-of-00002.gguf", "x-00000-of-00000.gguf", "x-٠٠٠٠١-of-٠٠٠٠٢.gguf"]


@pytest.mark.parametrize("name", PIECES)
def test_a_name_of_a_piece_that_cannot_be_one(attempt, tmp_path, gguf_bytes, name):
    (tmp_path / name).write_bytes(gguf_bytes)
    attempt.safe(lambda: load(tmp_path / name), lambda loaded: loaded.config == SEED.config)


@pytest.mark.parametrize("kind", KINDS[:-1])
def test_a_gguf_that_is_not_a_file(attempt, tmp_path, kind):
    special(tmp_path / "x.gguf", kind)
    attempt.refused(lambda: load(tmp_path / "x.gguf"))


def test_an_honest_gguf_loads(attempt, tmp_path, gguf_bytes):
    (tmp_path / "x.gguf").write_bytes(gguf_bytes)
    attempt.right(
        lambda: load(tmp_path / "x.gguf").weights.ln_final,
        lambda ln: torch.equal(ln, SEED.checkpoint().weights.ln_final),
    )


# -- adapters


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    """An adapter of q_proj in both layers, with rank 2."""
    c, tensors = SEED.config, {}
    for layer in range(LAYERS):
        name = f"base_model.model.model.layers.{layer}.self_attn.q_proj.lora"
        tensors[f"{name}_A.weight"] = torch.ones(2, c.d_model)
        tensors[f"{name}_B.weight"] = torch.ones(c.n_heads * c.d_head, 2)
    folder = tmp_path / "adapter"
    folder.mkdir()
    save_file(tensors, folder / ADAPTER_WEIGHTS)
    return put(folder, ADAPTER_CONFIG, {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj"]})


def configured(folder: Path, **settings) -> Path:
    return put(folder, ADAPTER_CONFIG, json.loads((folder / ADAPTER_CONFIG).read_text()) | settings)


PATTERNS = [
    "(([a-z._0-9]+)+)+X", "a{1,4294967295}", "(.*)*X", "(a|aa)+$", "(a|aa)" * 30, "(.|..)" * 20 + "X", ".*" * 30 + "X",
    "(?:(?:(?:a?)*)*)*", "[9-0]", "[", "(", "(?=x)", "(?<=x)y", "(?P<a>x)(?P=a)", r"(x)\1", "a{99,1}", "x*+", "a**",
    "\\", "", "x" * 100_000, "(" * 5000 + ")" * 5000, "é", "a b", "q_proj\n", "\x1b[2J", "(?i)Q_PROJ", "[^x]+",
    "\\w+" * 9,
]  # fmt: skip


@pytest.mark.parametrize("key", PATTERNS, ids=lambda key: repr(key)[:30])
@pytest.mark.parametrize("setting", ["rank_pattern", "alpha_pattern"])
def test_a_pattern_of_an_adapter_that_is_not_run(attempt, adapter, setting, key):
    attempt.refused(lambda: read_adapter(configured(adapter, **{setting: {key: 2}}), SEED.config), setting)


NAMES = ["q_proj", "self_attn.q_proj", "model.layers.1.self_attn.q_proj", r".*\.q_proj",
         r"layers\.\d+\.self_attn\.q_proj", "layers.[0-9].self_attn.(q_proj|k_proj)", "^model.*q_proj$",
         ".*?q_proj"]  # fmt: skip


@pytest.mark.parametrize("key", NAMES)
def test_a_pattern_of_an_adapter_that_peft_writes(attempt, adapter, key):
    scaled = {0, 1} if "layers.1" not in key else {1}
    attempt.right(
        lambda: read_adapter(configured(adapter, alpha_pattern={key: 6}), SEED.config).factors,
        lambda factors: {layer for (layer, _), f in factors.items() if f.scaling == 3} == scaled,
    )


def test_patterns_that_are_each_slow_and_very_many(attempt, adapter):
    slow = {f".*.*.*x{n}": 2 for n in range(50)}
    attempt.right(
        lambda: len(read_adapter(configured(adapter, rank_pattern=slow), SEED.config).factors), lambda n: n == 2
    )
    more = {f".*.*.*x{n}": 2 for n in range(5000)}
    attempt.refused(lambda: read_adapter(configured(adapter, rank_pattern=more), SEED.config), "rank_pattern")
    names = {f"name_{n}": 2 for n in range(20_000)}
    attempt.refused(lambda: read_adapter(configured(adapter, rank_pattern=names), SEED.config), "at most 10,000")


ADAPTER_SETTINGS = [
    {"r": 10**400}, {"r": True}, {"r": 2.0}, {"r": -1}, {"r": NAN}, {"lora_alpha": 10**400}, {"lora_alpha": NAN},
    {"lora_alpha": True}, {"lora_alpha": "4"}, {"use_rslora": "false"}, {"target_parameters": ["a"] * 100_000},
    {"target_parameters": [1]}, {"target_parameters": {"a": 1}}, {"rank_pattern": {"q_proj": 0}}, {"bias": {"a": 1}},
    {"alpha_pattern": {"q_proj": INF}}, {"peft_type": ["LORA"]}, {"init_lora_weights": {"a": 1}}, {"x" * 10**6: 1},
]  # fmt: skip


@pytest.mark.parametrize("settings", ADAPTER_SETTINGS, ids=lambda s: str(s)[:40])
def test_a_setting_of_an_adapter_that_is_senseless(attempt, adapter, settings):
    error = attempt.refused(lambda: read_adapter(configured(adapter, **settings), SEED.config))
    assert len(str(error)) < 1500


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", [ADAPTER_CONFIG, ADAPTER_WEIGHTS])
def test_a_file_of_an_adapter_that_is_not_a_file(attempt, adapter, name, kind):
    special(adapter / name, kind)
    attempt.refused(lambda: read_adapter(adapter, SEED.config))


@pytest.mark.parametrize("content", [b"[" * 10**5, b"\xff", b"", b"[]", b'{"r": 2, "r": 3}'])
def test_a_hostile_adapter_config(attempt, adapter, content):
    attempt.refused(lambda: read_adapter(put(adapter, ADAPTER_CONFIG, content), SEED.config), ADAPTER_CONFIG)


def test_an_adapter_of_a_layer_with_5000_digits(attempt, adapter):
    name = f"base_model.model.model.layers.{'9' * 5000}.self_attn.q_proj.lora_A.weight"
    save_file({name: torch.ones(2, 2)}, adapter / ADAPTER_WEIGHTS)
    error = attempt.refused(lambda: read_adapter(adapter, SEED.config), "cannot be adapted")
    assert len(str(error)) < 1500


# -- devices


@pytest.mark.parametrize(
    "device", ["xyz", "mps", "meta", "", "cuda:99", "cpu:x", "xla", 5, ["cpu"], "c\0pu", "CPU", 1.5]
)
def test_a_device_that_is_none(attempt, device):
    attempt.refused(lambda: wb.Model("pocket", device=device), "device")


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_cuda_without_a_gpu(attempt):
    attempt.refused(lambda: wb.Model("pocket", device="cuda"), "device")


# -- memory


def tree(root: Path, cgroup: str, mounts: str, files: dict[str, str]) -> Path:
    """A made-up /proc and /sys."""
    for name, content in {"proc/self/cgroup": cgroup, "proc/self/mountinfo": mounts, **files}.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(content)
    return root


V2 = "30 24 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw"
V1 = "34 31 0:31 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory"
TREES = {
    "v2, the group itself": (
        "0::/user.slice/job", V2,
        {"user.slice/job/memory.max": "1000", "user.slice/job/memory.current": "400"}, [(1000, 400)],
    ),
    "v2, a parent is lower": (
        "0::/a/b/c", V2,
        {"a/memory.max": "500", "a/memory.current": "100", "a/b/memory.max": "max", "a/b/c/memory.max": "900",
         "a/b/c/memory.current": "50"},
        [(900, 50), (500, 100)],
    ),
    "v2, the root of the container": ("0::/", V2, {"memory.max": "700", "memory.current": "1"}, [(700, 1)]),
    "v2, the host's path in a container": (
        "0::/docker/abc/job", V2.replace("/ /sys", "/docker/abc /sys"),
        {"job/memory.max": "600", "job/memory.current": "6"}, [(600, 6)],
    ),
    "v2, a path outside of the container": (
        "0::/../../x", V2, {"memory.max": "800", "memory.current": "8"}, [(800, 8)],
    ),
    "v2, memory.high": (
        "0::/a", V2, {"a/memory.max": "max", "a/memory.high": "300", "a/memory.current": "3"}, [(300, 3)],
    ),
    "v2, page cache is freed": (
        "0::/a", V2, {"a/memory.max": "300", "a/memory.current": "90", "a/memory.stat": "file 1\ninactive_file 40\n"},
        [(300, 50)],
    ),
    "v2, no limit": ("0::/a", V2, {"a/memory.max": "max"}, []),
    "v2, a text for a limit": ("0::/a", V2, {"a/memory.max": "lots", "a/memory.current": "x"}, []),
    "v2, no usage": ("0::/a", V2, {"a/memory.max": "300"}, [(300, 0)]),
    "damaged proc": ("nonsense\n:\n::\n0::/a:b", "x\n - \n" + V2, {"a:b/memory.max": "5"}, [(5, 0)]),
}  # fmt: skip


@pytest.mark.parametrize(("cgroup", "mounts", "files", "limits"), TREES.values(), ids=TREES)
def test_limits_of_control_groups_2(attempt, tmp_path, cgroup, mounts, files, limits):
    root = tree(tmp_path, cgroup, mounts, {f"sys/fs/cgroup/{name}": content for name, content in files.items()})
    attempt.right(lambda: memory.cgroup_limits(root), lambda found: sorted(found) == sorted(limits))


def test_limits_of_control_groups_1(attempt, tmp_path):
    files = {"slurm/memory.limit_in_bytes": "5000", "slurm/memory.usage_in_bytes": "1000",
             "slurm/memory.stat": "inactive_file 1\ntotal_inactive_file 200\n",
             "memory.limit_in_bytes": str(2**63 - 4096), "slurm/job/memory.limit_in_bytes": "7000",
             "slurm/job/memory.usage_in_bytes": "0"}  # fmt: skip
    files = {f"sys/fs/cgroup/memory/{name}": content for name, content in files.items()}
    root = tree(tmp_path, "9:name=systemd:/x\n4:cpu,memory:/slurm/job\n0::/", f"{V2}\n{V1}", files)
    attempt.right(lambda: memory.cgroup_limits(root), lambda found: sorted(found) == [(5000, 800), (7000, 0)])


def test_without_proc_there_is_no_limit(attempt, tmp_path):
    attempt.right(lambda: memory.cgroup_limits(tmp_path), lambda found: found == [])


def test_the_limit_of_the_process_counts(attempt):
    code = (
        "import resource, sys; import workbench as wb; from workbench.model.memory import free_memory\n"
        "before = free_memory()\n"
        "used = __import__('psutil').Process().memory_info()\n"
        "for kind, now in (('RLIMIT_AS', used.vms), ('RLIMIT_DATA', used.data)):\n"
        "    hard = resource.getrlimit(getattr(resource, kind))[1]\n"
        "    resource.setrlimit(getattr(resource, kind), (now + (200 << 20), hard))\n"
        "    print(free_memory() <= 200 << 20 < before)\n"
        "    resource.setrlimit(getattr(resource, kind), (hard, hard))\n"
    )
    done = attempt.script(code)
    assert done.stdout.split() == ["True", "True"], done.stderr
    attempt.judged("right")


def test_a_run_under_ulimit_v_is_refused_before_it_starts_and_told_if_memory_ends(attempt):
    code = (
        "import resource; import workbench as wb; from workbench.recording import plan\n"
        "import psutil; model = wb.Model('pocket'); model.trace([5, 6, 7])\n"
        "resource.setrlimit(resource.RLIMIT_AS, (psutil.Process().memory_info().vms + (150 << 20),) * 2)\n"
        "def tell(call):\n"
        "    try: call()\n"
        "    except wb.errors.BudgetError as e: print('BudgetError', e)\n"
        "    except BaseException as e: print(type(e))\n"
        "tell(lambda: model.trace([5] * 6000, record='everything'))\n"
        "plan.free_memory = lambda *_: 1 << 50\n"
        "tell(lambda: model.trace([5] * 4000, record='patterns'))\n"
    )
    done = attempt.script(code)
    assert done.stdout.count("BudgetError") == 2 and "Smaller" in done.stdout, done.stdout + done.stderr
    attempt.judged("refused")


@pytest.mark.parametrize("record", ["everything", "patterns", "blocks.*.attn.hook_attn_scores"])
@pytest.mark.parametrize("to", [None, "x.trace"])
def test_a_recording_beyond_every_array_is_a_budget_error_with_smaller_choices(attempt, tmp_path, record, to):
    model = wb.Model("pocket")
    tokens = [5] * model.config.n_ctx
    path = None if to is None else tmp_path / to
    error = attempt.refused(lambda: model.trace(tokens, record=record, to=path), "Smaller: record='attention'")
    assert isinstance(error, wb.errors.BudgetError)
    attempt.right(lambda: model.estimate(tokens, record=record).fits, lambda fits: fits is False)


# -- the compiler

BUILD = (
    "import pathlib, sys; import workbench.model.kernels.build as b; b.TIME_LIMIT = 1\n"
    "try: print(b.build(pathlib.Path(sys.argv[1]) / 'x.so'))\n"
    "except b.CannotBuild as e: print('CannotBuild', e)\n"
)


@pytest.mark.parametrize(
    ("cc", "words"),
    [
        ('gcc "', "is not a command"),
        ("gcc 'x", "is not a command"),
        ("sh -c 'sleep 300'", "did not end"),
        ("sh -c 'sleep 300 & sleep 300'", "did not end"),
        ("sh -c 'yes >&2'", "did not end"),
        ("true", "made no library"),
        ("false", "code 1"),
        ("sh -c 'printf \\\\377 >&2; exit 3'", "cannot compile"),
        (f"{sys.executable} -c raise", "cannot compile"),
    ],
)
def test_a_compiler_that_is_none(attempt, tmp_path, cc, words):
    done = attempt.script(BUILD, str(tmp_path), env={**os.environ, "CC": cc}, seconds=30)
    assert "CannotBuild" in done.stdout and words in done.stdout, done.stdout + done.stderr
    assert not list(tmp_path.iterdir())
    attempt.judged("refused")


def test_a_wheel_is_pure_python_if_cc_cannot_be_used(attempt, tmp_path):
    pytest.importorskip("hatchling", reason="no hatchling in this environment")
    root, source = Path(wb.__file__).parents[1], tmp_path / "source"
    for name in ["pyproject.toml", "README.md", "LICENSE", "hatch_build.py", ".gitignore", "workbench/__init__.py"]:
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(root / name, source / name)
    shutil.copytree(
        root / "workbench/model/kernels",
        source / "workbench/model/kernels",
        ignore=shutil.ignore_patterns("_native*", "__pycache__"),
    )
    (source / "data/pocket").mkdir(parents=True)
    (source / "data/reference").mkdir()
    (source / "data/pocket/x").write_text("")
    code = (
        "import sys; from hatchling.cli import hatchling\n"
        "sys.argv[1:] = ['build', '-t', 'wheel', '-d', sys.argv[1]]; hatchling()"
    )
    done = attempt.script(code, str(tmp_path), cwd=source, env={**os.environ, "CC": 'gcc "'})
    (wheel,) = tmp_path.glob("*.whl")
    assert wheel.name.endswith("py3-none-any.whl") and "not a command" in done.stdout + done.stderr, done.stderr
    attempt.judged("right")
