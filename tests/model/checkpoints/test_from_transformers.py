"""The weights of a transformers model are shared and never copied."""

import subprocess
import sys

import pytest
import torch

from tests.checkpoints import Random, named
from workbench.errors import CheckpointError
from workbench.model.checkpoints import load

MODEL = Random(seed=6, n_layers=2)


@pytest.fixture(scope="module")
def model():
    return MODEL.transformers()


def test_every_tensor_shares_the_memory_of_the_model(model):
    checkpoint = load(model)
    assert checkpoint.format == "transformers object" and checkpoint.folder is None
    own = {p.data_ptr(): p for p in model.parameters()}
    tensors = named(checkpoint.weights)
    assert {t.data_ptr() for t in tensors.values()} == own.keys()
    assert all(t.numel() == own[t.data_ptr()].numel() and not t.requires_grad for t in tensors.values())


def test_an_in_place_change_of_the_model_changes_the_loaded_weights(model):
    weights = load(model).weights
    old = model.lm_head.weight[3, 5].item()
    model.lm_head.weight[3, 5] = 17.0
    assert weights.unembed[3, 5] == 17.0
    model.lm_head.weight[3, 5] = old


def test_another_dtype_makes_copies(model):
    weights = load(model, dtype=torch.float64).weights
    assert weights.embed.dtype == torch.float64
    assert torch.equal(weights.embed.float(), model.model.embed_tokens.weight)


def test_stop_ids_come_from_the_model_object(model):
    assert load(model).stop_ids == (170, 171)


def test_float16_objects_are_refused():
    with pytest.raises(CheckpointError, match="45,344"):
        load(MODEL.transformers(torch.float16))


@pytest.mark.parametrize("method", ["mxfp4", "bitsandbytes"])
def test_quantized_objects_are_refused(model, monkeypatch, method):
    monkeypatch.setattr(model.config, "quantization_config", {"quant_method": method}, raising=False)
    with pytest.raises(CheckpointError, match=rf"quantized \({method}\).*dequantize=True"):
        load(model)


def test_a_model_with_a_quantizer_is_refused(model, monkeypatch):
    monkeypatch.setattr(model, "hf_quantizer", object(), raising=False)
    with pytest.raises(CheckpointError, match="quantized"):
        load(model)


def test_weights_on_the_meta_device_are_refused():
    from transformers import GptOssConfig, GptOssForCausalLM

    with torch.device("meta"):
        empty = GptOssForCausalLM(GptOssConfig.from_dict(MODEL.hf_config()))
    empty.config.quantization_config = None
    with pytest.raises(CheckpointError, match="offloaded"):
        load(empty)


def test_a_model_without_a_head_and_another_architecture_are_refused(model):
    with pytest.raises(CheckpointError, match="like those of a GptOssModel, which has no lm_head"):
        load(model.model)
    from transformers import LlamaConfig, LlamaForCausalLM

    tiny = LlamaConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=2, vocab_size=9, intermediate_size=8)
    with pytest.raises(CheckpointError, match="model_type is 'llama'"):
        load(LlamaForCausalLM(tiny))


def test_loading_imports_neither_transformers_nor_gguf():
    code = """
import sys, workbench.model.checkpoints as weights
weights.load("pocket")
print({"transformers", "gguf"} & set(sys.modules))"""
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"
