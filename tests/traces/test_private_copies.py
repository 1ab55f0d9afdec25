"""Nothing done to an array that a trace hands out reaches the trace."""

import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch

import workbench as wb
from tests.model.models import some_tokens, tiny
from workbench.traces.private_copies import Original


@pytest.fixture(scope="module")
def fresh():
    return tiny().trace(some_tokens(8), record="residuals")


@pytest.mark.parametrize("stored", [False, True], ids=["in memory", "on disk"])
@pytest.mark.parametrize("key", [("resid_post", 1), "resid_post", "logprob"])
def test_writing_through_torch_does_not_reach_the_trace(fresh, stored, key, tmp_path):
    trace = wb.load(fresh.save(tmp_path / "a.trace")) if stored else fresh
    before = np.array(trace.raw(key))
    for array in (trace[key], trace.raw(key)):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.from_numpy(array).fill_(7)
        assert (array == 7).all()
    assert np.array_equal(trace.raw(key), before, equal_nan=True)


def test_the_writable_flag_cannot_be_set(fresh):
    for array in (fresh["resid_post"], fresh["resid_post", 0], fresh["logprob"]):
        with pytest.raises(ValueError, match="WRITEABLE"):
            array.flags.writeable = True


def test_arrays_of_two_names_share_no_memory(fresh):
    assert not np.shares_memory(fresh["resid_post", 0], fresh["resid_pre", 1])


def test_a_large_array_is_mapped_and_still_private(fresh, monkeypatch):
    monkeypatch.setattr("workbench.traces.private_copies.MAPPED_BYTES", 1 << 10)
    n_tokens, d_model = len(fresh), fresh.config["d_model"]
    numbers = np.arange(n_tokens * d_model, dtype=np.float32).reshape(n_tokens, d_model)
    trace = wb.Trace(replace(fresh.manifest, tensors={}), {"hook_embed": numbers})
    first = trace["embed"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.from_numpy(first).zero_()
    assert not first.any() and np.array_equal(trace["embed"], numbers)


@pytest.mark.parametrize("array", [np.zeros((0, 3)), np.ones((2, 3), np.float32).cumsum(0).T, np.array(5)], ids=str)
def test_a_copy_has_the_shape_and_numbers_of_its_original(array):
    copied = Original(array).private_copy()
    assert copied.shape == array.shape and np.array_equal(copied, array) and not copied.flags.writeable
