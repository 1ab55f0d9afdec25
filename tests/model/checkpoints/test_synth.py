"""Random weights in the published layout: a seed gives the same bytes, files are written completely or not at all."""

import hashlib
import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

import workbench as wb
from tests.checkpoints import CONFIG
from workbench.errors import BudgetError, CheckpointError, ModelNotFound
from workbench.model.checkpoints import load, synth
from workbench.model.config import Config
from workbench.model.kernels.lora import whole


def digests(folder: Path) -> dict[str, str]:
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in folder.iterdir()}


def stored(folder: Path) -> dict[str, torch.Tensor]:
    tensors = {}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as shard:
            tensors |= {name: shard.get_tensor(name) for name in shard.keys()}  # noqa: SIM118 (not a dict)
    return tensors


def test_the_sizes_are_the_published_ones():
    for like, size, n in (("20b", 13_761_264_768, 459), ("120b", 65_248_815_744, 687)):
        entries = [entry for _, entry in synth._entries(synth.SHAPES[like])]
        assert (sum(entry.nbytes for entry in entries), len(entries)) == (size, n)
        assert len(synth._shards(*synth._config(like, None))) == synth.SHARDS[like]


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(tmp_path: Path):
    first, same_seed, other = (wb.synth(CONFIG, tmp_path / name, seed=seed) for name, seed in zip("abc", (0, 0, 1)))
    assert digests(first) == digests(same_seed)
    changed = {name for name, digest in digests(other).items() if digests(first)[name] != digest}
    assert changed == {f"model-0000{i}-of-00002.safetensors" for i in range(3)}


def test_the_codes_of_a_seed_have_the_recorded_digest(tmp_path: Path):
    codes = stored(wb.synth(CONFIG, tmp_path / "m"))["model.layers.1.mlp.experts.down_proj_blocks"]
    assert hashlib.sha256(codes.numpy().tobytes()).hexdigest()[:16] == "bf2780f798ffc6f0"


def test_names_and_codes_are_independent_of_the_chunk_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    whole = wb.synth(CONFIG, tmp_path / "whole")
    monkeypatch.setattr(synth, "CHUNK_NUMBERS", 1 << 10)
    assert digests(wb.synth(CONFIG, tmp_path / "chunks")).keys() == digests(whole).keys()
    codes = [name for name in stored(whole) if name.endswith("_blocks")]
    assert all(torch.equal(stored(whole)[name], stored(tmp_path / "chunks")[name]) for name in codes)


def test_fewer_layers_equal_the_first_layers_of_more(tmp_path: Path):
    whole, part = (stored(wb.synth(CONFIG, tmp_path / f"{n}", layers=n)) for n in (4, 2))
    assert {name for name in whole if name not in part} == {n for n in whole if ".layers.2." in n or ".layers.3." in n}
    assert all(torch.equal(part[name], whole[name]) for name in part)
    config = json.loads((tmp_path / "2" / "config.json").read_text())
    assert (config["num_hidden_layers"], len(config["layer_types"])) == (2, 2)


def test_all_experts_of_all_layers_differ(tmp_path: Path):
    blocks = [t for name, t in stored(wb.synth(CONFIG, tmp_path / "m")).items() if name.endswith("gate_up_proj_blocks")]
    experts = {expert.numpy().tobytes() for layer in blocks for expert in layer}
    assert len(experts) == CONFIG.n_layers * CONFIG.n_experts


def test_files_equal_those_written_by_safetensors(tmp_path: Path):
    from safetensors.torch import save_file

    folder = wb.synth(CONFIG, tmp_path / "m")
    for file in folder.glob("*.safetensors"):
        with safe_open(file, framework="pt") as shard:
            tensors = {name: shard.get_tensor(name) for name in shard.keys()}  # noqa: SIM118 (not a dict)
        save_file(tensors, tmp_path / "by_safetensors", metadata={"format": "pt"})
        assert (tmp_path / "by_safetensors").read_bytes() == file.read_bytes()


def test_the_checkpoint_loads_with_its_config(tmp_path: Path):
    checkpoint = load(wb.synth(CONFIG, tmp_path / "m"))
    assert (checkpoint.config, checkpoint.format) == (CONFIG, "hf-mxfp4")
    assert checkpoint.stop_ids == (CONFIG.d_vocab - 1,)


def test_the_config_of_the_20b_is_the_published_one():
    assert Config(n_layers=36, n_experts=128, layer_types=Config().layer_types[:2] * 18) == synth.SHAPES["120b"]
    assert synth.SHAPES["20b"] == Config()


def test_logits_are_finite_and_tokens_choose_among_many_experts(tmp_path: Path):
    wide = Config(n_layers=2, d_model=1024, n_experts=32, d_mlp=1024, d_vocab=512, layer_types=CONFIG.layer_types[:2])
    model = wb.Model(wb.synth(wide, tmp_path / "wide"))
    ids = torch.arange(64)[None]
    trace = model.trace(ids[0].tolist(), record="")
    assert torch.isfinite(model.forward(ids)).all()
    for layer in range(2):
        chosen = trace["expert_indices", layer]
        assert len(set(chosen.ravel().tolist())) > 16
        assert len({tuple(sorted(row)) for row in chosen.tolist()}) > 32


def test_the_tokenizer_is_copied(tmp_path: Path):
    (tmp_path / "from").mkdir()
    (tmp_path / "from" / "tokenizer.json").write_text("{}")
    folder = wb.synth(CONFIG, tmp_path / "m", tokenizer=tmp_path / "from")
    assert (folder / "tokenizer.json").read_text() == "{}"
    with pytest.raises(ModelNotFound, match="has no tokenizer"):
        wb.synth(CONFIG, tmp_path / "n", tokenizer=tmp_path)


def test_existing_files_are_not_overwritten(tmp_path: Path):
    (tmp_path / "existing").write_text("mine")
    for target in (tmp_path, tmp_path / "existing"):
        with pytest.raises(CheckpointError, match="not empty"):
            wb.synth(CONFIG, target)
    assert (tmp_path / "existing").read_text() == "mine"


def test_an_empty_folder_is_filled(tmp_path: Path):
    (tmp_path / "empty").mkdir()
    assert (wb.synth(CONFIG, tmp_path / "empty") / "config.json").is_file()


def test_a_full_disk_is_an_error_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(9, 8, 1_000_000))
    with pytest.raises(BudgetError, match=r"13\.8 GB.*1\.0 MB free"):
        wb.synth("20b", tmp_path / "m")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("layers", [0, 25, -1])
def test_an_impossible_number_of_layers_is_refused(tmp_path: Path, layers: int):
    with pytest.raises(CheckpointError, match="1 to 24"):
        wb.synth("20b", tmp_path / "m", layers=layers)


def test_an_interrupt_leaves_no_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(synth, "_describe", interrupted)
    with pytest.raises(KeyboardInterrupt):
        wb.synth(CONFIG, tmp_path / "m")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("dense", ["q8_0", "bf16"])
def test_a_gguf_of_the_checkpoint_has_the_same_weights(tmp_path: Path, dense: str):
    from benchmarks.gguf_of import to_gguf

    folder = wb.synth(CONFIG, tmp_path / "m")
    from_folder, from_gguf = (
        load(where, dtype=torch.float32, memory="small")
        for where in (folder, to_gguf(folder, tmp_path / "m.gguf", dense=dense))
    )
    assert from_gguf.config == from_folder.config
    tolerance = 0.0 if dense == "bf16" else 5e-4  # a step of Q8_0 is the largest value of its block over 127
    for block, gguf_block in zip(from_folder.weights.blocks, from_gguf.weights.blocks, strict=True):
        for name in ("up", "down"):
            a, b = getattr(block.experts, name), getattr(gguf_block.experts, name)
            assert torch.equal(a.blocks, b.blocks)
            assert torch.equal(a.scales, b.scales)
        assert torch.equal(block.experts.up_bias, gguf_block.experts.up_bias)
        assert torch.equal(whole(block.w_router), whole(gguf_block.w_router))
        assert (whole(block.w_q) - whole(gguf_block.w_q)).abs().max() <= tolerance
    assert (from_folder.weights.unembed - from_gguf.weights.unembed).abs().max() <= tolerance
