"""Sweep checkpoints: an interrupted sweep continues with the same results; other files are left unchanged."""

import json
from functools import partial

import numpy as np
import pytest

from tests.model.models import some_tokens, tiny
from workbench.errors import FileError, ResumeError
from workbench.experiments.activation_patching import LogitDiff, activation_patching
from workbench.experiments.attention_knockout import attention_knockout
from workbench.experiments.checkpoint import SweepCheckpoint
from workbench.experiments.path_patching import path_patching
from workbench.experiments.steering import steering_effect, steering_vector

GAP = LogitDiff(3, 8)


def pair(n: int = 30) -> tuple[list[int], list[int]]:
    corrupted = some_tokens(n)
    clean = list(corrupted)
    clean[12] = (corrupted[12] + 5) % 170
    return clean, corrupted


def entropy(trace) -> float:
    return float(trace["entropy"].sum())


def sweeps():
    model, (clean, corrupted) = tiny(), pair()
    trace = model.trace(clean, record="residuals")
    vector, other = (steering_vector([(trace, a)], [(trace, b)], 1) for a, b in ((3, 4), (5, 6)))
    return {
        "places": partial(activation_patching, model, clean, corrupted, GAP),
        "heads": partial(activation_patching, model, clean, corrupted, GAP, site="z", by_head=True),
        "paths": partial(path_patching, model, clean, corrupted, GAP, ("mlp", 1), positions=range(12, 30)),
        "edges": partial(attention_knockout, model, trace, slice(20, 30), slice(5, 15), n_controls=9),
        "steering": partial(
            steering_effect, model, clean, vector, entropy, control_vectors=[other], n_random_controls=3
        ),
    }


@pytest.fixture
def puts(monkeypatch) -> list[int]:
    """The computed cells, in order; Ctrl-C is raised after `puts.limit` of them."""

    class Puts(list):
        limit = 10**9

    recorded, put = Puts(), SweepCheckpoint.put

    def counted(cells, cell, values):
        if len(recorded) >= recorded.limit:
            raise KeyboardInterrupt
        recorded.append(cell)
        put(cells, cell, values)

    monkeypatch.setattr(SweepCheckpoint, "put", counted)
    for module in ("activation_patching", "path_patching"):
        monkeypatch.setattr(f"workbench.experiments.{module}.MAX_ROWS", 2)
    monkeypatch.setattr("workbench.experiments.attention_knockout.MAX_ELEMENTS_PER_PASS", 1)
    return recorded


@pytest.mark.parametrize("name", ["places", "heads", "paths", "edges", "steering"])
def test_a_resumed_sweep_is_identical_and_computes_no_cell_twice(name, puts, tmp_path):
    sweep = sweeps()[name]
    uninterrupted = sweep()
    all_cells = list(puts)
    for limit in (3, len(all_cells) // 2):
        path = tmp_path / f"{limit}.cells"
        puts.clear()
        puts.limit = limit
        with pytest.raises(KeyboardInterrupt):
            sweep(resume=path)
        n_saved = len(json.loads(path.read_text())["cells"])
        assert n_saved == limit
        puts.clear()
        puts.limit = 10**9
        assert sweep(resume=path).identical(uninterrupted)
        assert (
            len(all_cells) - n_saved <= len(puts) <= len(all_cells) - n_saved + 1
        )  # at most one cell of a half-saved pass is recomputed
        puts.clear()
        assert sweep(resume=path).identical(uninterrupted) and not puts
        assert [file.name for file in tmp_path.iterdir() if file.name.startswith(".")] == []


def test_a_file_of_other_inputs_is_refused_with_their_names_and_unchanged(tmp_path):
    model, (clean, corrupted) = tiny(), pair()
    path = tmp_path / "places.cells"
    activation_patching(model, clean, corrupted, GAP, resume=path)
    before = path.read_bytes()
    with pytest.raises(ResumeError, match="the cells of another sweep; these inputs differ: metric"):
        activation_patching(model, clean, corrupted, LogitDiff(3, 9), resume=path)
    with pytest.raises(ResumeError, match="these inputs differ: positions, site"):
        activation_patching(model, clean, corrupted, GAP, site="mlp_out", positions=[13], resume=path)
    with pytest.raises(ResumeError, match="these inputs differ: weights"):
        activation_patching(tiny(1), clean, corrupted, GAP, resume=path)
    with model.edit("blocks.1.hook_mlp_out", lambda x: 0 * x):
        model.trace(clean, record="")
        with pytest.raises(ResumeError, match="these inputs differ: edits"):
            activation_patching(model, clean, corrupted, GAP, resume=path)
    assert path.read_bytes() == before


@pytest.mark.parametrize("content", ["", "{}", "[1, 2]", '{"kind": "a plan", "inputs": {}, "cells": {}}', "my notes"])
def test_another_kind_of_file_is_refused_and_unchanged(content, tmp_path):
    path = tmp_path / "notes.txt"
    path.write_text(content)
    with pytest.raises(ResumeError, match="does not hold finished cells of a sweep; pass another path"):
        SweepCheckpoint(path, {"tokens": [1]})
    assert path.read_text() == content


def test_an_unwritable_path_fails_before_the_sweep_starts(puts, tmp_path):
    model, (clean, corrupted) = tiny(), pair()
    with pytest.raises(FileError, match=r"there is no folder .*/no"):
        activation_patching(model, clean, corrupted, GAP, resume=tmp_path / "no" / "cells")
    assert not puts


def test_values_are_restored_bit_for_bit_including_nan(tmp_path):
    values = np.array([0.1, 1 / 3, -0.0, np.nan, np.inf, 5e-324])
    with SweepCheckpoint(tmp_path / "a", {"x": 1}, shape=(6,)) as cells:
        cells.put(7, values)
    with SweepCheckpoint(tmp_path / "b", {"x": 1}) as cells:
        cells.put(8, np.pi)
    with SweepCheckpoint(tmp_path / "a", {"x": 1}, shape=(6,)) as cells:
        assert cells[7].tobytes() == values.tobytes() and 9 not in cells
    with SweepCheckpoint(tmp_path / "b", {"x": 1}) as cells:
        assert float(cells[8]) == np.pi


def test_two_sweeps_with_one_file_share_their_cells(tmp_path):
    with SweepCheckpoint(tmp_path / "a", {"x": 1}) as first, SweepCheckpoint(tmp_path / "a", {"x": 1}) as second:
        first.put(1, 0.25)
        second.put(2, 0.5)
    with SweepCheckpoint(tmp_path / "a", {"x": 1}) as cells:
        assert (float(cells[1]), float(cells[2])) == (0.25, 0.5)
    assert [file.name for file in tmp_path.iterdir()] == ["a"]


def test_a_changed_file_is_refused_and_an_older_one_says_what_to_do(tmp_path):
    path = tmp_path / "a"
    with SweepCheckpoint(path, {"x": 1}) as cells:
        cells.put(1, 0.25)
    text = path.read_text()
    path.write_text(text.replace("0.25", "0.26"))
    with pytest.raises(ResumeError, match="content does not match its hash"):
        SweepCheckpoint(path, {"x": 1})
    content = json.loads(text)
    del content["sha256"]
    path.write_text(json.dumps(content))
    with pytest.raises(ResumeError, match=r"earlier version of workbench, without a hash.*delete the file"):
        SweepCheckpoint(path, {"x": 1})


def test_cells_are_kept_beside_a_file_that_another_program_changes_during_the_sweep(tmp_path):
    path = tmp_path / "a"

    def sweep():
        with SweepCheckpoint(path, {"x": 1}) as cells:
            cells.put(1, 0.25)
            path.write_text("my notes")

    with pytest.raises(ResumeError, match="The cells of this sweep are in"):
        sweep()
    [kept] = [file for file in tmp_path.iterdir() if file != path]
    assert path.read_text() == "my notes" and 1 in SweepCheckpoint(kept, {"x": 1})
