"""Which device a Model is loaded on: "auto", and the warning about an idle GPU."""

import pickle

import pytest
import torch

import workbench as wb
from workbench import cli
from workbench.errors import CheckpointError
from workbench.model import arguments


def test_auto_is_the_cpu_where_torch_finds_no_gpu(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    model = wb.Model("pocket", device="auto")
    assert model.device == "cpu"
    assert pickle.loads(pickle.dumps(model)).device == "cpu"


def test_auto_asks_for_the_gpu_that_torch_finds(monkeypatch: pytest.MonkeyPatch):
    from workbench.model.checkpoints import formats

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    devices = []

    def read(folder, *, device, **_):
        devices.append(device)
        raise CheckpointError("enough")

    monkeypatch.setattr(formats, "_read_folder", read)
    for device in ("auto", None, "cpu"):
        with pytest.raises(CheckpointError, match="enough"):
            wb.Model("pocket", device=device)
    assert devices == [torch.device("cuda"), torch.device("cpu"), torch.device("cpu")]


@pytest.mark.parametrize(("large", "gpu", "device", "warns"), [
    (True, True, None, True),
    (True, True, "cpu", False),  # asked for
    (True, False, None, False),
    (False, True, None, False),
])  # fmt: skip
def test_a_large_model_on_the_cpu_beside_an_idle_gpu_warns(large, gpu, device, warns, monkeypatch, recwarn):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    monkeypatch.setattr(arguments, "LARGE", 1e6 if large else 1e9)  # pocket has 11 million parameters
    wb.Model("pocket", device=device)
    messages = [str(one.message) for one in recwarn]
    assert messages == [messages[0]] * warns if warns else not messages
    assert not warns or ("device='cuda'" in messages[0] and "--device cuda" in messages[0])


def test_the_command_loads_the_model_as_its_options_say(monkeypatch: pytest.MonkeyPatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    loading = ["--device", "cpu", "--dtype", "float64", "--memory", "small"]
    assert cli.main(["trace", "What is 1+1?", "-o", "a.trace", "--record", "", *loading]) == 0
    assert wb.load("a.trace").manifest.numerics["dtype"] == "float64"
    assert cli.main(["trace", "What is 1+1?", "--device", "tpu"]) == 1
    assert "device must be 'cpu'" in capsys.readouterr().err
    assert cli.main(["estimate", "What is 1+1?", "--dtype", "float64", "--record", "residuals"]) == 0
    double = capsys.readouterr().out
    assert cli.main(["estimate", "What is 1+1?", "--record", "residuals"]) == 0
    assert double != capsys.readouterr().out
