"""Each way in which a checkpoint can be broken has its own error, which says what to do."""

import json
import re

import gguf
import pytest
import torch
from safetensors.torch import save_file

from tests.checkpoints import Random, write_hf
from workbench.errors import CheckpointError
from workbench.model.checkpoints import load

MODEL = Random(seed=1, n_layers=2)


def refused(where, *words):
    with pytest.raises(CheckpointError) as caught:
        load(where)
    text = str(caught.value)
    for word in words:
        assert re.search(word, text), text
    return text


def hf(tmp_path, change=lambda tensors: None, **config):
    tensors = MODEL.hf_tensors()
    change(tensors)
    return write_hf(tmp_path, tensors, MODEL.hf_config() | config)


def test_a_missing_shard_is_named(tmp_path):
    folder = MODEL.write_hf_mxfp4(tmp_path)
    (folder / "model-00001-of-00002.safetensors").unlink()
    refused(folder, "1 shard .* missing: model-00001-of-00002.safetensors", "2 of 3")


def test_a_broken_link_in_the_hub_cache_counts_as_a_missing_shard(tmp_path):
    folder = MODEL.write_hf_mxfp4(tmp_path)
    shard = folder / "model-00001-of-00002.safetensors"
    shard.unlink()
    shard.symlink_to("../../blobs/not-fetched")
    refused(folder, "missing: model-00001-of-00002.safetensors")


@pytest.mark.parametrize("keep", [0, 5, 200, -100])
def test_a_truncated_shard_is_named(tmp_path, keep):
    folder = MODEL.write_hf_mxfp4(tmp_path)
    shard = folder / "model-00002-of-00002.safetensors"
    shard.write_bytes(shard.read_bytes()[:keep])
    refused(folder, "model-00002-of-00002.safetensors is damaged or cut short", "Fetch it again")


def test_a_git_lfs_pointer_is_recognized(tmp_path):
    folder = MODEL.write_hf_bf16(tmp_path)
    (folder / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:16d0f997\n")
    refused(folder, "git lfs pull")


@pytest.mark.parametrize("name", ["../x.safetensors", "/etc/passwd", "sub/x.safetensors", "..", "a\\b", ""])
def test_an_index_may_not_lead_out_of_its_folder(tmp_path, name):
    folder = MODEL.write_hf_mxfp4(tmp_path / "model")
    index = folder / "model.safetensors.index.json"
    data = json.loads(index.read_text())
    data["weight_map"]["model.norm.weight"] = name
    index.write_text(json.dumps(data))
    save_file({"model.norm.weight": torch.ones(96)}, tmp_path / "x.safetensors")
    refused(folder, "must lie in the folder itself")


def test_an_index_without_a_weight_map_is_refused(tmp_path):
    folder = MODEL.write_hf_mxfp4(tmp_path)
    for text in ("{}", '{"weight_map": {"a": 3}}', "[]", "{"):
        (folder / "model.safetensors.index.json").write_text(text)
        refused(folder, "model.safetensors.index.json")


def test_missing_and_unexpected_tensors_and_wrong_shapes_are_listed_together(tmp_path):
    def change(t):
        for n in range(2):
            for p in "qkv":
                del t[f"model.layers.{n}.self_attn.{p}_proj.bias"]
        t["model.layers.0.extra"] = torch.zeros(3)
        t["model.norm.weight"] = torch.ones(95)

    text = refused(
        hf(tmp_path, change),
        r"6 tensors are missing: .*, … \(2 more\)",
        "1 tensor is unexpected: model.layers.0.extra",
        r"1 tensor has a wrong shape: model.norm.weight is \[95\], the config says \[96\]",
        "Fetch or export",
    )
    assert len(text) < 1000


def test_a_config_of_another_size_is_refused(tmp_path):
    refused(hf(tmp_path, num_hidden_layers=3, layer_types=None), "20 tensors are missing|tensors are missing")
    refused(hf(tmp_path, vocab_size=999), r"2 tensors have wrong shapes: .*\[999, 96\]")


def test_two_files_with_the_same_tensor_are_refused(tmp_path):
    folder = MODEL.write_original(tmp_path)
    save_file({"norm.scale": torch.ones(96)}, folder / "more.safetensors")
    refused(folder, "'norm.scale', and so does another file")


def test_tensors_of_a_wrong_type_are_refused(tmp_path):
    def change(t):
        t["model.layers.0.mlp.experts.down_proj_scales"] = t["model.layers.0.mlp.experts.down_proj_scales"].float()
        t["model.norm.weight"] = torch.ones(96, dtype=torch.int32)

    refused(hf(tmp_path, change), "2 tensors of unexpected types", "is float32, not uint8", "is int32, not bfloat16 or")


def test_a_scale_of_255_is_refused_by_name(tmp_path):
    def change(t):
        t["model.layers.1.mlp.experts.gate_up_proj_scales"][0, 3, 1] = 255

    refused(
        hf(tmp_path / "hf", change), "layers.1.mlp.experts.gate_up_proj_scales has 1 scale bytes with the value 255"
    )
    model = Random(seed=1, n_layers=2)
    model.tensors["block.0.mlp.mlp2_weight.scales"][0, 0, 0] = 255
    refused(model.write_original(tmp_path / "original"), "block.0.mlp.mlp2_weight.scales")
    refused(model.write_gguf(tmp_path / "x.gguf"), "blk.0.ffn_down_exps.weight")


def test_a_norm_that_is_not_finite_is_refused(tmp_path):
    def change(t):
        t["model.norm.weight"][3] = torch.nan

    refused(hf(tmp_path, change), "1 tensor contains NaN or infinity: model.norm.weight")


def test_the_broken_save_of_transformers_is_explained(tmp_path):
    from transformers import GptOssForCausalLM

    model = GptOssForCausalLM.from_pretrained(MODEL.write_hf_mxfp4(tmp_path / "model"), dtype=torch.bfloat16)
    model.save_pretrained(tmp_path / "broken")
    refused(tmp_path / "broken", r"save_pretrained\(…, save_original_format=False\)", "dequantized on loading")
    model.save_pretrained(tmp_path / "sound", save_original_format=False)
    assert load(tmp_path / "sound").format == "hf-bf16"


def test_unsloths_4_bit_is_refused(tmp_path):
    def change(t):
        t["model.layers.0.mlp.experts.gate_up_projs.0.weight"] = torch.zeros(4, 1, dtype=torch.uint8)

    refused(hf(tmp_path / "keys", change), "unsloth", "merged_16bit")
    refused(hf(tmp_path / "config", quantization_config={"quant_method": "bitsandbytes"}), "'bitsandbytes'")


def test_an_adapter_is_refused(tmp_path):
    refused(hf(tmp_path / "a", lambda t: t.update({"x.lora_A.weight": torch.zeros(1)})), "merge_and_unload")
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "adapter_config.json").write_text("{}")
    save_file({"x.lora_A.weight": torch.zeros(1)}, tmp_path / "b" / "adapter_model.safetensors")
    refused(tmp_path / "b", "adapter, not a model")


def test_errors_for_folders_without_weights_list_their_files(tmp_path):
    refused(tmp_path, "contains no weights", "nothing")
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    refused(tmp_path, "never opened")
    MODEL.write_hf_bf16(tmp_path / "a")
    (tmp_path / "a" / "config.json").unlink()
    refused(tmp_path / "a", "no config.json")
    refused(tmp_path / "a" / "model.safetensors", "Give the folder")


def test_a_config_that_is_not_json_is_refused(tmp_path):
    folder = MODEL.write_hf_bf16(tmp_path)
    for text in ("{", "[]", "\xff"):
        (folder / "config.json").write_text(text, encoding="latin-1")
        refused(folder, "config.json")


@pytest.mark.parametrize(
    ("key", "value", "word"),
    [
        ("num_experts", None, "no num_experts"),
        ("hidden_size", "96", "must be an integer"),
        ("rope_ntk_beta", None, "rope_ntk_beta"),
        ("experts_per_token", 99, "99 of 8 experts"),
        ("num_key_value_heads", 3, "n_heads must be a multiple of n_kv_heads, got 10 and 3"),
        ("sliding_window", 0, r"sliding_window \(window\) must be between 1 and"),
    ],
)
def test_a_config_of_original_with_a_wrong_number_is_refused(tmp_path, key, value, word):
    folder = MODEL.write_original(tmp_path)
    config = MODEL.original_config() | {key: value}
    if key == "num_experts":  # without it, the folder is read as Hugging Face's layout
        word = "model_type is None"
        del config[key]
    (folder / "config.json").write_text(json.dumps(config))
    refused(folder, word)


def gguf_with(tmp_path, arch="gpt-oss", *, tensors=None, changes=()):
    """A .gguf with changed metadata, or without some tensors."""
    changes = dict(changes)
    file = MODEL.write_gguf(tmp_path / "sound.gguf")
    reader = gguf.GGUFReader(file)
    w = gguf.GGUFWriter(tmp_path / "changed.gguf", arch)
    for key, field in reader.fields.items():
        if key.startswith("GGUF.") or key == "general.architecture" or changes.get(key, "") is None:
            continue
        w.add_key_value(key, changes.get(key, field.contents()), field.types[0])
    for key in changes.keys() - reader.fields.keys():
        w.add_uint16(key, changes[key])
    for t in reader.tensors:
        if tensors is None or t.name in tensors:
            w.add_tensor(t.name, t.data, raw_dtype=t.tensor_type)
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()
    return tmp_path / "changed.gguf"


def test_the_gguf_of_ollama_and_of_other_models_is_refused(tmp_path):
    assert load(gguf_with(tmp_path)).config == MODEL.config
    refused(gguf_with(tmp_path, "gptoss"), "Ollama", "ggml-org/gpt-oss-20b-GGUF")
    refused(gguf_with(tmp_path, "llama"), "architecture is 'llama'")


def test_a_gguf_with_missing_or_wrong_metadata_or_tensors_is_refused(tmp_path):
    refused(gguf_with(tmp_path, changes={"gpt-oss.expert_count": None}), "no expert_count")
    refused(gguf_with(tmp_path, changes={"gpt-oss.rope.scaling.type": "linear"}), "'linear'")
    refused(gguf_with(tmp_path, changes={"split.count": 3}), "one of 3 pieces", "llama-gguf-split --merge")
    refused(gguf_with(tmp_path, tensors=["token_embd.weight"]), "tensors are missing")
    refused(gguf_with(tmp_path, changes={"gpt-oss.expert_feed_forward_length": 32}), "wrong shapes")


@pytest.mark.parametrize("keep", [0, 3, 100, 5000, -100])
def test_a_truncated_gguf_is_refused(tmp_path, keep):
    file = MODEL.write_gguf(tmp_path / "x.gguf")
    file.write_bytes(file.read_bytes()[:keep])
    refused(file, "damaged, cut short, or not a GGUF file")


def test_a_folder_with_two_ggufs_is_refused(tmp_path):
    MODEL.write_gguf(tmp_path / "a.gguf")
    MODEL.write_gguf(tmp_path / "b.gguf")
    refused(tmp_path, "2 .gguf files: a.gguf, b.gguf")


@pytest.mark.parametrize("write", ["write_hf_mxfp4", "write_hf_bf16", "write_original"])
def test_a_model_that_does_not_fit_the_memory_is_refused_before_a_tensor_is_read(write, tmp_path, monkeypatch):
    from workbench.errors import BudgetError
    from workbench.model.checkpoints import validate

    folder = getattr(Random(), write)(tmp_path / "model")
    monkeypatch.setattr(validate, "free_memory", lambda device: 1_000_000)
    with pytest.raises(BudgetError, match=r"parameters take 3\.1 MB in float32, but cpu has only 1\.0 MB free"):
        load(folder)
