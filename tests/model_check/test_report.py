"""The report: JSON, page, exit code, what a Model and a manifest say afterwards, and interrupted checks."""

import json
import math

import pytest

import workbench as wb
from tests.checkpoints import Random
from workbench.cli import main
from workbench.model_check import ModelReport, run
from workbench.model_check.line import PARTS, Line, compared


def quiet(line: Line) -> None:
    pass


@pytest.fixture
def folder(tmp_path, model: Random):
    return model.write_hf_mxfp4(tmp_path / "model")


def without_seconds(report: ModelReport) -> dict:
    value = report.to_json()
    for line in value["lines"]:
        del line["seconds"]
    return value


def test_a_line_holds_up_to_its_tolerance_and_nan_fails():
    assert compared("layers", 1, "a", 0.5, 0.5).status == "holds"
    assert compared("layers", 1, "a", 0.6, 0.5).status == "fails"
    assert compared("layers", 1, "a", math.nan, 0.5).status == "fails"


def test_a_report_survives_json(folder):
    report = wb.verify_model(folder, on_line=quiet)
    again = ModelReport.from_json(json.loads(json.dumps(report.to_json())))
    assert again == report
    assert {line.part for line in report.lines} == {*PARTS}


def test_a_model_and_its_traces_say_that_it_was_verified(folder):
    before = wb.Model(folder)
    assert before.verified is None and "verified" not in repr(before)
    report = wb.verify_model(folder, on_line=quiet)
    model = wb.Model(folder)
    assert f"verified {report.date}" in repr(model)
    ids = list(range(40))
    trace, earlier = model.trace(ids), before.trace(ids)
    assert trace.manifest.model["verified"] == {
        "date": report.date,
        "ok": True,
        "workbench": report.machine["workbench"],
    }
    assert trace.id == earlier.id and trace.manifest.content_hash == earlier.manifest.content_hash
    file = next(folder.glob("*.safetensors"))
    file.write_bytes(file.read_bytes())  # the same bytes, written anew: nobody has looked at them
    assert wb.Model(folder).verified is None


def test_a_check_of_some_parts_does_not_count_as_verified(folder):
    wb.verify_model(folder, parts=["weights"], on_line=quiet)
    assert wb.Model(folder).verified is None


def test_the_command_ends_with_1_where_a_line_fails(folder, tmp_path, capsys, monkeypatch):
    assert (
        main(["verify-model", str(folder), "--parts", "weights,layers", "-o", str(tmp_path / "new" / "page.html")]) == 0
    )
    text = (tmp_path / "new" / "page.html").read_text()
    assert "Nothing fails." in text and "<script" not in text and "https:" not in text
    monkeypatch.setattr(run, "check_table", lambda weights, raw, name: compared("weights", None, name, 1.0, 0.0))
    assert main(["verify-model", str(folder), "--parts", "weights", "--json"]) == 1
    shown = capsys.readouterr().out
    assert '"status": "fails"' in shown and "lm_head.weight" in shown


def test_names_of_files_are_text_on_the_page(tmp_path):
    from workbench.model_check.page import page

    line = Line("files", None, "<img src=x onerror=alert(1)>\u202e", "fails", 1.0, 0.0, note="</td><script>")
    text = page(ModelReport({"name": "<b>", "format": "hf"}, {"cpu": "&"}, "2026-12-01", [line]))
    assert "<img" not in text and "<script" not in text and "<b>" not in text and "\u202e" not in text


def test_a_check_interrupted_at_ten_moments_continues_to_the_same_report(tmp_path, monkeypatch):
    folder = Random(seed=3, n_layers=2).write_hf_mxfp4(tmp_path / "model")
    whole = wb.verify_model(folder, on_line=quiet)
    calls, layer = [], run.check_layer
    monkeypatch.setattr(run, "check_layer", lambda *args: (calls.append(args[3]), layer(*args))[1])
    for stop in range(10):
        moment, seen = 1 + stop * (len(whole.lines) - 2) // 9, []

        def interrupt(line: Line, moment=moment, seen=seen) -> None:
            seen.append(line)
            if len(seen) == moment:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            wb.verify_model(folder, on_line=interrupt)
        calls.clear()
        assert without_seconds(wb.verify_model(folder, on_line=quiet)) == without_seconds(whole)
        finished = {line.layer for line in seen if line.part in ("weights", "layers") and line.layer is not None}
        assert {*calls} == {0, 1} - finished, "a layer that was finished is not checked again"


def test_restart_begins_anew(folder, monkeypatch):
    with pytest.raises(KeyboardInterrupt):
        wb.verify_model(
            folder, on_line=lambda line: (_ for _ in ()).throw(KeyboardInterrupt) if line.layer == 2 else None
        )
    calls, layer = [], run.check_layer
    monkeypatch.setattr(run, "check_layer", lambda *args: (calls.append(args[3]), layer(*args))[1])
    wb.verify_model(folder, parts=["layers"], restart=True, on_line=quiet)
    assert calls == [0, 1, 2, 3]
