"""GGUF: every setting of llama.cpp is used, harmless or refused by its name; pieces, pointers and newer types."""

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
from workbench.model.config import Config

MODEL = Random(seed=1, n_layers=2)
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:16d0f997\nsize 12109565632\n"


def settings_of_llama_cpp() -> list[str]:
    """Every setting of an architecture that llama.cpp's converter can write, as gpt-oss would have it."""

    def walk(group):
        for name, value in vars(group).items():
            if isinstance(value, type):
                yield from walk(value)
            elif not name.startswith("_") and isinstance(value, str) and value.startswith("{arch}."):
                yield value.format(arch="gpt-oss", dense="dense_2")

    return sorted(set(walk(gguf.Keys)))


@contextmanager
def changed(**values):
    """While it is entered, .gguf files get these settings ("__" for a dot) in place of what would be written."""
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


def test_every_setting_of_llama_cpp_is_used_harmless_or_refused_by_its_name(measured):
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
    ours = {"gpt-oss." + name for name in USED | HARMLESS | required(MODEL.config).keys()}
    assert ours <= set(settings), "a setting that llama.cpp does not have"
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


def test_an_unknown_setting_is_refused_and_what_only_describes_the_file_is_not(tmp_path):
    refused(written(tmp_path, **{"gpt-oss.twist": 1, "gpt-oss.turn": 2}), "2 settings", "gpt-oss.turn, gpt-oss.twist")
    about = {"general.name": "x", "general.tags": ["a"], "quantize.imatrix.file": "y", "llama.attention.scale": 9.0}
    assert load(written(tmp_path, **about)).config == MODEL.config
    refused(written(tmp_path, **{"general.type": "adapter"}), "general.type is 'adapter'")


def test_which_layers_slide_is_read_where_the_file_says_it(tmp_path):
    kinds = {True: "sliding_attention", False: "full_attention"}
    for pattern, slides in (([False, True], [False, True]), (1, [False, False]), (2, [True, False]), (3, [True, True])):
        config = load(written(tmp_path, **{"gpt-oss.attention.sliding_window_pattern": pattern})).config
        assert config.layer_types == tuple(kinds[s] for s in slides)
    for wrong in ([True], 0, "2"):
        refused(written(tmp_path, **{"gpt-oss.attention.sliding_window_pattern": wrong}), "must be a period, or a list")


def test_the_limit_of_swiglu_is_read_where_the_file_says_it(tmp_path):
    for value in (5.0, [5.0, 5.0]):
        assert load(written(tmp_path, **{"gpt-oss.swiglu_clamp_exp": value})).config.swiglu_limit == 5
    for wrong in ([5.0, 7.0], 0.0, "7"):
        refused(written(tmp_path, **{"gpt-oss.swiglu_clamp_exp": wrong}), "clamps all layers at one number above 0")


def test_what_is_missing_is_said_with_how_to_convert_again(tmp_path):
    for name in ("rope.scaling.original_context_length", "rope.freq_base", "expert_count"):
        refused(written(tmp_path, **{f"gpt-oss.{name}": None}), f"has no {name}", "convert_hf_to_gguf.py")


def test_a_number_of_layers_that_no_model_has_is_refused_at_once(tmp_path):
    refused(written(tmp_path, **{"gpt-oss.block_count": 4_000_000_000}), "block_count must be at most 10,000")


# -- files and pieces


@pytest.fixture
def pieces(tmp_path, monkeypatch):
    """A model in three pieces, as llama.cpp splits it, and the same in one file."""
    whole = MODEL.write_gguf(tmp_path / "whole" / "whole.gguf")
    n_tensors = len(gguf.GGUFReader(whole).tensors)
    with monkeypatch.context() as patch:
        patch.setattr(gguf, "GGUFWriter", partial(gguf.GGUFWriter, split_max_tensors=-(-n_tensors // 3)))
        MODEL.write_gguf(tmp_path / "split" / "oss.gguf")
    files = sorted((tmp_path / "split").glob("*.gguf"))
    assert [f.name for f in files] == [f"oss-0000{n}-of-00003.gguf" for n in (1, 2, 3)]
    return whole, files


def test_a_split_model_is_that_of_one_file(pieces):
    whole, files = pieces
    want = load(whole)
    for where in (*files, files[0].parent):
        got = load(where)
        assert (got.config, got.digest, got.stop_ids) == (want.config, want.digest, want.stop_ids)
        for name, tensor in named(want.weights).items():
            assert torch.equal(named(got.weights)[name], tensor), name
    assert load(files[1]).name == "oss" and load(files[0].parent).name == "split"


def test_pieces_that_are_not_all_there_or_not_of_one_model_are_named(pieces):
    whole, files = pieces
    spare = files[1].read_bytes()
    files[1].unlink()
    refused(files[0], "one of 3 pieces, and 1 piece is absent: oss-00002-of-00003.gguf")
    files[1].write_bytes(files[2].read_bytes())
    refused(files[0], "oss-00002-of-00003.gguf says of itself that it is piece 2 of 3", "its name says 1 of 3")
    files[1].write_bytes(spare)
    whole.write_bytes(files[0].read_bytes())
    refused(whole, "one of 3 pieces, and its name does not say which", "llama-gguf-split --merge")
    refused(written(whole.parent, **{"split.count": "3"}), "one of 3 pieces, and its name does not say which")
    files[2].write_text(POINTER)
    refused(files[0], "oss-00003-of-00003.gguf is git-lfs's pointer", "git lfs pull")


def test_a_folder_with_several_models_names_each_once(pieces):
    whole, files = pieces
    (files[0].parent / "other.gguf").write_bytes(whole.read_bytes())
    refused(files[0].parent, "2 .gguf files: oss-00001-of-00003.gguf, other.gguf")
    refused(whole.parents[1], "its folders do: split, whole")


def test_parts_of_a_file_that_was_cut_are_named_with_how_to_join_them(tmp_path):
    for name in ("oss.gguf.part1of2", "oss.gguf-split-a"):
        (tmp_path / name).write_bytes(b"GGUF")
        refused(tmp_path / name, "cat oss.gguf* > whole.gguf")
    refused(tmp_path, "oss.gguf-split-a is a part of a .gguf")


def test_a_type_newer_than_the_package_is_said_to_be_that(tmp_path):
    file = MODEL.write_gguf(tmp_path / "x.gguf")
    data = file.read_bytes()
    mxfp4 = gguf.GGMLQuantizationType.MXFP4.value.to_bytes(4, "little")
    here = data.index(mxfp4, data.index(b"blk.0.ffn_down_exps.weight"))
    file.write_bytes(data[:here] + (97).to_bytes(4, "little") + data[here + 4 :])
    refused(file, "uses type 97, which the installed package gguf", "does not know", "pip install -U gguf")


def test_a_newer_version_of_gguf_and_no_gguf_at_all(tmp_path):
    file = MODEL.write_gguf(tmp_path / "x.gguf")
    data = file.read_bytes()
    file.write_bytes(data[:4] + (4).to_bytes(4, "little") + data[8:])
    refused(file, "uses version 4 of GGUF", "pip install -U gguf")
    file.write_text("<html>not found</html>")
    refused(file, "no GGUF file")
    file.write_text(POINTER)
    refused(file, "git-lfs's pointer to the file", "git lfs pull")


@pytest.mark.parametrize("name", ["config.json", "generation_config.json", "tokenizer.json", "model.safetensors"])
def test_a_pointer_of_git_lfs_in_place_of_any_file_is_named(tmp_path, name):
    folder = MODEL.write_hf_bf16(tmp_path)
    (folder / name).write_text(POINTER)
    refused(folder, f"{name} is git-lfs's pointer to the file", "git lfs pull")


def test_the_published_numbers_pass():
    check_keys({"gpt-oss.attention.scale": 0.125, "gpt-oss.rope.dimension_count": 64}, Config(), "x.gguf")
