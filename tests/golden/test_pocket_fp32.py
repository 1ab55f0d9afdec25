"""One fp32 run of pocket has the committed bits on every machine."""

import json
import subprocess
import sys

import pytest
import torch

import workbench as wb
from tests.golden import pocket_fp32
from tests.levels import computing_with
from workbench.model.kernels import native

pytestmark = pytest.mark.skipif(native.isa() is None, reason=native.status())
GOLDEN = json.loads(pocket_fp32.FILE.read_text())


@pytest.fixture(scope="module")
def pocket():
    return wb.Model("pocket", dtype="float32")


@pytest.mark.parametrize("level", native.levels())
def test_every_array_has_the_committed_bits(pocket, level, measured):
    with computing_with(level):
        trace = pocket_fp32.recorded(pocket)
        assert pocket_fp32.digests(trace) == GOLDEN["arrays"]
        assert (trace.id, len(trace)) == (GOLDEN["id"], GOLDEN["tokens"])
    assert trace.verified and trace.manifest.numerics["rows_independent"] is True
    measured(f"golden: {len(GOLDEN['arrays'])} arrays of pocket in fp32 equal at level {level}")


def test_two_threads_and_earlier_runs_give_the_same_id_and_content(pocket, monkeypatch):
    pocket.trace("What is 12+30?")  # the process has run another text before
    here = pocket_fp32.recorded(pocket)
    monkeypatch.setattr("workbench.model.model.SMALL", 0)  # so that pocket also runs on all threads
    n_threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        two = pocket_fp32.recorded(pocket)
    finally:
        torch.set_num_threads(n_threads)
    assert (two.id, two.manifest.content_hash) == (here.id, here.manifest.content_hash)
    assert two.manifest.numerics["threads"] == 2


def test_a_new_process_gives_the_same_id_and_content(pocket, tmp_path):
    code = "import sys; from tests.golden.pocket_fp32 import recorded; import workbench as wb; "
    code += "recorded(wb.Model('pocket')).save(sys.argv[1])"
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "alone")], check=True, timeout=120)
    pocket.trace("What is 12+30?")  # the process has run another text before
    pocket_fp32.recorded(pocket).save(tmp_path / "here")
    alone, here = wb.load(tmp_path / "alone"), wb.load(tmp_path / "here")
    assert (alone.id, alone.manifest.content_hash) == (here.id, here.manifest.content_hash)
