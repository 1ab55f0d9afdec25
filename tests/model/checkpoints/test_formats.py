"""All published formats give the same tensors, bit for bit."""

import json
import shutil
import sys
from pathlib import Path

import gguf
import pytest
import torch

from tests.checkpoints import Random, named, write_hf
from workbench.errors import CheckpointError, MissingDependency, ModelNotFound
from workbench.model.checkpoints import load

MODEL = Random(seed=3)
WRITERS = {
    "hf-mxfp4": lambda d: MODEL.write_hf_mxfp4(d / "model"),
    "hf-bf16": lambda d: MODEL.write_hf_bf16(d / "model"),
    "hf-bf16 in shards": lambda d: MODEL.write_hf_bf16(d / "model", shards=4),
    "original": lambda d: MODEL.write_original(d / "model" / "original"),
    "original in bf16": lambda d: MODEL.write_original(d / "model", mxfp4=False),
    "gguf": lambda d: MODEL.write_gguf(d / "model.gguf"),
    "a folder with a gguf": lambda d: MODEL.write_gguf(d / "model" / "some.gguf").parent,
}


def bits(x):
    return x.contiguous().view({2: torch.int16, 4: torch.int32, 8: torch.int64}[x.element_size()])


def assert_same(weights, expected):
    tensors, expected = named(weights), named(expected)
    assert tensors.keys() == expected.keys()
    for name in expected:
        assert tensors[name].dtype == expected[name].dtype, name
        assert torch.equal(bits(tensors[name]), bits(expected[name])), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("layout", WRITERS)
def test_every_format_gives_the_same_bits(layout, dtype, tmp_path):
    checkpoint = load(WRITERS[layout](tmp_path), dtype=dtype)
    assert_same(checkpoint.weights, MODEL.checkpoint(dtype).weights)
    assert checkpoint.config == MODEL.config
    assert checkpoint.name == "model"
    assert checkpoint.format in layout or checkpoint.format == "gguf"


def test_a_transformers_model_gives_the_same_bits():
    assert_same(load(MODEL.transformers()).weights, MODEL.checkpoint().weights)


def test_a_model_dequantized_by_transformers_gives_the_same_bits(tmp_path):
    from transformers import GptOssForCausalLM

    folder = MODEL.write_hf_mxfp4(tmp_path / "model")
    for dtype in (torch.float32, torch.bfloat16):
        checkpoint = load(GptOssForCausalLM.from_pretrained(folder, dtype=dtype))
        assert_same(checkpoint.weights, load(folder, dtype=dtype).weights)
        assert (checkpoint.config, checkpoint.stop_ids, checkpoint.folder) == (MODEL.config, (170, 171), folder)


def test_a_bf16_folder_saved_by_transformers_can_be_loaded(tmp_path):
    MODEL.transformers(torch.bfloat16).save_pretrained(tmp_path / "saved", save_original_format=False)
    checkpoint = load(tmp_path / "saved")  # its config.json has rope_parameters
    assert checkpoint.format == "hf-bf16" and checkpoint.config == MODEL.config
    assert_same(checkpoint.weights, MODEL.checkpoint().weights)


def test_shards_that_count_from_zero_are_loaded_with_and_without_the_index(tmp_path):
    folder = MODEL.write_hf_mxfp4(tmp_path, shards=3, base=0)
    assert (folder / "model-00000-of-00002.safetensors").is_file()
    assert_same(load(folder).weights, MODEL.checkpoint().weights)
    (folder / "model.safetensors.index.json").unlink()
    assert_same(load(folder).weights, MODEL.checkpoint().weights)


def test_a_folder_with_both_layouts_is_read_as_hugging_faces(tmp_path):
    MODEL.write_hf_mxfp4(tmp_path)
    Random(seed=4).write_original(tmp_path / "original")
    assert load(tmp_path).format == "hf-mxfp4"
    for file in tmp_path.glob("*.safetensors*"):
        file.unlink()
    assert load(tmp_path).format == "original"
    assert load(tmp_path / "original").folder == tmp_path  # the folder of the tokenizer


def test_square_matrices_are_oriented_by_the_format(tmp_path):
    square = Random(seed=5, n_layers=1, d_model=64, d_mlp=64)
    expected = square.checkpoint().weights
    for folder in (
        square.write_hf_mxfp4(tmp_path / "a"),
        square.write_hf_bf16(tmp_path / "b"),
        square.write_original(tmp_path / "c"),
        square.write_original(tmp_path / "d", mxfp4=False),
        square.write_gguf(tmp_path / "e.gguf"),
    ):
        assert_same(load(folder).weights, expected)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_dense_tensors_stay_mapped_if_the_file_has_the_requested_dtype(tmp_path):
    folder = MODEL.write_hf_bf16(tmp_path)
    file = (folder / "model.safetensors").resolve()
    weights = load(folder, dtype=torch.bfloat16).weights
    lines = [line.split() for line in Path("/proc/self/maps").read_text().splitlines()]
    spans = [[int(x, 16) for x in line[0].split("-")] for line in lines if line[-1] == str(file)]
    for tensor in (weights.embed, weights.blocks[0].experts.up, weights.blocks[1].w_k):
        assert isinstance(tensor, torch.Tensor)
        assert any(a <= tensor.data_ptr() < b for a, b in spans)


def test_bf16_experts_are_transposed_views(tmp_path):
    experts = load(MODEL.write_hf_bf16(tmp_path), dtype=torch.bfloat16).weights.blocks[0].experts
    for matrices in (experts.up, experts.down):
        assert isinstance(matrices, torch.Tensor)
        assert matrices.transpose(1, 2).is_contiguous()


def test_the_embedded_model_is_float32_and_stops_at_three_tokens():
    pocket = load("pocket")
    assert pocket.name == "pocket" and pocket.format == "hf-mxfp4"
    assert pocket.weights.embed.dtype == torch.float32
    assert pocket.stop_ids == (419, 420, 426)  # only the tokenizer lists <|endoftext|>
    assert pocket.folder and (pocket.folder / "tokenizer.json").is_file()


def test_stop_ids_are_the_union_of_those_in_all_files(tmp_path):
    folder = MODEL.write_hf_mxfp4(tmp_path)
    assert load(folder).stop_ids == (170, 171)
    tokens = [{"id": 3, "content": "<|call|>"}, {"id": 4, "content": "<|end|>"}, {"id": 900, "content": "<|return|>"}]
    (folder / "tokenizer.json").write_text(json.dumps({"added_tokens": tokens, "model": {"vocab": {}}}))
    assert load(folder).stop_ids == (3, 170, 171)  # 900 is outside the vocabulary
    (folder / "tokenizer.json").unlink()
    decoder = {"5": {"content": "<|endoftext|>"}}
    (folder / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": decoder}))
    assert load(folder).stop_ids == (5, 170, 171)


def test_a_gguf_with_quantized_dense_tensors_is_loaded_within_their_rounding_error(tmp_path, monkeypatch):
    kinds = {"token_embd.weight": "Q8_0", "blk.0.attn_q.weight": "F16", "output.weight": "BF16"}
    add = gguf.GGUFWriter.add_tensor

    def quantized(writer, name, tensor, raw_dtype=None):
        if name not in kinds:
            return add(writer, name, tensor, raw_dtype=raw_dtype)
        kind = gguf.GGMLQuantizationType[kinds[name]]
        return add(writer, name, gguf.quants.quantize(tensor, kind), raw_dtype=None if name[0] == "b" else kind)

    monkeypatch.setattr(gguf.GGUFWriter, "add_tensor", quantized)
    weights, expected = load(MODEL.write_gguf(tmp_path / "x.gguf")).weights, MODEL.checkpoint().weights
    assert torch.equal(weights.unembed, expected.unembed)  # BF16 is exact
    torch.testing.assert_close(weights.blocks[0].w_q, expected.blocks[0].w_q, rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(weights.embed, expected.embed, rtol=0, atol=0.02)
    assert not torch.equal(weights.embed, expected.embed)


def test_without_the_package_gguf_the_error_says_how_to_install_it(tmp_path, monkeypatch):
    file = MODEL.write_gguf(tmp_path / "x.gguf")
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(MissingDependency, match=r"pip install 'gpt-oss-workbench\[interop\]'"):
        load(file)


def test_a_large_model_defaults_to_bfloat16():
    from workbench.model.checkpoints.validate import default_dtype
    from workbench.model.config import Config

    assert default_dtype(Config(), None) == torch.bfloat16
    assert default_dtype(MODEL.config, None) == torch.float32
    assert default_dtype(Config(), torch.float32) == torch.float32


def test_float16_is_refused_with_the_reason():
    with pytest.raises(CheckpointError, match=r"45,344.*torch\.bfloat16 or torch\.float32"):
        load("pocket", dtype=torch.float16)
    with pytest.raises(CheckpointError, match="int8"):
        load("pocket", dtype=torch.int8)


@pytest.mark.parametrize("where", ["no/such/folder/here", "pockets", 7])
def test_the_error_for_a_place_without_a_model_lists_what_can_be_loaded(where):
    with pytest.raises(ModelNotFound, match="'pocket'"):
        load(where)


def test_weights_in_float32_files_are_loaded(tmp_path):
    tensors = {k: v.float() for k, v in MODEL.hf_tensors(mxfp4=False).items()}
    config = MODEL.hf_config()
    config.pop("quantization_config")
    assert_same(load(write_hf(tmp_path, tensors, config)).weights, MODEL.checkpoint().weights)


@pytest.mark.skipif(sys.platform != "linux", reason="other systems may refuse to remove a mapped file")
def test_a_loaded_model_survives_the_removal_of_its_folder(tmp_path):
    folder = MODEL.write_hf_mxfp4(tmp_path / "model")
    checkpoint = load(folder, dtype=torch.bfloat16)
    shutil.rmtree(folder)
    assert_same(checkpoint.weights, MODEL.checkpoint(torch.bfloat16).weights)
