"""What is said about a checkpoint's files: damage is found where a digest is known, and "not checked" where none is."""

import hashlib
import json
import shutil

import pytest

import workbench as wb
from tests import o200k
from tests.checkpoints import Random
from workbench.model.config import Config
from workbench.model_check import files, published
from workbench.model_check.line import Line


def lines_of(where) -> dict[str, Line]:
    return {line.tensor: line for line in wb.verify_model(where, parts=["files"], on_line=lambda line: None).lines}


def flip_a_nibble(file) -> None:
    data = bytearray(file.read_bytes())
    data[-1000] ^= 0x10
    file.write_bytes(data)


def record_digests(folder) -> None:
    """As `hf download --local-dir` does."""
    records = folder / ".cache" / "huggingface" / "download"
    records.mkdir(parents=True)
    for file in folder.glob("*.safetensors"):
        digest = hashlib.sha256(file.read_bytes()).hexdigest()
        (records / f"{file.name}.metadata").write_text(f"{'a' * 40}\n{digest}\n1764547200.0\n")


@pytest.fixture
def downloaded(tmp_path, model: Random):
    folder = model.write_hf_mxfp4(tmp_path / "model")
    record_digests(folder)
    return folder


def test_a_download_holds(downloaded):
    lines = lines_of(downloaded)
    weights = [line for name, line in lines.items() if name.endswith(".safetensors")]
    assert len(weights) == 3
    assert all(line.status == "holds" and "hf download" in line.note for line in weights)
    assert lines["model.safetensors.index.json"].status == "holds"


def test_a_flipped_nibble_is_found(downloaded):
    file = sorted(downloaded.glob("*.safetensors"))[1]
    flip_a_nibble(file)
    lines = lines_of(downloaded)
    assert [name for name, line in lines.items() if line.status == "fails"] == [file.name]
    assert "damaged or replaced" in lines[file.name].note and "Fetch it again" in lines[file.name].note


def test_a_shard_of_another_seed_is_found(downloaded, tmp_path):
    other = Random(seed=4).write_hf_mxfp4(tmp_path / "other")
    name = sorted(path.name for path in other.glob("*.safetensors"))[2]
    shutil.copy(other / name, downloaded / name)
    assert [n for n, line in lines_of(downloaded).items() if line.status == "fails"] == [name]


def test_without_a_digest_the_content_is_not_checked(tmp_path, model):
    folder = model.write_hf_mxfp4(tmp_path / "model")
    flip_a_nibble(sorted(folder.glob("*.safetensors"))[1])
    report = wb.verify_model(folder, parts=["files"], on_line=lambda line: None)
    assert report.ok
    for line in report.lines:
        if line.tensor.endswith(".safetensors"):
            assert line.status == "not checked" and "content not checked" in line.note


def test_hugging_faces_cache_names_files_by_their_digest(tmp_path, model, monkeypatch):
    written = model.write_hf_mxfp4(tmp_path / "written")
    repo = tmp_path / "hub" / "models--someone--tiny"
    snapshot = repo / "snapshots" / "abc123"
    snapshot.mkdir(parents=True)
    (repo / "blobs").mkdir()
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text("abc123")
    for file in written.iterdir():
        data = file.read_bytes()
        large = file.suffix == ".safetensors"
        name = hashlib.sha256(data).hexdigest() if large else hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
        (repo / "blobs" / name).write_bytes(data)
        (snapshot / file.name).symlink_to(repo / "blobs" / name)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    lines = lines_of("someone/tiny")
    assert {line.status for name, line in lines.items() if name.endswith((".safetensors", ".json"))} <= {
        "holds",
        "not checked",
    }
    assert lines["config.json"].status == "holds" and "cache" in lines["config.json"].note
    flip_a_nibble((snapshot / "model-00001-of-00002.safetensors").resolve())
    assert lines_of("someone/tiny")["model-00001-of-00002.safetensors"].status == "fails"


@pytest.mark.parametrize(("n_wrong", "status"), [(1, "fails"), (3, "not checked")])
def test_files_with_published_names_and_sizes(tmp_path, model, monkeypatch, n_wrong, status):
    """One shard that differs is damage; where all differ it is another model of the same shape, such as a fine-tune."""
    folder = model.write_hf_mxfp4(tmp_path / "model")
    table = {f.name: [f.stat().st_size, hashlib.sha256(f.read_bytes()).hexdigest()] for f in folder.iterdir()}
    monkeypatch.setattr(published, "published", lambda: {"models": {"openai/tiny": table}})
    shards = sorted(folder.glob("*.safetensors"))
    for file in shards[:n_wrong]:
        flip_a_nibble(file)
    lines = lines_of(folder)
    assert [lines[file.name].status for file in shards] == [status] * n_wrong + ["holds"] * (3 - n_wrong)


def test_the_published_table_agrees_with_the_published_shapes():
    """Tensors of a known size, and a header for each file, fill the published files."""
    models = published.published()["models"]
    for name, c in (("openai/gpt-oss-20b", Config()), ("openai/gpt-oss-120b", Config(n_layers=36, n_experts=128))):
        weights = {n: size for n, (size, _) in models[name].items() if n.endswith(".safetensors")}
        tensors = c.n_packed * 17 // 32 + (c.n_params - c.n_packed) * 2
        assert 0 < sum(weights.values()) - tensors < 20_000 * len(weights)
        assert models[name]["tokenizer.json"] == [27_868_174, o200k.TOKENIZER_SHA256]
        for _, digest in models[name].values():
            assert len(digest) == 64 and set(digest) <= set("0123456789abcdef")


@pytest.mark.parametrize("damage", ["cut", "longer", "gap", "index"])
def test_headers_that_disagree_are_named(tmp_path, model, damage):
    folder = model.write_hf_mxfp4(tmp_path / "model")
    file = sorted(folder.glob("*.safetensors"))[0]
    data = file.read_bytes()
    if damage == "cut":
        file.write_bytes(data[:-1])
    elif damage == "longer":
        file.write_bytes(data + b"\0")
    elif damage == "gap":
        n = int.from_bytes(data[:8], "little")
        header = json.loads(data[8 : 8 + n])
        last = max((k for k in header if k != "__metadata__"), key=lambda k: header[k]["data_offsets"])
        header[last]["data_offsets"] = [offset + 2 for offset in header[last]["data_offsets"]]
        new = json.dumps(header).encode()
        file.write_bytes(len(new).to_bytes(8, "little") + new + data[8 + n :] + b"\0\0")
    else:
        index = json.loads((folder / files.INDEX).read_text())
        index["metadata"]["total_size"] += 1
        (folder / files.INDEX).write_text(json.dumps(index))
    failed = [line for line in files.check_headers(*files.weight_files(folder, "hf-mxfp4")) if line.status == "fails"]
    assert failed[0].tensor == (files.INDEX if damage == "index" else f"{file.name} (header)")


def test_the_real_tokenizer_and_its_rendering_hold(tmp_path):
    model = Random(seed=3, d_vocab=201_088, n_layers=1, d_model=32, n_experts=4)
    folder = model.write_hf_mxfp4(tmp_path / "model")
    shutil.copy(o200k.folder() / "tokenizer.json", folder)
    lines = lines_of(folder)
    assert lines["vocabulary"].status == "holds"
    assert lines["rendering of a question"].status == "holds"
