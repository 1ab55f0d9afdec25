"""A model's name is looked up only in the local cache of Hugging Face."""

import pytest

from tests.checkpoints import Random
from workbench.errors import CheckpointError, ModelNotFound
from workbench.model.checkpoints import load
from workbench.model.checkpoints.hub import cache_folder, snapshot_folder

NAME = "openai/gpt-oss-20b"
COMMAND = 'hf download openai/gpt-oss-20b --exclude "original/*" "metal/*"'
REVISION = "6cee5e81ee83917806bbde320786a8fb61efebee"


@pytest.fixture
def cache(tmp_path, monkeypatch):
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def fill(cache, revision=REVISION, *, main=True):
    """Fills the cache as `hf download` does: files are links into blobs/."""
    repo = cache / "models--openai--gpt-oss-20b"
    folder = Random(n_layers=1).write_hf_mxfp4(repo / "snapshots" / revision)
    (repo / "blobs").mkdir(exist_ok=True)
    for i, file in enumerate(sorted(folder.iterdir())):
        file.rename(repo / "blobs" / f"{revision}-{i}")
        file.symlink_to(f"../../blobs/{revision}-{i}")
    if main:
        (repo / "refs").mkdir()
        (repo / "refs" / "main").write_text(revision)
    return folder


def test_a_name_in_the_cache_is_loaded_under_its_name(cache):
    folder = fill(cache)
    checkpoint = load(NAME)
    assert (checkpoint.name, checkpoint.folder, checkpoint.format) == (NAME, folder, "hf-mxfp4")


def test_the_main_revision_is_used(cache):
    fill(cache)
    fill(cache, "0" * 40, main=False)
    assert snapshot_folder(NAME).name == REVISION


def test_a_single_snapshot_is_used_without_refs_main(cache):
    folder = fill(cache, main=False)
    assert snapshot_folder(NAME) == folder
    fill(cache, "0" * 40, main=False)
    with pytest.raises(ModelNotFound):
        snapshot_folder(NAME)


def test_the_error_for_a_name_not_in_the_cache_has_the_path_and_the_download_command(cache):
    with pytest.raises(ModelNotFound) as caught:
        load(NAME)
    assert COMMAND in str(caught.value)
    assert str(cache / "models--openai--gpt-oss-20b") in str(caught.value)


def test_the_error_for_an_incomplete_download_has_the_download_command(cache):
    folder = fill(cache)
    (folder / "model-00001-of-00002.safetensors").unlink()
    with pytest.raises(CheckpointError) as caught:
        load(NAME)
    assert "model-00001-of-00002.safetensors" in str(caught.value) and COMMAND in str(caught.value)


def test_a_revision_may_not_lead_out_of_the_cache(cache):
    folder = fill(cache)
    (folder.parents[1] / "refs" / "main").write_text("../../elsewhere")
    with pytest.raises(ModelNotFound):
        snapshot_folder(NAME)


def test_the_cache_folder_follows_the_environment_variables_of_hugging_face(tmp_path, monkeypatch):
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "huggingface" / "hub"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "huggingface" / "hub"
    monkeypatch.setenv("HF_HOME", "~/hf")
    assert cache_folder() == tmp_path / "hf" / "hub"
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    assert cache_folder() == tmp_path / "hub"
