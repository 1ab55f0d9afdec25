"""The figure as a value: what it refuses, what it rounds, what its digest says."""

import dataclasses
import re

import numpy as np
import pytest
import xarray as xr
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from tests.figures.made import curves, every_kind
from workbench import figures as f
from workbench.errors import FigureError
from workbench.figures.marks import settled
from workbench.figures.theme import SCALES, SERIES, luminance, round_ticks, shades

NAN, INF = float("nan"), float("inf")
LINE = f.Line(x=[0, 1], y=[0, 1])


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: f.Line(x=[0, 1], y=[1, 2, 3], name="p"), "line 'p': y has 3 numbers where x has 2"),
        (lambda: f.Line(x=[0, NAN], y=[1, 2]), "x holds NaN"),
        (lambda: f.Line(x=[0, 1], y=[1, INF]), "y holds an infinite number"),
        (lambda: f.Line(x=["a", "b"], y=[1, 2]), "x must be numbers, not list"),
        (lambda: f.Line(x=[[0, 1]], y=[1]), "x must have one axis, and has 2"),
        (lambda: f.Line(x=[0], y=[1], low=[0]), "give both low and high"),
        (lambda: f.Line(x=[0], y=[1], low=[2], high=[1]), "number 0 ends at 1, below where it begins, 2"),
        (lambda: f.Line(x=[0], y=[1], color=7), "color is the number of a series, 0..6"),
        (lambda: f.Bars(x=[0], y=[1], width=0), "wider than 0"),
        (lambda: f.Points(x=[0], y=[1], shape="star"), "shape is one of dot, ring, square, not 'star'"),
        (lambda: f.Points(x=[0], y=[1], text=["a", "b"]), "2 texts for 1 numbers"),
        (lambda: f.Points(x=[0], y=[1], text="a"), "text is a list of texts"),
        (lambda: f.Cells(values=[1.0]), "two axes, row and column; these have shape [1]"),
        (lambda: f.Cells(values=[[INF]]), "hold an infinite number"),
        (lambda: f.Cells(values=[[1.0]], scale="jet"), "scale is one of mass, signed, not 'jet'"),
        (lambda: f.Cells(values=[[1.0]], low=3, high=2), "ends at 2, below where it begins, 3"),
        (lambda: f.Blocks(start=[3], stop=[2]), "ends before it begins"),
        (lambda: f.Blocks(start=[1], stop=[2], colors=[99]), "colors are numbers of series"),
        (lambda: f.Arcs(source=[0], target=[1], weight=[-1]), "a weight is not below 0"),
        (lambda: f.Rule(at=NAN), "it must stand somewhere"),
        (lambda: f.Rule(at=0, axis="z"), "axis is 'x' or 'y', not 'z'"),
        (lambda: f.Axis(low=2, high=1, label="p"), "axis 'p': it ends at 1, not above where it begins, 2"),
        (lambda: f.Axis(ticks=[1, 2]), "pairs of a place and a text"),  # pyright: ignore[reportArgumentType]
        (lambda: f.Axis(low=INF), "finite ends"),
        (lambda: f.Panel(marks=[]), "no marks"),
        (lambda: f.Panel(marks=[np.zeros(3)]), "not ndarray"),  # pyright: ignore[reportArgumentType]
        (lambda: f.Figure(panels=[]), "one panel at least"),
        (lambda: f.Figure(panels=[f.Panel(marks=[LINE])], columns=2), "1 panels stand in 1..1 columns, not in 2"),
        (lambda: f.Figure(panels=[f.Panel(marks=[LINE])], width=5), "the width is 5 mm; paper has 20 to 1000"),
        (lambda: f.Figure(panels=[f.Panel(marks=[LINE])], rows=[1, 2]), "rows are 1 heights above 0"),
        (lambda: f.line(curves(["a", "b"])), "this array has text (2), step (7): choose a slice or take a mean"),
        (lambda: f.heatmap(curves(["a"])[0]), "two axes; this array has step (7)"),
        (lambda: f.scatter(curves(["a"]), curves(["a", "b"])), "a point needs both numbers"),
        (lambda: f.stacked(curves(["a"]) * NAN, by="text"), "parts of a whole have no gaps"),
        (lambda: f.step_matrix(curves(["a", "b"]), ["a", "b"]), "a step matrix is square"),
        (lambda: f.beside(), "1..0 columns"),
    ],
)
def test_what_does_not_fit_together_is_refused_and_said(make, says: str):
    with pytest.raises(FigureError, match=re.escape(says) if "1..0" not in says else "one panel at least"):
        make()


def test_a_figure_cannot_be_changed():
    figure = every_kind()["line"]
    with pytest.raises(dataclasses.FrozenInstanceError):
        figure.title = "other"  # pyright: ignore
    with pytest.raises(ValueError, match="read-only"):
        figure.panels[0].marks[-1].y[0] = 9  # pyright: ignore


def test_what_is_drawn_later_is_not_what_the_caller_changes_now():
    values = np.arange(3.0)
    mark = f.Line(x=values, y=values)
    values[:] = 7
    assert mark.y.tolist() == [0, 1, 2]


@given(arrays.arrays(np.float64, 5, elements=st.floats(-1e6, 1e6)))
def test_rounding_keeps_five_digits_of_the_largest_and_is_idempotent(values: np.ndarray):
    once = settled(values)
    assert np.abs(once - values).max() <= np.abs(values).max() * 1e-4 * 0.5 + 1e-300
    assert settled(once).tolist() == once.tolist()
    assert not (np.signbit(once) & (once == 0)).any()


def test_whole_numbers_are_not_rounded():
    assert settled(np.array([131071.0, 131070.0])).tolist() == [131071, 131070]


def test_noise_of_another_machine_changes_no_digest():
    array = curves(["a", "b"])
    noisy = array * (1 + 1e-12 * np.random.default_rng(0).normal(size=array.shape))
    assert f.line(array, by="text").digest == f.line(noisy, by="text").digest
    assert f.line(array, by="text").digest != f.line(array * 1.01, by="text").digest


def test_every_word_and_number_is_in_the_digest():
    figure = every_kind()["heatmap"]
    for change in ({"title": "x"}, {"note": "x"}, {"width": 90.0}, {"height": 77.0}):
        assert dataclasses.replace(figure, **change).digest != figure.digest


@given(st.floats(-1e6, 1e6), st.floats(1e-6, 1e6), st.integers(2, 9), st.booleans())
def test_ticks_are_round_few_and_inside(low: float, size: float, most: int, whole: bool):
    assume(size > abs(low) * 1e-6)  # nothing that is drawn is finer: it is rounded to a hundred-thousandth
    ticks = round_ticks(low, low + size, most, whole=whole)
    assert 1 <= len(ticks) <= most
    if len(ticks) > 1:
        assert low - size * 1e-6 <= ticks[0] and ticks[-1] <= low + size * (1 + 1e-6)
        assert not whole or all(tick == round(tick) for tick in ticks)


@pytest.mark.parametrize("scale", SCALES)
def test_scales_grow_darker_all_the_way_so_grey_print_and_any_eye_can_read_them(scale: str):
    light = luminance(shades(scale))
    falls = np.diff(light) <= 1e-9
    middle = len(light) // 2
    assert falls.all() if scale == "mass" else (~falls[: middle - 1]).all() and falls[middle:].all()


# Machado, Oliveira and Fernandes 2009: what is left of linear RGB without one kind of cone
SEEN = {
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
}


@pytest.mark.parametrize("eye", SEEN)
def test_series_differ_for_the_colour_blind(eye: str):
    rgb = np.array([[int(color[i : i + 2], 16) for i in (1, 3, 5)] for color in SERIES]) / 255
    seen = (rgb**2.2 @ np.array(SEEN[eye]).T).clip(0, 1) ** (1 / 2.2)
    apart = np.linalg.norm(seen[:, None] - seen[None], axis=-1)[np.triu_indices(len(SERIES), 1)]
    assert apart.min() > 0.12  # of a cube whose sides are 1


def test_a_heat_map_of_both_signs_has_nothing_in_its_middle():
    [cells] = f.heatmap(xr.DataArray([[-1.0, 3.0]], dims=("a", "b"))).panels[0].marks
    assert (cells.low, cells.high, cells.scale) == (-3, 3, "signed")  # pyright: ignore


def test_steps_are_never_shown_to_act_on_those_before_them():
    figure = f.step_matrix(xr.DataArray(np.ones((3, 3)), dims=("step", "key_step")), ["a", "b", "c"])
    cells = [(row.y, row.x) for _, mark, row in figure.numbers() if mark.kind == "cells" and row.value is not None]
    assert cells == [(1, 0), (2, 0), (2, 1)]
    assert [(row.x, row.y) for _, mark, row in figure.numbers() if mark.kind == "arcs"] == [(0, 1), (0, 2), (1, 2)]
