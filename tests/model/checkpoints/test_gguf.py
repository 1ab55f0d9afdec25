"""GGUF: every setting of llama.cpp is used, harmless or refused; split files, git-lfs pointers, newer types."""

from contextlib import contextmanager
from functools import partial
from unittest import mock

import gguf
import pytest
import torch

from tests.checkpoints import Random, named
from workbench.errors import CheckpointError
from workbench.model.checkpoints import load
from workbench.model.checkpoints.gguf_keys import HARMLESS, USED, check_keys, required
from workbench.model.checkpoints.gguf_pieces import open_gguf
from workbench.model.config import Config

MODEL = Random(seed=1, n_layers=2)
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:16d0f997\nsize 12109565632\n"


def settings_of_llama_cpp() -> list[str]:
    """Every setting of an architecture that llama.cpp's converter can write, with the prefix of gpt-oss."""

    def walk(group):
        for name, value in vars(group).items():
            if isinstance(value, type):
                yield from walk(value)
            elif not name.startswith("_") and isinstance(value, str) and value.startswith("{arch}."):
                yield value.format(arch="gpt-oss", dense="dense_2")

    return sorted(set(walk(gguf.Keys)))


@contextmanager
def changed(**values):
    """Inside this context, .gguf files are written with these settings ("__" stands for a dot); None leaves one out."""
    write = gguf.GGUFWriter.write_header_to_file

    def with_values(writer, *args, **kwargs):
        for key, value in values.items():
            writer.kv_data[0].pop(key.replace("__", "."), None)
            if value is None:
                continue
            add = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}
            add.get(type(value), writer.add_array)(key.replace("__", "."), value)
        return write(writer, *args, **kwargs)

    with mock.patch.object(gguf.GGUFWriter, "write_header_to_file", with_values):
        yield


def written(tmp_path, **values):
    with changed(**values):
        return MODEL.write_gguf(tmp_path / "x.gguf")


def refused(where, *words):
    with pytest.raises(CheckpointError) as caught:
        load(where)
    for word in words:
        assert word in str(caught.value), str(caught.value)


def test_every_setting_of_llama_cpp_is_used_harmless_or_refused(measured):
    settings = settings_of_llama_cpp()
    counts = dict.fromkeys(("used", "harmless", "refused"), 0)
    for key in settings:
        name = key.removeprefix("gpt-oss.")
        if name in USED | HARMLESS:
            check_keys({key: 0.37}, MODEL.config, "x.gguf")
            counts["used" if name in USED else "harmless"] += 1
            continue
        with pytest.raises(CheckpointError, match=rf"x\.gguf.* {key}"):
            check_keys({key: 0.37}, MODEL.config, "x.gguf")
        counts["refused"] += 1
    supported = {"gpt-oss." + name for name in USED | HARMLESS | required(MODEL.config).keys()}
    assert supported <= set(settings), "a setting that llama.cpp does not have"
    assert len(settings) > 80 and counts["used"] == len(USED)
    measured(f"llama.cpp's {len(settings)} settings of an architecture: {counts}")


@pytest.mark.parametrize("name", sorted(USED))
def test_a_used_setting_changes_the_config_or_is_refused(name, tmp_path):
    file = written(tmp_path)
    before, field = load(file).config, gguf.GGUFReader(file).fields.get(f"gpt-oss.{name}")
    value = 3 if field is None else "linear" if name == "rope.scaling.type" else field.contents() + 1
    try:
        after = load(written(tmp_path, **{f"gpt-oss.{name}": value})).config
    except CheckpointError:
        return
    assert after != before


def test_each_required_value_changes_nothing_and_another_is_refused(tmp_path):
    allowed = {f"gpt-oss.{name}": values[0] for name, values in required(MODEL.config).items()}
    assert load(written(tmp_path, **allowed)).config == MODEL.config
    for name in required(MODEL.config):
        refused(
            written(tmp_path, **{f"gpt-oss.{name}": 0.37}), f"gpt-oss.{name} is 0.37", "would change what the model"
        )


def test_unknown_settings_are_refused_except_those_that_only_describe_the_file(tmp_path):
    refused(written(tmp_path, **{"gpt-oss.twist": 1, "gpt-oss.turn": 2}), "2 settings", "gpt-oss.turn, gpt-oss.twist")
    about = {"general.name": "x", "general.tags": ["a"], "quantize.imatrix.file": "y", "llama.attention.scale": 9.0}
    assert load(written(tmp_path, **about)).config == MODEL.config
    refused(written(tmp_path, **{"general.type": "adapter"}), "general.type must be 'model', got 'adapter'")


def test_layer_types_are_read_from_sliding_window_pattern(tmp_path):
    kinds = {True: "sliding_attention", False: "full_attention"}
    for pattern, slides in (([False, True], [False, True]), (1, [False, False]), (2, [True, False]), (3, [True, True])):
        config = load(written(tmp_path, **{"gpt-oss.attention.sliding_window_pattern": pattern})).config
        assert config.layer_types == tuple(kinds[s] for s in slides)
    for wrong in ([True], 0, "2"):
        refused(written(tmp_path, **{"gpt-oss.attention.sliding_window_pattern": wrong}), "must be a period, or a list")


def test_the_swiglu_limit_is_read_from_swiglu_clamp_exp(tmp_path):
    for value in (5.0, [5.0, 5.0]):
        assert load(written(tmp_path, **{"gpt-oss.swiglu_clamp_exp": value})).config.swiglu_limit == 5
    for wrong in ([5.0, 7.0], 0.0, "7"):
        refused(written(tmp_path, **{"gpt-oss.swiglu_clamp_exp": wrong}), "must be one positive number for all layers")


def test_the_error_for_a_missing_setting_says_how_to_convert_again(tmp_path):
    for name in ("rope.scaling.original_context_length", "rope.freq_base", "expert_count"):
        refused(written(tmp_path, **{f"gpt-oss.{name}": None}), f"has no {name}", "convert_hf_to_gguf.py")


def test_an_impossible_number_of_layers_is_refused(tmp_path):
    refused(written(tmp_path, **{"gpt-oss.block_count": 4_000_000_000}), "block_count must be at most 10,000")


# -- files and split models


@pytest.fixture
def pieces(tmp_path, monkeypatch):
    """A model in one file, and the same model split into three pieces by llama.cpp's writer."""
    whole = MODEL.write_gguf(tmp_path / "whole" / "whole.gguf")
    n_tensors = len(gguf.GGUFReader(whole).tensors)
    with monkeypatch.context() as patch:
        patch.setattr(gguf, "GGUFWriter", partial(gguf.GGUFWriter, split_max_tensors=-(-n_tensors // 3)))
        MODEL.write_gguf(tmp_path / "split" / "oss.gguf")
    files = sorted((tmp_path / "split").glob("*.gguf"))
    assert [f.name for f in files] == [f"oss-0000{n}-of-00003.gguf" for n in (1, 2, 3)]
    return whole, files


def test_a_split_model_equals_the_same_model_in_one_file(pieces):
    whole, files = pieces
    expected = load(whole)
    for where in (*files, files[0].parent):
        split = load(where)
        assert (split.config, split.digest, split.stop_ids) == (expected.config, expected.digest, expected.stop_ids)
        for name, tensor in named(expected.weights).items():
            assert torch.equal(named(split.weights)[name], tensor), name
    assert load(files[1]).name == "oss" and load(files[0].parent).name == "split"


def test_missing_pieces_and_pieces_of_different_models_are_refused(pieces):
    whole, files = pieces
    spare = files[1].read_bytes()
    files[1].unlink()
    refused(files[0], "one of 3 pieces, and 1 piece is missing: oss-00002-of-00003.gguf")
    files[1].write_bytes(files[2].read_bytes())
    refused(files[0], "oss-00002-of-00003.gguf is piece 1 of 3 by its name", "but piece 2 of 3 by its metadata")
    files[1].write_bytes(spare)
    whole.write_bytes(files[0].read_bytes())
    refused(whole, "one of 3 pieces, and its name does not say which", "llama-gguf-split --merge")
    refused(written(whole.parent, **{"split.count": "3"}), "one of 3 pieces, and its name does not say which")
    files[2].write_text(POINTER)
    refused(files[0], "oss-00003-of-00003.gguf is git-lfs's pointer", "git lfs pull")


def test_the_error_for_a_folder_with_several_models_lists_each_once(pieces):
    whole, files = pieces
    (files[0].parent / "other.gguf").write_bytes(whole.read_bytes())
    refused(files[0].parent, "2 .gguf files: oss-00001-of-00003.gguf, other.gguf")
    refused(whole.parents[1], "its subfolders do: split, whole")


def test_the_error_for_parts_of_a_cut_gguf_says_how_to_join_them(tmp_path):
    for name in ("oss.gguf.part1of2", "oss.gguf-split-a"):
        (tmp_path / name).write_bytes(b"GGUF")
        refused(tmp_path / name, "cat oss.gguf* > whole.gguf")
    refused(tmp_path, "oss.gguf-split-a is a part of a .gguf")


def test_the_error_for_a_type_newer_than_the_package_says_to_upgrade(tmp_path):
    file = MODEL.write_gguf(tmp_path / "x.gguf")
    data = file.read_bytes()
    mxfp4 = gguf.GGMLQuantizationType.MXFP4.value.to_bytes(4, "little")
    here = data.index(mxfp4, data.index(b"blk.0.ffn_down_exps.weight"))
    file.write_bytes(data[:here] + (97).to_bytes(4, "little") + data[here + 4 :])
    refused(file, "uses type 97, which the installed package gguf", "does not support", "pip install -U gguf")


def test_a_newer_version_of_gguf_and_a_file_that_is_not_gguf_are_refused(tmp_path):
    file = MODEL.write_gguf(tmp_path / "x.gguf")
    data = file.read_bytes()
    file.write_bytes(data[:4] + (4).to_bytes(4, "little") + data[8:])
    refused(file, "uses version 4 of GGUF", "pip install -U gguf")
    file.write_text("<html>not found</html>")
    refused(file, "not a GGUF file")
    file.write_text(POINTER)
    refused(file, "git-lfs's pointer to the file", "git lfs pull")


@pytest.mark.parametrize("name", ["config.json", "generation_config.json", "tokenizer.json", "model.safetensors"])
def test_a_git_lfs_pointer_in_place_of_any_file_is_refused(tmp_path, name):
    folder = MODEL.write_hf_bf16(tmp_path)
    (folder / name).write_text(POINTER)
    refused(folder, f"{name} is git-lfs's pointer to the file", "git lfs pull")


def test_the_published_settings_are_accepted():
    check_keys({"gpt-oss.attention.scale": 0.125, "gpt-oss.rope.dimension_count": 64}, Config(), "x.gguf")


def test_tensors_that_do_not_lie_one_after_another_are_refused(tmp_path):
    file = MODEL.write_gguf(tmp_path / "x.gguf")
    data, offset = file.read_bytes(), gguf.GGUFReader(file).tensors[3].field.parts[-1][0]
    place = gguf.GGUFReader(file).tensors[3].field
    at = place.offset + sum(part.nbytes for part in place.parts[:-1])
    for wrong in (0, int(offset) + 32, int(offset) + 1, 2**63):
        file.write_bytes(data[:at] + wrong.to_bytes(8, "little") + data[at + 8 :])
        refused(file, "tensors must lie one after another")
    file.write_bytes(data + b"x" * 100)
    refused(file, "after the last tensor")
    file.write_bytes(data)
    assert load(file).config == MODEL.config


def test_the_header_agrees_with_the_package_gguf(tmp_path):
    file = MODEL.write_gguf(tmp_path / "x.gguf")
    opened, reader = open_gguf(file), gguf.GGUFReader(file)
    assert opened.meta == {
        key: field.contents()
        for key, field in reader.fields.items()
        if not key.startswith(("GGUF.", "tokenizer.")) or key.endswith("_token_id")
    }
    for tensor in reader.tensors:
        stored = opened.tensors[tensor.name]
        assert stored.tensor_type == tensor.tensor_type and stored.shape == tuple(tensor.shape.tolist()[::-1])
        assert stored.data.dtype == tensor.data.dtype and (stored.data == tensor.data).all()
    assert len(opened.tensors) == len(reader.tensors)
