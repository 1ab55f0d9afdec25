"""Copies and pickles of a trace, a model and an interrupted run."""

import copy
import os
import pickle
import shutil
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import workbench as wb
from tests.model.models import tiny
from tests.model.test_adapter import BASE, train
from workbench.errors import CheckpointError, EditError, TraceCorrupt, TraceNotFound
from workbench.model.checkpoints.bundled import embedded_folder
from workbench.recording.generation import Interrupted

ASK = "What is 1+1?"
COPIES = [copy.copy, copy.deepcopy, lambda obj: pickle.loads(pickle.dumps(obj))]


@pytest.fixture(scope="module")
def model():
    return wb.Model("pocket")


@pytest.fixture(scope="module")
def trace(model):
    return model.trace(ASK, record="residuals")


@pytest.fixture
def saved(trace, tmp_path):
    return wb.load(trace.save(tmp_path / "a.trace"))


@pytest.mark.parametrize("where", ["memory", "disk"])
@pytest.mark.parametrize("copied", COPIES, ids=["copy", "deepcopy", "pickle"])
def test_a_copy_of_a_trace_is_equal_and_read_only(trace, saved, where, copied):
    original = trace if where == "memory" else saved
    other = copied(original)
    assert other.id == original.id and other.verified and other.names() == original.names()
    assert other.manifest == original.manifest
    for key in ("embed", "resid_post", ("resid_post", 2), "logprob", "expert_indices"):
        array = other[key]
        assert np.array_equal(array, original[key], equal_nan=True)
        assert other.raw(key).dtype == original.raw(key).dtype
        with pytest.raises(ValueError, match="read-only"):
            array[...] = 99


def test_an_unpickled_array_cannot_be_made_writable(trace):
    array = pickle.loads(pickle.dumps(trace)).raw("blocks.0.hook_resid_post")
    with pytest.raises(ValueError, match="WRITEABLE"):
        array.flags.writeable = True


def test_a_pickle_with_changed_numbers_is_trace_corrupt(trace):
    data = bytearray(pickle.dumps(trace))
    at = data.find(np.asarray(trace["embed"]).tobytes()[:64])
    data[at] ^= 1
    with pytest.raises(TraceCorrupt, match="hook_embed"):
        pickle.loads(bytes(data))


def test_the_pickle_of_a_saved_trace_is_its_path(saved, model, tmp_path):
    data = pickle.dumps(saved)
    assert len(data) < 1000
    shutil.move(tmp_path / "a.trace", tmp_path / "b.trace")
    with pytest.raises(TraceNotFound, match="leave the folder there"):
        pickle.loads(data)
    model.trace("What is 2+2?", record="").save(tmp_path / "a.trace")
    with pytest.raises(TraceCorrupt, match="is not the one that was pickled"):
        pickle.loads(data)


def id_and_logprob(model, trace):
    """Runs in another process."""
    return model.trace(trace, record="").id, float(trace["logprob"][1:].sum())


def test_a_model_and_a_trace_can_be_sent_to_another_process(model, saved):
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        remote = pool.submit(id_and_logprob, model, saved).result()
    assert remote == id_and_logprob(model, saved)


def loaded(tmp_path: Path) -> dict[str, wb.Model]:
    shutil.copytree(embedded_folder(), tmp_path / "here")
    edited = wb.Model("pocket")
    with edited.edit("blocks.1.hook_mlp_out", lambda x: 0 * x):
        edited.trace(ASK, record="")
    return {
        "small": wb.Model("pocket", memory="small"),
        "edited before": edited,
        "float64": wb.Model("pocket", dtype="float64"),
        "folder": wb.Model(os.path.relpath(tmp_path / "here"), tokenizer=tmp_path / "here"),
    }


def test_models_are_pickled_and_deep_copied_as_their_path(tmp_path, monkeypatch):
    for name, model in loaded(tmp_path).items():
        logits = model.trace(ASK, record="logits")["logits"]
        data = pickle.dumps(model)
        assert len(data) < 5000, name  # no weights
        with monkeypatch.context() as patch:
            patch.chdir("/")
            for other in (pickle.loads(data), copy.deepcopy(model)):
                assert (other.digest, other.dtype, other.device, other.name) == (
                    model.digest, model.dtype, model.device, model.name,
                )  # fmt: skip
                assert np.array_equal(other.trace(ASK, record="logits")["logits"], logits), name


def test_a_pickled_model_keeps_its_adapter(tmp_path):
    train(tmp_path / "adapter", target_modules=["q_proj"])
    base = wb.Model(BASE.write_hf_mxfp4(tmp_path / "base"))
    model = base.with_adapter(tmp_path / "adapter", scale=0.5)
    model.stop_ids = frozenset({7})
    other = pickle.loads(pickle.dumps(model))
    assert (other.digest, other.adapter, other.name) == (model.digest, model.adapter, model.name)
    assert other.stop_ids == {7}
    tokens = torch.tensor([[1, 2, 3]])
    assert torch.equal(other.forward(tokens), model.forward(tokens))


def test_unpickling_a_model_raises_if_its_weights_have_changed(tmp_path):
    folder = shutil.copytree(embedded_folder(), tmp_path / "here")
    data = pickle.dumps(wb.Model(folder))
    weights = load_file(folder / "model.safetensors")
    weights["model.norm.weight"] += 1
    save_file(weights, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match="have changed since"):
        pickle.loads(data)


def test_a_model_without_files_or_with_active_edits_cannot_be_pickled(model):
    for copied in COPIES[1:]:
        with pytest.raises(CheckpointError, match="save_pretrained"):
            copied(tiny())
        with model.edit("hook_embed", lambda x: x):
            model.trace(ASK, record="")
            with pytest.raises(EditError, match="outside of the `with`"):
                copied(model)


def test_a_copy_of_a_model_has_its_own_edits_and_the_same_weights(model):
    other = copy.copy(model)
    assert other.weights is model.weights
    with other.edit("hook_embed", lambda x: x):
        assert model.active_edits() == [] and model.trace(ASK, record="").edits == []
        assert len(other.trace(ASK, record="").edits) == 1


@pytest.mark.parametrize("copied", COPIES, ids=["copy", "deepcopy", "pickle"])
def test_an_interrupt_is_copied_with_its_trace(trace, copied):
    interrupt = Interrupted(trace)
    other = copied(interrupt)
    assert other.trace.id == trace.id and str(other) == str(interrupt) and isinstance(other, KeyboardInterrupt)
