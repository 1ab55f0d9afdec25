"""Two layers in gpt-oss-20b's exact shape hold in every format. Minutes and 10 GB: WORKBENCH_LONG=1 switches it on."""

import os
import time
from dataclasses import asdict

import pytest

import workbench as wb
from tests.checkpoints import Random
from workbench.model.config import Config
from workbench.model_check import whole_model

LONG = pytest.mark.skipif(not os.environ.get("WORKBENCH_LONG"), reason="minutes; WORKBENCH_LONG=1 switches it on")
N_LAYERS = 2
D_VOCAB = 4096  # the layers are what has a format of its own


@LONG
@pytest.mark.long
@pytest.mark.parametrize("layout", ["hf_mxfp4", "hf_bf16", "original", "gguf"])
def test_a_cut_of_the_20b_holds(layout, tmp_path, monkeypatch, measured):
    monkeypatch.setattr(whole_model.token_ids, "__defaults__", (300,))
    shape = asdict(Config()) | {"n_layers": N_LAYERS, "d_vocab": D_VOCAB}
    del shape["layer_types"]
    model = Random(seed=3, **shape)
    for name, tensor in model.tensors.items():  # sums are 30 times longer than those of the small models
        if name.endswith(("qkv.weight", "gate.weight")):
            tensor *= 0.125
        elif name.endswith(".scales"):
            tensor -= 2
    where = tmp_path / ("model.gguf" if layout == "gguf" else "model")
    getattr(model, f"write_{layout}")(where)
    del model
    start = time.perf_counter()
    report = wb.verify_model(where, on_line=lambda line: None)
    assert report.ok, report.failed
    worst = max(line.worst for line in report.select("layers") if line.worst is not None)
    measured(f"{layout}: {len(report.lines)} lines in {time.perf_counter() - start:.0f} s, worst step {worst:.1e}")
    assert worst < 1e-5
