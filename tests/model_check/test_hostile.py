"""Hostile and unlucky checks: damaged notes on the disk, reports of strangers, odd files, short models."""

import json
import math
import os
import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

import workbench as wb
from tests.checkpoints import Random
from workbench.cli import main
from workbench.conversation.o200k import cache_folder
from workbench.errors import ArgumentError, BudgetError
from workbench.model.model import Model
from workbench.model_check import ModelReport, ends, run, whole_model
from workbench.model_check.layers import difference
from workbench.model_check.line import Line, line_json, line_of
from workbench.model_check.page import page

BROKEN = ["", "[]", "null", "{", '{"a": 1}', '{"files": [1]}', "[" * 100_000, "\0" * 9, '{"a": [{"part": "files"}]}']
LINE = line_json(Line("files", None, "a", "holds", 0.0, math.inf, 1.0, "note"))


@pytest.fixture
def folder(tmp_path):
    return Random(seed=3, n_layers=2).write_hf_mxfp4(tmp_path / "model")


def check(where, on_line: Callable[[Line], None] = lambda line: None, **settings: Any) -> ModelReport:
    return wb.verify_model(where, on_line=on_line, **settings)


def interrupt(folder) -> None:
    """A check that ends within its first layer; its notes are the only file in the cache."""

    def stop(line: Line) -> None:
        if line.layer == 0:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        check(folder, on_line=stop)


@pytest.mark.parametrize(("text", "restart"), [*((text, False) for text in BROKEN), ("{", True)])
def test_damaged_notes_of_an_earlier_check_count_as_none(folder, text, restart):
    interrupt(folder)
    (notes,) = (cache_folder() / "model-checks").iterdir()
    notes.write_text(text)
    report = check(folder, parts=["files", "layers"], restart=restart)
    assert report.ok and len(report.select("layers")) > 50
    assert not notes.exists()


@pytest.mark.parametrize("kind", ["fifo", "folder", "link", "circle"])
@pytest.mark.filterwarnings("ignore:an interrupted check")
def test_notes_that_are_no_file_stop_nothing(folder, kind):
    interrupt(folder)
    (notes,) = (cache_folder() / "model-checks").iterdir()
    notes.unlink()
    {
        "fifo": lambda: os.mkfifo(notes),
        "folder": notes.mkdir,
        "link": lambda: notes.symlink_to("/nowhere/else"),
        "circle": lambda: notes.symlink_to(notes),
    }[kind]()
    assert check(folder, parts=["files"]).ok


def test_a_cache_that_cannot_be_written_costs_only_the_notes(folder, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("WORKBENCH_CACHE", str(tmp_path / "file"))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert check(folder).ok
    said = [str(each.message) for each in caught]
    assert sum("begin anew" in text for text in said) == 1 and sum("will not say" in text for text in said) == 1


def test_a_check_of_one_part_keeps_the_notes_of_the_others(folder, monkeypatch):
    with pytest.raises(KeyboardInterrupt):
        check(folder, on_line=lambda line: (_ for _ in ()).throw(KeyboardInterrupt) if line.layer == 1 else None)
    assert check(folder, parts=["files"]).ok
    calls, layer = [], run.check_layer
    monkeypatch.setattr(run, "check_layer", lambda *args: (calls.append(args[3]), layer(*args))[1])
    assert check(folder).ok
    assert calls == []


@pytest.mark.parametrize(
    "record",
    [
        "[" * 100_000,
        '{"result": {"date": "2026-12-01"}, "files": FILES}',
        '{"result": {"date": "<b>", "ok": true, "workbench": "1"}, "files": FILES}',
        '{"result": {"date": "2026-12-01", "ok": "no", "workbench": "1"}, "files": FILES}',
        '{"result": {"date": "2026-12-01", "ok": true, "workbench": {}}, "files": FILES}',
        '{"result": {"date": "2026-12-01", "ok": true, "workbench": "1"}, "files": []}',
        '{"result": {"date": "2026-12-01", "ok": true, "workbench": "1"}, "files": [["CIRCLE", 1, 1]]}',
    ],
)
def test_a_damaged_record_verifies_nothing(folder, tmp_path, record):
    check(folder)
    (file,) = (cache_folder() / "verified-models").iterdir()
    assert Model(folder).verified is not None
    (tmp_path / "circle").symlink_to(tmp_path / "circle")
    states = json.dumps(json.loads(file.read_text())["files"])
    file.write_text(record.replace("FILES", states).replace("CIRCLE", str(tmp_path / "circle")))
    model = Model(folder)
    assert model.verified is None and "verified" not in repr(model)


def test_files_that_change_during_the_check_are_not_verified(folder):
    file = next(folder.glob("*.safetensors"))
    report = check(folder, on_line=lambda line: file.touch() if line.layer == 1 else None)
    assert [line.tensor for line in report.failed] == ["the files as a whole"]
    assert Model(folder).verified is None


@pytest.mark.parametrize(
    "change",
    [
        {"status": "<script>"},
        {"part": ["files"]},
        {"part": "other"},
        {"layer": "<b>"},
        {"layer": True},
        {"layer": -1},
        {"tensor": 7},
        {"note": "a" * 10_001},
        {"worst": "0"},
        {"seconds": []},
        {"worst": 10**400},
        {"evil": 1},
    ],
)
def test_a_line_of_a_stranger_is_checked(change):
    assert line_of(LINE) == Line("files", None, "a", "holds", 0.0, math.inf, 1.0, "note")
    with pytest.raises(ArgumentError):
        line_of(LINE | change)
    with pytest.raises(ArgumentError):
        ModelReport.from_json(
            {"model": {"name": "a", "format": "b"}, "machine": {}, "date": "", "lines": [LINE | change]}
        )


@pytest.mark.parametrize("value", [None, [], {}, {"model": 1, "machine": {}, "date": "", "lines": []}])
def test_a_report_of_a_stranger_is_checked(value):
    with pytest.raises(ArgumentError):
        ModelReport.from_json(value)


def test_every_text_of_a_line_is_escaped_on_the_page():
    line = Line("files", "<b>", "<b>", "<b>", note="<b>")  # type: ignore[arg-type]
    assert "<b>" not in page(ModelReport({"name": "<b>", "format": "<b>"}, {"<b>": "<b>"}, "<b>", [line]))


def test_a_difference_without_end_is_json(folder, capsys, monkeypatch):
    monkeypatch.setattr(run, "check_config", lambda *args: [Line("layers", None, "a", "fails", math.inf, math.nan)])
    assert main(["verify-model", str(folder), "--parts", "layers", "--json"]) == 1
    shown = json.loads(capsys.readouterr().out, parse_constant=lambda text: pytest.fail(text))
    assert ModelReport.from_json(shown).failed[0].worst == math.inf


@pytest.mark.parametrize(
    ("field", "value", "name"),
    [
        ("eps", 1e-6, "rms_norm_eps"),
        ("n_ctx", 4096, "max_position_embeddings"),
        ("window", 99, "sliding_window"),
        ("layer_types", ("full_attention", "sliding_attention"), "layer_types"),
    ],
)
def test_a_wrong_number_that_changes_nothing_on_a_short_text_is_found(tmp_path, monkeypatch, field, value, name):
    folder = Random(seed=3, n_layers=2, window=100).write_hf_mxfp4(tmp_path / "model")

    def load(where, **settings):
        model = Model(where, **settings)
        model.config = replace(model.config, **{field: value})
        return model

    monkeypatch.setattr(run, "Model", load)
    assert f"config ({name})" in [line.tensor for line in check(folder, parts=["layers"]).failed]


@pytest.mark.parametrize("broken", [{"dtype": "bfloat16", "memory": "fast"}, {"dtype": "float32", "memory": "small"}])
def test_a_fault_of_the_loader_in_one_setting_only_is_found(folder, monkeypatch, broken):
    def load(where, **settings):
        model = Model(where, **settings)
        if settings == broken:
            blocks = list(model.weights.blocks)
            blocks[1] = replace(blocks[1], b_router=blocks[1].b_router.roll(1))
            model.weights = replace(model.weights, blocks=tuple(blocks))
        return model

    monkeypatch.setattr(whole_model, "Model", load)
    (line,) = check(folder).failed
    assert line.tensor == f"{broken['dtype']}, memory={broken['memory']!r}" and "b_router of layer 1" in line.note


def test_a_unit_that_cannot_be_done_fails_its_line_and_is_done_again(folder, monkeypatch):
    layer = run.check_layer
    monkeypatch.setattr(run, "check_layer", lambda *args: 1 // 0 if args[3] == 0 else layer(*args))
    seen = []
    report = check(folder, parts=["weights"])
    assert [(line.layer, line.part) for line in report.failed] == [(0, "weights")]
    assert "ZeroDivisionError" in report.failed[0].note
    assert {line.layer for line in report.select("weights")} == {None, 0, 1}
    monkeypatch.setattr(run, "check_layer", lambda *args: (seen.append(args[3]), layer(*args))[1])
    assert check(folder, parts=["weights"]).ok and 0 in seen


def test_keys_of_a_config_that_change_nothing_may_hold_anything(folder):
    config = json.loads((folder / "config.json").read_text())
    odd = {"self": 1, "dtype": "no", "use_cache": "no", "attribute_map": {"hidden_size": "x"}, "sub_configs": {"a": 1}}
    odd |= {"swiglu_limit": 7, "num_experts": 5}  # as 7.0; and an alias that is not read
    (folder / "config.json").write_text(json.dumps(config | odd))
    assert check(folder, parts=["layers"]).ok


def test_other_files_beside_the_weights_are_not_read(tmp_path):
    folder = Random(seed=3, n_layers=2).write_hf_bf16(tmp_path / "model")
    other = Random(seed=4, n_layers=2).write_hf_bf16(tmp_path / "other")
    (folder / "model-old.safetensors").write_bytes((other / "model.safetensors").read_bytes())
    (folder / "model.safetensors.index.json").write_text("[[[")
    os.mkfifo(folder / "model-zz.safetensors")
    assert check(folder).ok


def test_weights_of_the_original_layout_have_any_name(tmp_path):
    folder = Random(seed=3, n_layers=2).write_original(tmp_path / "model")
    (folder / "model.safetensors").rename(folder / "weights.safetensors")
    assert check(folder).ok


@pytest.mark.parametrize("name", ["**", "a[1]", "x-7-of-5"])
def test_a_gguf_with_a_name_that_is_a_pattern(tmp_path, name):
    for other in ("x-8-of-5", name):
        Random(seed=len(other), n_layers=2).write_gguf(tmp_path / f"{other}.gguf")
    assert check(tmp_path / f"{name}.gguf").ok


@pytest.mark.parametrize("size", ['"abc"', "[1]", "NaN", "1e400"])
def test_an_index_with_an_odd_size_fails_its_line(folder, size):
    index = folder / "model.safetensors.index.json"
    names = json.dumps(json.loads(index.read_text())["weight_map"])
    index.write_text(f'{{"metadata": {{"total_size": {size}}}, "weight_map": {names}}}')
    assert [line.tensor for line in check(folder, parts=["files"]).failed] == [index.name]


def test_a_damaged_record_of_a_download_counts_as_none(folder):
    records = folder / ".cache" / "huggingface" / "download"
    records.mkdir(parents=True)
    for file in folder.glob("*.safetensors"):
        (records / f"{file.name}.metadata").write_bytes(b"\xff" * 99)
    assert check(folder, parts=["files"]).ok


def test_a_model_of_few_positions_is_checked_on_as_many(tmp_path):
    folder = Random(seed=3, n_layers=2, n_ctx=30, rope_original=30).write_hf_mxfp4(tmp_path / "model")
    assert check(folder).ok


@torch.no_grad()
def test_nan_is_equal_to_nan_in_weights_and_never_in_logits():
    a = torch.tensor([1.0, math.nan, math.inf])
    assert difference(a, a) == 0.0
    assert difference(a, torch.tensor([1.0, 2.0, math.inf])) == math.inf
    config = Random(seed=3, n_layers=2)
    checkpoint, raw = config.checkpoint(), config.hf_tensors()

    class Raw:
        def tensor(self, name):
            return raw[name].float()

        def rows(self, name, start, stop):
            return raw[name][start:stop].float() * math.nan  # the reference's, so only its product is

        def expert(self, layer, name, expert):
            raise AssertionError("no layer is compared")

    lines = ends.check_ends(
        checkpoint.config, checkpoint.weights, torch.ones(3, 96), config.transformers().config, Raw()
    )
    assert [line.status for line in lines] == ["holds", "holds", "fails"]


@pytest.mark.parametrize("where", [5, None, b"pocket", ["pocket"]])
def test_where_is_a_text_or_a_path(where):
    with pytest.raises(ArgumentError, match="where must be"):
        wb.verify_model(where)


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory")])
def test_a_machine_without_memory_is_not_the_models_fault(folder, monkeypatch, error):
    def fails(*args):
        raise error

    monkeypatch.setattr(run, "check_layer", fails)
    with pytest.raises(BudgetError, match="the memory ran out"):
        check(folder, parts=["layers"])


@pytest.mark.parametrize("kind", ["folder", "link", "device"])
def test_a_page_that_cannot_be_written_is_refused_before_the_check(tmp_path, monkeypatch, capsys, kind):
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "other")
    monkeypatch.setattr(wb, "verify_model", lambda *args, **settings: pytest.fail("the check began"))
    assert main(["verify-model", "pocket", "-o", "/dev/full" if kind == "device" else str(tmp_path / kind)]) == 1
    assert "not a file" in capsys.readouterr().err
