"""The digest depends on the weights, not on how they are split into files."""

import re

import torch

from tests.checkpoints import Random, write_hf
from workbench.model.checkpoints import load
from workbench.model.checkpoints.digest import SAMPLE, weights_digest

MODEL = Random(seed=2, n_layers=2)


def test_one_changed_weight_changes_the_digest(tmp_path):
    tensors, config = MODEL.hf_tensors(), MODEL.hf_config()
    before = load(write_hf(tmp_path / "a", tensors, config)).digest
    assert re.fullmatch("sha256:[0-9a-f]{64}", before)
    tensors["model.layers.1.mlp.experts.down_proj_blocks"][3, 40, 1, 7] ^= 1
    assert load(write_hf(tmp_path / "b", tensors, config)).digest != before


def test_sharding_and_names_of_files_do_not_change_the_digest(tmp_path):
    digests = {load(MODEL.write_hf_mxfp4(tmp_path / f"{n}", shards=n, base=n % 2)).digest for n in (1, 2, 5)}
    assert len(digests) == 1
    one, two = MODEL.write_gguf(tmp_path / "one.gguf"), tmp_path / "two.gguf"
    before = load(one).digest
    assert load(one.rename(two)).digest == before


def test_the_dtype_of_loading_does_not_change_the_digest(tmp_path):
    folder = MODEL.write_original(tmp_path)
    assert load(folder, dtype=torch.bfloat16).digest == load(folder, dtype=torch.float64).digest


def test_a_transformers_model_has_the_digest_of_its_saved_folder(tmp_path):
    assert load(MODEL.transformers(torch.bfloat16)).digest == load(MODEL.write_hf_bf16(tmp_path)).digest


def test_name_dtype_and_shape_change_the_digest():
    x = torch.arange(6, dtype=torch.int32)
    variants = [{"a": x}, {"b": x}, {"a": x.view(2, 3)}, {"a": x.view(torch.float32)}, {"a": x[:3], "b": x[3:]}, {}]
    assert len({weights_digest(v) for v in variants}) == len(variants)


def test_the_digest_of_a_large_model_is_sampled_and_has_the_prefix_sampled():
    big = {"w": torch.zeros(100, SAMPLE, dtype=torch.uint8), "small": torch.zeros(5)}
    assert weights_digest(big).startswith("sha256:")
    sampled = weights_digest(big, full=1000)
    assert re.fullmatch("sampled-sha256:[0-9a-f]{64}", sampled)
    for place in (0, 100 * SAMPLE // 2, 100 * SAMPLE - 1):
        other = {**big, "w": big["w"].clone()}
        other["w"].view(-1)[place] = 1
        assert weights_digest(other, full=1000) != sampled
    assert weights_digest({**big, "small": torch.ones(5)}, full=1000) != sampled
    assert weights_digest({"w": big["w"][:, :4000], "small": big["small"]}, full=1000) != sampled  # rows are strided
