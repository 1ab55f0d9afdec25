"""The command: a few problems from end to end, resumed by rows, and the page with its tables."""

import json
from functools import partial
from pathlib import Path

import pytest

from benchmarks.ground_truth import __main__ as command
from benchmarks.ground_truth import baselines, cases, finished_rows, hiding, measure, methods, report
from benchmarks.ground_truth.scores import intervals
from workbench.errors import ArgumentError, FileError


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder and the page of a small run of one row."""
    folder = tmp_path_factory.mktemp("ground_truth")
    page = folder / "page.md"
    page.write_text(f"before\n{report.BEGIN}\nold tables\n{report.END}\nafter\n")
    with pytest.MonkeyPatch.context() as small:
        small.setattr(cases, "SHORTEST", 8)
        small.setattr(hiding, "N_SAMPLES", 1)
        small.setattr(measure, "intervals", partial(intervals, resamples=100))
        small.setattr(methods, "N_FITTING_RUNS", 6)
        small.setattr(methods, "N_FITTING_TEXTS", 60)
        command.main(["tree terse", "--problems", "8", "--jobs", "1", "--folder", str(folder), "--page", str(page)])
    return folder


def test_every_method_and_baseline_has_its_figures(run: Path):
    figures = json.loads((run / "tree-terse.json").read_text())
    names = {*figures["baselines"], *methods.METHODS, methods.PROBE, methods.QUESTION_RULE}
    for column in measure.COLUMNS:
        areas = figures[column]["auroc"]
        assert areas.keys() == names
        assert all(low <= value <= high for value, low, high in areas.values())
        assert figures[column]["above best baseline"].keys() == figures["passes"].keys()
    assert figures["all pairs"]["auroc"][methods.QUESTION_RULE] == [1, 1, 1]
    assert figures["equal distance"]["auroc"]["nearness"] == [0.5, 0.5, 0.5]
    assert figures["lengths"].keys() == {"8"} and figures["passes"]["attention, all layers"] == {"8": 1}
    assert figures["scored_pairs"]["receiver heads"] == pytest.approx(22 / 28), "the last four steps have none"


def test_the_tables_stand_between_the_markers_of_the_page(run: Path):
    before, tables = (run / "page.md").read_text().split(report.BEGIN)
    tables, after = tables.split(report.END)
    assert tables.strip() == report.tables(json.loads((run / "figures.json").read_text())).strip()
    assert (before, after) == ("before\n", "\nafter\n") and "old tables" not in tables
    for name in (*methods.METHODS, methods.PROBE, "chain, fitted", f"{methods.QUESTION_RULE} (not a baseline)"):
        assert tables.count(f"\n| {name} | ") == 2, "once over all pairs and once at equal distance"
    assert "8 problems per row, development seed, on `pocket`" in tables and "% of pairs |" in tables


def test_a_finished_row_is_not_measured_again(run: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(finished_rows, "measure_row", lambda *arguments: pytest.fail("measured again"))
    file = run / "tree-terse.json"
    assert finished_rows.measured("pocket", "tree terse", 8, "development", file) == json.loads(file.read_text())
    with pytest.raises(ArgumentError, match="made with other settings"):
        finished_rows.measured("pocket", "tree terse", 9, "development", file)


def test_the_confirm_seed_is_used_only_if_it_is_requested(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    jobs = []

    def measured(model, row, n, seed, file):
        jobs.append((seed, str(file)))
        return {"row": row, "seconds": {"in all": 1.0}}

    monkeypatch.setattr(command, "measured", measured)
    monkeypatch.setattr(report, "tables", lambda figures: "")
    monkeypatch.chdir(tmp_path)
    for arguments in ([], ["--confirm"]):
        command.main(["dag terse", "--jobs", "1", *arguments])
    assert jobs == [(s, f"out/ground_truth/{s}/dag-terse.json") for s in ("development", "confirm")]


def test_a_page_without_markers_is_an_error(tmp_path: Path):
    page = tmp_path / "page.md"
    with pytest.raises(FileError, match="must exist and contain the lines"):
        report.write_page(page, "tables")
    page.write_text(report.BEGIN)
    with pytest.raises(FileError, match="must exist and contain the lines"):
        report.write_page(page, "tables")


def figures(auroc: dict, works: list[str]) -> dict:
    """The figures of a row with one baseline and the methods a and b."""
    differences = {name: [0.1, 0.0, 0.2] for name in ("a", "b")}
    column = {"best baseline": "rule", "auroc": auroc, "above best baseline": differences, "works": works}
    return {
        "baselines": ["rule"],
        "needs": {"a": "weights", "b": "gradients"},
        "passes": {"a": {"4": 1.0}, "b": {"4": 9.26}},
        "scored_pairs": {"rule": 1.0, "a": 1.0, "b": 0.25},
        "lengths": {"4": {"all pairs": {"best baseline": "rule", "auroc": auroc}}},
        "all pairs": column,
        "equal distance": column,
    }


def test_a_method_above_every_baseline_is_bold_and_one_without_all_scores_says_so():
    areas = {"rule": [0.5, 0.4, 0.6], "a": [0.9, 0.8, 1.0], "b": [0.55, 0.5, 0.6]}
    lines = report.main_table({"dag terse": figures(areas, ["a"])}, "all pairs").splitlines()
    assert lines[2] == "| rule | chain | 0 | 0.50 (0.40–0.60) |"
    assert lines[3] == "| a | weights | 1.0 | **0.90 (0.80–1.00)** |"
    assert lines[4] == "| b | gradients | 9.3 | 0.55 (0.50–0.60); 25 % of pairs |"
    summary = report.summary({"dag terse": figures(areas, ["a"])}).splitlines()
    assert summary[2].startswith("| dag terse | all pairs | rule: 0.50 (0.40–0.60) | ") and summary[2].endswith("| a |")


def test_areas_without_comparisons_are_dashes():
    nothing = {name: [None, None, None] for name in ("rule", "a", "b")}
    lines = report.main_table({"lists": figures(nothing, [])}, "equal distance").splitlines()
    assert [line.split(" | ")[-1] for line in lines[2:]] == ["— |"] * 3


def test_the_prose_of_the_page_has_the_markers_and_names_every_baseline_and_method(tmp_path: Path):
    page = tmp_path / "ground_truth.md"
    page.write_text(Path(command.__file__).with_name("page.md").read_text())
    prose = page.read_text().lower()
    report.write_page(page, "| the tables |")
    assert "| the tables |" in page.read_text()
    names = [*baselines.CHAIN_RULES, "positions, fitted", "chain, fitted", methods.QUESTION_RULE]
    names += [*methods.METHODS, methods.PROBE]
    shortened = {
        "attention, all layers": "attention, all or full layers",
        "attention, full layers": "all or full layers",
    }
    assert [name for name in names if shortened.get(name, name) not in prose] == []
