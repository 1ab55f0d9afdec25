"""Small random models that are checked on a short text, and a cache of their own."""

import pytest

from tests.checkpoints import Random
from workbench.model_check import whole_model

POSITIONS = 40  # more than three windows of the random models


@pytest.fixture(autouse=True)
def small(monkeypatch, tmp_path):
    monkeypatch.setattr(whole_model, "POSITIONS", POSITIONS)
    monkeypatch.setattr(whole_model.token_ids, "__defaults__", (POSITIONS,))
    monkeypatch.setenv("WORKBENCH_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def model() -> Random:
    return Random(seed=3)
