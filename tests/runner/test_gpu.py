"""The same code on CUDA; runs where a GPU is (`pytest -m gpu`)."""

import numpy as np
import pytest
import torch

from tests.checkpoints import Random
from tests.runner.models import some_tokens
from workbench.runner.model import Model

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine"),
]
TOKENS = some_tokens(70)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return Random(seed=3).write_hf_mxfp4(tmp_path_factory.mktemp("model"))


def test_cuda_gives_the_numbers_of_the_cpu_in_fp32(folder):
    cpu = Model(folder).trace(TOKENS, record="everything lens")
    gpu = Model(folder, device="cuda").trace(TOKENS, record="everything lens")
    assert gpu.verified and gpu.manifest.numerics["device"].startswith("cuda")
    for name in cpu.names():
        a, b = np.nan_to_num(gpu[name], posinf=0, neginf=0), np.nan_to_num(cpu[name], posinf=0, neginf=0)
        if a.dtype.kind == "f":
            assert np.abs(a - b).max() <= 1e-4 * max(np.abs(b).max(), 1e-6), name


def test_generation_on_cuda_verifies_in_bf16(folder):
    trace = Model(folder, device="cuda", dtype="bfloat16").generate(TOKENS, max_tokens=20)
    assert trace.verified and trace.source("entropy") == "live"
