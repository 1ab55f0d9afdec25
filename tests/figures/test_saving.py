"""Saved figures: the numbers that are drawn and where they come from, written completely or not at all."""

import csv
import hashlib
import io
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.figures.hostile import HOSTILE, SETS
from tests.figures.made import every_kind
from tests.traces import made
from workbench import figures as f
from workbench.errors import FigureError, FileError
from workbench.figures import saving
from workbench.figures.saving import COLUMNS, contents, table

pytest.importorskip("matplotlib", reason="needs the extra `figures`")


def plotted(figure: f.Figure) -> Any:
    """The data that plotly draws, mark by mark."""
    return figure.plotly().data


@pytest.mark.parametrize("kind", sorted(every_kind()))
def test_the_table_has_the_numbers_that_both_backends_draw(kind: str):
    figure = every_kind(HOSTILE[:6])[kind]
    rows = list(csv.DictReader(io.StringIO(table(figure).decode())))
    assert tuple(rows[0]) == COLUMNS
    assert len(rows) == len(list(figure.numbers()))
    for row, (panel, mark, drawn) in zip(rows, figure.numbers()):
        assert (int(row["panel"]), row["mark"], json.loads(row["name"])) == (panel, mark.kind, mark.name)
        for column in ("x", "y", "low", "high", "value"):
            assert (float(row[column]) if row[column] else None) == getattr(drawn, column)
        assert (json.loads(row["text"]) if row["text"] else None) == drawn.text


def test_the_numbers_in_the_picture_are_those_of_the_table():
    """Read from the matplotlib artists and from plotly, bar by bar and cell by cell."""
    from workbench.figures.backends.matplotlib import _settings, _sheet, import_matplotlib

    figure = every_kind()["bars"]
    heights = [row.y for _, mark, row in figure.numbers() if mark.kind == "bars"]
    with _settings(import_matplotlib(), "x"):
        axes = _sheet(figure).axes[0]
    [bars] = [collection for collection in axes.collections if type(collection).__name__ == "PolyCollection"]
    assert [path.vertices[:, 1].max() for path in bars.get_paths()] == heights
    plotly = pytest.importorskip("plotly")
    assert plotly is not None
    assert list(plotted(figure)[0].y) == heights
    heat = every_kind()["heatmap"]
    cells = [row.value for _, mark, row in heat.numbers() if mark.kind == "cells"]
    assert np.ravel([t.z for t in plotted(heat) if t.type == "heatmap"][1]).tolist() == cells


def test_hostile_texts_can_be_read_back_from_the_table_and_start_no_formula():
    figure = f.scatter(*(2 * [made_array(len(HOSTILE))]), text=HOSTILE)
    rows = list(csv.reader(io.StringIO(table(figure).decode("ascii"))))
    assert [json.loads(row[-1]) for row in rows[1:]] == HOSTILE
    assert not [cell for row in rows for cell in row if cell[:1] in ("=", "+", "@", "\t")]


def made_array(n: int):
    import xarray as xr

    return xr.DataArray(np.arange(float(n)), dims="pos")


def test_every_picture_holds_its_provenance(tmp_path: Path):
    traces = [made.trace(numerics={"dtype": "float32", "torch": "2.13.0"}), made.trace(7)]
    script = tmp_path / "script (1).py"
    script.write_text("print('<&)\\\\')", "utf-8")
    figure = every_kind()["line"]
    paths = f.save(figure, tmp_path / "out" / "a figure", source=traces, code=script)
    assert [path.name for path in paths] == [f"a figure.{ending}" for ending in ("svg", "pdf", "png", "csv", "json")]
    sidecar = json.loads(paths[-1].read_text("utf-8"))
    for path in paths[:3]:
        provenance = f.provenance(path)
        assert provenance["traces"] == [trace.id for trace in traces]
        assert provenance["models"] == [{"name": "made", "weights_digest": "w0", "tokenizer_digest": "t"}]
        assert {"dtype": "float32", "torch": "2.13.0"} in provenance["numerics"]
        assert provenance["code"] == {"name": script.name, "sha256": hashlib.sha256(script.read_bytes()).hexdigest()}
        assert provenance["spec"] == figure.digest
        assert provenance["data"] == hashlib.sha256(paths[3].read_bytes()).hexdigest()
        assert provenance["drawn_with"]["matplotlib"]
        assert provenance.items() <= sidecar.items()
        assert sidecar["sha256"][path.suffix[1:]] == hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize("text", ["", *(" ".join(names) for names in SETS)], ids=range(4))
def test_hostile_titles_do_not_damage_the_provenance(text: str, tmp_path: Path):
    figure = f.Figure(panels=[f.Panel(marks=[f.Rule(at=1.0)])], title=text)
    valid = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    for path in f.save(figure, tmp_path / "x")[:3]:
        assert f.provenance(path)["title"] == valid


@pytest.mark.parametrize(
    "data", [b"", b"%PDF-1.4", b"\x89PNG\r\n\x1a\n", b"<svg/>", b"<!DOCTYPE a [<!ENTITY b 'c'>]>", b"\xff"]
)
def test_a_picture_without_provenance_is_refused(data: bytes, tmp_path: Path):
    (tmp_path / "x").write_bytes(data)
    with pytest.raises(FigureError, match="holds no provenance"):
        f.provenance(tmp_path / "x")


def test_a_path_with_an_ending_gives_that_picture_only(tmp_path: Path):
    paths = f.save(every_kind()["rule"], tmp_path / "a.b.svg")
    assert [path.name for path in paths] == ["a.b.svg", "a.b.csv", "a.b.json"]


@pytest.mark.parametrize("name", ["a.gif", "a.svgz", "a.\u202ex"])
def test_an_unknown_ending_is_refused_and_nothing_is_written(name: str, tmp_path: Path):
    with pytest.raises(FigureError, match="the ending must be one of svg, pdf, png"):
        f.save(every_kind()["rule"], tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_a_source_that_is_not_a_trace_is_refused(tmp_path: Path):
    with pytest.raises(FigureError, match="source must hold Traces, got str"):
        f.save(every_kind()["rule"], tmp_path / "x", source=["first.trace"])  # pyright: ignore
    assert not list(tmp_path.iterdir())


def test_a_failing_disk_leaves_existing_files_and_no_partial_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    f.save(every_kind()["rule"], tmp_path / "x")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    fsync_calls = iter(range(99))

    def full(fd: int) -> None:
        if next(fsync_calls) == 0:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        f.save(every_kind()["line"], tmp_path / "x")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_picture_that_its_json_does_not_describe_is_refused(tmp_path: Path):
    """As after a process that was killed between two of the files."""
    f.save(every_kind()["rule"], tmp_path / "x")
    earlier = (tmp_path / "x.json").read_bytes()
    f.save(every_kind()["line"], tmp_path / "x")
    f.provenance(tmp_path / "x.svg")
    (tmp_path / "x.json").write_bytes(earlier)
    with pytest.raises(FigureError, match=r"x\.svg is not the file that .*x\.json describes: saving was interrupted"):
        f.provenance(tmp_path / "x.svg")


@pytest.mark.parametrize("call", ["write", "fsync", "replace", "link"])
@pytest.mark.parametrize("n_before_error", [0, 1, 4])
def test_an_error_in_any_file_changes_none(call: str, n_before_error: int, tmp_path: Path, monkeypatch):
    f.save(every_kind()["rule"], tmp_path / "x")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    real, calls = getattr(os, call), iter(range(10**6))

    def failing(*arguments):
        if next(calls) == n_before_error:
            raise OSError(28, "No space left on device") if call != "link" else KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(os, call, failing)
    with pytest.raises((FileError, KeyboardInterrupt)):
        f.save(every_kind()["line"], tmp_path / "x")
    monkeypatch.undo()
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_failing_backend_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def broken(*_, **__):
        raise RuntimeError("no")

    monkeypatch.setattr(saving, "images", broken)
    with pytest.raises(RuntimeError):
        f.save(every_kind()["rule"], tmp_path / "new" / "x")
    assert not list(tmp_path.iterdir())


def test_the_parquet_table_has_the_same_numbers(tmp_path: Path):
    parquet = pytest.importorskip("pyarrow.parquet")
    figure = every_kind()["heatmap"]
    paths = f.save(figure, tmp_path / "x.svg", parquet=True)
    assert [path.suffix for path in paths] == [".svg", ".csv", ".parquet", ".json"]
    table_ = parquet.read_table(paths[2], page_checksum_verification=True)
    assert table_.column_names == list(COLUMNS)
    assert table_["value"].to_pylist() == [row.value for _, _, row in figure.numbers()]


def test_saving_twice_gives_the_same_bytes():
    figure, trace = every_kind()["step_matrix"], made.trace()
    assert contents(figure, source=trace) == contents(figure, source=[trace])
