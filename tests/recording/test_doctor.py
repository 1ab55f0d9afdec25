"""`workbench doctor` reports correct values about a machine, without a network or a model."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import workbench as wb
from tests.checkpoints import CONFIG, Random
from workbench import cli
from workbench.model.config import Config
from workbench.recording import doctor as room
from workbench.recording.doctor import PUBLISHED, demand, doctor, trace_bytes

LARGE = PUBLISHED["openai/gpt-oss-120b"]


@pytest.fixture(autouse=True)
def an_empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("WORKBENCH_CACHE", str(tmp_path / "workbench"))
    return tmp_path / "hub"


def test_the_published_sizes():
    small, large = (demand(name, c, 1 << 34) for name, c in PUBLISHED.items())
    assert (small.file, large.file) == (13_761_264_768, 65_248_815_744)
    assert small.cache == 1000 * 2 * 24 * 8 * 64 * 2
    assert small.file < small.fast < 1.2 * small.file
    assert 2e9 < small.small < 3.5e9 < large.small < 5e9  # measured with 6 and 8 layers: 3.0 GB and 4.7 GB


@pytest.mark.parametrize(
    ("c", "free", "fits"),
    [(Config(), 24e9, "fast"), (Config(), 16e9, "small"), (Config(), 3e9, "no"), (LARGE, 24e9, "small")],
)
def test_fits_depends_on_the_free_memory(c: Config, free: float, fits: str):
    assert demand("it", c, int(free)).fits == fits


def test_another_layer_needs_only_its_kv_cache_in_small_mode():
    one, two = (replace(Config(), n_layers=n, layer_types=Config().layer_types[:n]) for n in (1, 2))
    a, b = demand("one", one, 1 << 40), demand("two", two, 1 << 40)
    assert b.small - a.small == b.cache - a.cache == 1000 * 2 * 8 * 64 * 2


@pytest.mark.parametrize("record", ["", "attention", "residuals"])
def test_estimated_trace_bytes_are_within_2_percent(record: str):
    model = wb.Model(Random(n_layers=2).transformers(torch.float32))
    trace = model.trace([1 + i % 160 for i in range(100)], record=record)
    nbytes = sum(trace.raw(name).nbytes for name in trace.names())
    estimated = trace_bytes(model.config, record, "float32") / 10
    assert abs(estimated - nbytes) / nbytes < 0.02


def test_the_sizes_of_pocket_are_those_of_its_files():
    [pocket] = [d for d in doctor().demands if d.model == "pocket"]
    from workbench.model.checkpoints.bundled import embedded_folder

    assert abs(pocket.file - (embedded_folder() / "model.safetensors").stat().st_size) < 20_000
    assert pocket.fits == "fast"


def test_models_in_the_cache_are_listed_with_their_problems(an_empty_cache: Path):
    def fill(name: str) -> Path:
        repo = an_empty_cache / f"models--openai--{name}"
        (repo / "refs").mkdir(parents=True)
        (repo / "refs" / "main").write_text("abc")
        return wb.synth(CONFIG, repo / "snapshots" / "abc")

    (fill("gpt-oss-20b") / "tokenizer.json").write_text("{}")
    (fill("gpt-oss-120b") / "model-00001-of-00002.safetensors").unlink()
    fill("gpt-oss-mine")
    (an_empty_cache / "models--openai--gpt-oss-none").mkdir()
    (an_empty_cache / "models--openai--whisper").mkdir()
    cached = {one.name: one for one in doctor().cached}
    assert set(cached) == {f"openai/gpt-oss-{name}" for name in ("20b", "120b", "mine", "none")}
    assert cached["openai/gpt-oss-20b"].problem == ""
    assert cached["openai/gpt-oss-20b"].bytes > 100_000
    assert "1 shard" in cached["openai/gpt-oss-120b"].problem
    assert "token ids only" in cached["openai/gpt-oss-mine"].problem
    assert "not in the Hugging Face cache" in cached["openai/gpt-oss-none"].problem


def test_an_extra_that_is_missing_is_named_with_its_command(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(room.metadata, "requires", lambda _: ["numpy>=2", "nothere>=1; extra == 'lab'"])
    assert "missing: nothere (pip install 'gpt-oss-workbench[lab]')" in str(doctor())


def test_missing_native_kernels_are_reported(monkeypatch: pytest.MonkeyPatch):
    import workbench.model.kernels

    monkeypatch.delattr(workbench.model.kernels, "native", raising=False)
    monkeypatch.setitem(sys.modules, "workbench.model.kernels.native", None)
    assert "torch computes" in doctor().kernels


def test_the_command_prints_a_table(capsys: pytest.CaptureFixture):
    assert cli.main(["doctor"]) == 0
    out = capsys.readouterr().out
    for word in ("machine", "kernels", "memory", "GPU", "disk", "hf download", "pocket", "gpt-oss-120b", "65.2 GB"):
        assert word in out
    assert max(map(len, out.splitlines()[-5:-1])) <= 120


def test_the_command_prints_json(capsys: pytest.CaptureFixture):
    assert cli.main(["doctor", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert [d["model"] for d in report["demands"]] == ["pocket", *PUBLISHED]
    assert report["versions"]["workbench"] == wb.__version__


def test_doctor_uses_no_network_and_loads_no_heavy_package():
    code = (
        "import socket, sys\n"
        "def no(*_): raise AssertionError('network')\n"
        "socket.socket.connect = no\n"
        "import workbench as wb; str(wb.doctor())\n"
        "print([n for n in ('transformers', 'xarray', 'nnsight', 'jupyterlab', 'gguf') if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "[]", done.stderr


def test_the_synth_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture):
    from workbench.model.checkpoints import synth

    monkeypatch.setitem(synth.SHAPES, "20b", CONFIG)
    assert cli.main(["synth", "--like", "20b", "--layers", "2", "--seed", "3", str(tmp_path / "m")]) == 0
    assert str(tmp_path / "m") in capsys.readouterr().out
    assert wb.Model(tmp_path / "m").config.n_layers == 2
    assert cli.main(["synth", "--like", "20b", str(tmp_path / "m")]) == 1
    assert "not empty" in capsys.readouterr().err
