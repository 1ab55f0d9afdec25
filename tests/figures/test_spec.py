"""The figure as a value: invalid values are refused, numbers are rounded, and the digest covers everything."""

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
from workbench.figures.marks import rounded
from workbench.figures.theme import SCALES, SERIES, luminance, round_ticks, shades

NAN, INF = float("nan"), float("inf")
LINE = f.Line(x=[0, 1], y=[0, 1])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: f.Line(x=[0, 1], y=[1, 2, 3], name="p"), "line 'p': y must have as many numbers as x, got 3 and 2"),
        (lambda: f.Line(x=[0, NAN], y=[1, 2]), "x contains NaN"),
        (lambda: f.Line(x=[0, 1], y=[1, INF]), "y contains infinity"),
        (lambda: f.Line(x=["a", "b"], y=[1, 2]), "x must be numbers, got list"),
        (lambda: f.Line(x=[[0, 1]], y=[1]), "x must have one axis, got 2"),
        (lambda: f.Line(x=[0], y=[1], low=[0]), "give both low and high"),
        (lambda: f.Line(x=[0], y=[1], low=[2], high=[1]), "at index 0, low is 2 and high 1"),
        (lambda: f.Line(x=[0], y=[1], color=7), "color must be a series from 0 to 6"),
        (lambda: f.Bars(x=[0], y=[1], width=0), "width must be above 0, got 0"),
        (lambda: f.Points(x=[0], y=[1], shape="star"), "shape must be one of dot, ring, square, got 'star'"),
        (lambda: f.Points(x=[0], y=[1], text=["a", "b"]), "2 texts for 1 numbers"),
        (lambda: f.Points(x=[0], y=[1], text="a"), "text must be a list of texts"),
        (lambda: f.Cells(values=[1.0]), "two axes, row and column; got shape [1]"),
        (lambda: f.Cells(values=[[INF]]), "contain infinity"),
        (lambda: f.Cells(values=[[1.0]], scale="jet"), "scale must be one of mass, signed, got 'jet'"),
        (lambda: f.Cells(values=[[1.0]], low=3, high=2), "low must be below high, got 3 and 2"),
        (lambda: f.Blocks(start=[3], stop=[2]), "start must not exceed stop"),
        (lambda: f.Blocks(start=[1], stop=[2], colors=[99]), "colors must be tints from 0 to 7"),
        (lambda: f.Arcs(source=[0], target=[1], weight=[-1]), "weight must not be below 0"),
        (lambda: f.Rule(at=NAN), "at must be finite, got nan"),
        (lambda: f.Rule(at=0, axis="z"), "axis must be 'x' or 'y', got 'z'"),
        (lambda: f.Axis(low=2, high=1, label="p"), "axis 'p': low must be below high, got 2 and 1"),
        (lambda: f.Axis(ticks=[1, 2]), "pairs of a position and a text"),  # pyright: ignore[reportArgumentType]
        (lambda: f.Axis(low=INF), "low must be finite, got inf"),
        (lambda: f.Panel(marks=[]), "no marks"),
        (lambda: f.Panel(marks=[np.zeros(3)]), "got ndarray"),  # pyright: ignore[reportArgumentType]
        (lambda: f.Figure(panels=[]), "at least one panel"),
        (lambda: f.Figure(panels=[f.Panel(marks=[LINE])], columns=2), "columns must be between 1 and 1, the number"),
        (lambda: f.Figure(panels=[f.Panel(marks=[LINE])], width=5), "width must be between 20 and 1000 mm, got 5"),
        (lambda: f.Figure(panels=[f.Panel(marks=[LINE])], rows=[1, 2]), "rows must be 1 relative heights above 0"),
        (lambda: f.line(curves(["a", "b"])), "this array has text (2), step (7): choose a slice or take a mean"),
        (lambda: f.heatmap(curves(["a"])[0]), "two axes; this array has step (7)"),
        (lambda: f.scatter(curves(["a"]), curves(["a", "b"])), "x and y must have the same shape"),
        (lambda: f.stacked(curves(["a"]) * NAN, by="text"), "contains NaN, which cannot be stacked"),
        (lambda: f.step_matrix(curves(["a", "b"]), ["a", "b"]), "a step matrix must be square"),
        (lambda: f.beside(), "at least one panel"),
    ],
)
def test_an_invalid_value_is_refused_with_what_is_allowed(make, message: str):
    with pytest.raises(FigureError, match=re.escape(message)):
        make()


def test_a_figure_cannot_be_changed():
    figure = every_kind()["line"]
    with pytest.raises(dataclasses.FrozenInstanceError):
        figure.title = "other"  # pyright: ignore
    with pytest.raises(ValueError, match="read-only"):
        figure.panels[0].marks[-1].y[0] = 9  # pyright: ignore


def test_a_mark_copies_its_numbers():
    values = np.arange(3.0)
    mark = f.Line(x=values, y=values)
    values[:] = 7
    assert mark.y.tolist() == [0, 1, 2]


@given(arrays.arrays(np.float64, 5, elements=st.floats(-1e6, 1e6)))
def test_rounding_keeps_five_digits_of_the_largest_and_is_idempotent(values: np.ndarray):
    once = rounded(values)
    assert np.abs(once - values).max() <= np.abs(values).max() * 1e-4 * 0.5 + 1e-300
    assert rounded(once).tolist() == once.tolist()
    assert not (np.signbit(once) & (once == 0)).any()


def test_whole_numbers_are_not_rounded():
    assert rounded(np.array([131071.0, 131070.0])).tolist() == [131071, 131070]


def test_rounding_noise_of_another_machine_does_not_change_the_digest():
    array = curves(["a", "b"])
    noisy = array * (1 + 1e-12 * np.random.default_rng(0).normal(size=array.shape))
    assert f.line(array, by="text").digest == f.line(noisy, by="text").digest
    assert f.line(array, by="text").digest != f.line(array * 1.01, by="text").digest


def test_every_text_and_size_is_in_the_digest():
    figure = every_kind()["heatmap"]
    for change in ({"title": "x"}, {"note": "x"}, {"width": 90.0}, {"height": 77.0}):
        assert dataclasses.replace(figure, **change).digest != figure.digest


@given(st.floats(-1e6, 1e6), st.floats(1e-6, 1e6), st.integers(2, 9), st.booleans())
def test_ticks_are_round_few_and_inside_the_bounds(low: float, size: float, max_ticks: int, whole: bool):
    assume(size > abs(low) * 1e-6)  # drawn numbers are never closer: they are rounded to a hundred-thousandth
    ticks = round_ticks(low, low + size, max_ticks, whole=whole)
    assert 1 <= len(ticks) <= max_ticks
    if len(ticks) > 1:
        assert low - size * 1e-6 <= ticks[0] and ticks[-1] <= low + size * (1 + 1e-6)
        assert not whole or all(tick == round(tick) for tick in ticks)


@pytest.mark.parametrize("scale", SCALES)
def test_color_scales_darken_monotonically_so_that_gray_print_is_readable(scale: str):
    lightness = luminance(shades(scale))
    darker = np.diff(lightness) <= 1e-9
    middle = len(lightness) // 2
    assert darker.all() if scale == "mass" else (~darker[: middle - 1]).all() and darker[middle:].all()


# Machado, Oliveira and Fernandes 2009: linear RGB as seen without one kind of cone
SEEN = {
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
}


@pytest.mark.parametrize("eye", SEEN)
def test_series_colors_differ_for_the_color_blind(eye: str):
    rgb = np.array([[int(color[i : i + 2], 16) for i in (1, 3, 5)] for color in SERIES]) / 255
    seen = (rgb**2.2 @ np.array(SEEN[eye]).T).clip(0, 1) ** (1 / 2.2)
    distances = np.linalg.norm(seen[:, None] - seen[None], axis=-1)[np.triu_indices(len(SERIES), 1)]
    assert distances.min() > 0.12  # in a cube with sides of 1


def test_a_heat_map_of_both_signs_has_zero_in_the_middle_of_its_scale():
    [cells] = f.heatmap(xr.DataArray([[-1.0, 3.0]], dims=("a", "b"))).panels[0].marks
    assert (cells.low, cells.high, cells.scale) == (-3, 3, "signed")  # pyright: ignore


def test_steps_never_have_an_effect_on_earlier_steps():
    figure = f.step_matrix(xr.DataArray(np.ones((3, 3)), dims=("step", "key_step")), ["a", "b", "c"])
    cells = [(row.y, row.x) for _, mark, row in figure.numbers() if mark.kind == "cells" and row.value is not None]
    assert cells == [(1, 0), (2, 0), (2, 1)]
    assert [(row.x, row.y) for _, mark, row in figure.numbers() if mark.kind == "arcs"] == [(0, 1), (0, 2), (1, 2)]
