"""A model's name is looked up in the local cache of Hugging Face, and nowhere else."""

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
    """As `hf download` leaves it: files are links into blobs/."""
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


def test_the_main_revision_is_the_one_that_counts(cache):
    fill(cache)
    fill(cache, "0" * 40, main=False)
    assert snapshot_folder(NAME).name == REVISION


def test_a_single_snapshot_needs_no_main(cache):
    folder = fill(cache, main=False)
    assert snapshot_folder(NAME) == folder
    fill(cache, "0" * 40, main=False)
    with pytest.raises(ModelNotFound):
        snapshot_folder(NAME)


def test_a_name_that_is_not_there_says_where_it_was_looked_for_and_how_to_fetch_it(cache):
    with pytest.raises(ModelNotFound) as caught:
        load(NAME)
    assert COMMAND in str(caught.value)
    assert str(cache / "models--openai--gpt-oss-20b") in str(caught.value)


def test_an_incomplete_download_says_how_to_fetch_the_rest(cache):
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


def test_the_cache_is_where_hugging_face_puts_it(tmp_path, monkeypatch):
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
