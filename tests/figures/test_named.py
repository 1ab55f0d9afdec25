"""Figures of what a trace holds, by name: labels, units and n are there without a word."""

from typing import Any

import numpy as np
import pytest
import xarray as xr

import workbench as wb
import workbench.figures as f
from tests.views import made
from workbench.errors import ArgumentError, ArgumentTypeError, FigureError, HookNameError
from workbench.figures.marks import Rule
from workbench.traces.steps import steps
from workbench.views.outline import color_of

TRACE = made.run()


def effect(**changes: Any) -> xr.Dataset:
    data: dict[str, Any] = {
        "steered": ("scale", [0.6, 0.1, 0.2], {"plain": 0.1, "slope": 0.05, "p": 0.5}),
        "random": (("control", "scale"), [[0.3, 0.1, 0.0], [0.2, 0.1, 0.4], [0.1, 0.1, 0.1]]),
        "unrelated": (("contrast", "scale"), [[0.1, 0.1, 0.2], [0.1, 0.1, 0.3]]),
    }
    return xr.Dataset(data | changes, {"scale": [2.0, 0.0, 1.0]})


def test_a_line_of_a_labeled_array_has_its_label_units_and_n():
    figure = wb.figures.line(TRACE.array("entropy"))
    [panel] = figure.panels
    assert (panel.x.label, panel.y.label) == ("position", "entropy of the next token (nats)")
    assert figure.note == f"n = {len(TRACE)}."


def test_a_bare_array_is_refused_with_the_way_to_a_labeled_one():
    makers: list[Any] = [wb.figures.line, wb.figures.bars, wb.figures.heatmap]
    for make in makers:
        with pytest.raises(ArgumentTypeError, match=r"labeled array \(as from trace\.array\('entropy'\)"):
            make(TRACE["entropy"])


def test_labels_of_axes_and_of_the_null_can_be_given():
    array = xr.DataArray([[0.1, 0.4], [0.2, 0.3]], dims=("layer", "head"), name="effect")
    labels: dict[str, Any] = {"xlabel": "dose", "ylabel": "logits"}
    makers = {
        "line": lambda: wb.figures.line(array[0], null=0.2, null_name="shuffled", **labels),
        "bars": lambda: wb.figures.bars(array[0], null=np.array([0.1, 0.2]), null_name="shuffled", **labels),
        "stacked": lambda: wb.figures.stacked(array, by="layer", **labels),
        "heatmap": lambda: wb.figures.heatmap(array, **labels),
        "scatter": lambda: wb.figures.scatter(array[0], array[1], **labels),
    }
    for kind, make in makers.items():
        [panel] = make().panels
        assert (panel.x.label, panel.y.label) == ("dose", "logits"), kind
        if kind in ("line", "bars"):
            assert "shuffled" in {getattr(mark, "text", "") for mark in panel.marks} | {m.name for m in panel.marks}
            assert "chance" not in {getattr(mark, "text", "") for mark in panel.marks} | {m.name for m in panel.marks}
    assert wb.figures.heatmap(array).panels[0].y.flipped
    with pytest.raises(ArgumentTypeError, match=r"xlabel must be text \(str\), got 3"):
        wb.figures.line(array[0], xlabel=3)  # pyright: ignore[reportArgumentType]
    with pytest.raises(FigureError, match="at most 2000"):
        wb.figures.line(array[0], ylabel="y" * 3000)


def test_a_strip_takes_names():
    named = wb.figures.strip(["entropy", "logprob"], TRACE)
    given = {name: TRACE.array(name) for name in ("entropy", "logprob")}
    given = {array.attrs["long_name"]: array for array in given.values()}
    assert named.digest == wb.figures.strip(given, TRACE).digest
    assert [panel.y.label for panel in named.panels[-2:]] == ["nats", "nats"]
    assert wb.figures.strip("entropy", TRACE).panels[-1].title == "entropy of the next token"
    with pytest.raises(HookNameError, match="Did you mean 'entropy'"):
        wb.figures.strip(["entropie"], TRACE)
    with pytest.raises(FigureError, match=r"one axis of 98 positions.*choose a layer"):
        wb.figures.strip(["margin"], TRACE)


def test_a_dose_response_curve_is_in_order_of_scale_with_the_range_of_random_directions():
    figure = wb.figures.dose(effect(), ylabel="probability")
    marks: list[Any] = list(figure.panels[0].marks)
    assert [mark.kind for mark in marks] == ["rule", "line", "line", "line", "line"]
    plain, random, _, second, steered = marks
    assert plain.at == 0.1 and steered.x.tolist() == [0, 1, 2] and steered.y.tolist() == [0.1, 0.2, 0.6]
    assert random.y.tolist() == [0.1, 0.1, 0.2]
    assert random.low.tolist() == [0.1, 0.0, 0.1] and random.high.tolist() == [0.1, 0.4, 0.3]
    assert second.y.tolist() == [0.1, 0.3, 0.1]
    assert figure.note == "Band: range of 3 random directions. Slope 0.05 per scale, p = 0.5."
    assert figure.panels[0].y.label == "probability"


def test_a_dose_response_curve_without_random_directions_says_nothing_of_them():
    none = effect(random=(("control", "scale"), np.zeros((0, 3))))
    figure = wb.figures.dose(none)
    assert "random" not in figure.note and len(figure.panels[0].marks) == 4


@pytest.mark.parametrize("data", [xr.Dataset(), effect().drop_vars("random"), effect().isel(scale=0)])
def test_another_dataset_is_no_dose_response_curve(data: xr.Dataset):
    with pytest.raises(ArgumentError, match=r"wb\.steering\.steering_effect"):
        wb.figures.dose(data)


def test_messages_have_the_colors_of_the_views():
    trace = made.run()
    views = {1: 4, 2: 2, 3: 3, 4: 5, 6: 7}  # the color of a view -> the tint of the same hue
    [blocks] = f.strip(["entropy"], trace).panels[0].marks
    expected = [views.get(color_of(span), 6) for span in trace.spans]
    assert list(blocks.colors) == expected and len(set(expected)) == 4  # pyright: ignore


def test_a_step_matrix_takes_the_trace_as_the_view_does():
    trace = made.run()
    found = steps(trace)
    effect = xr.DataArray(np.tril(np.ones((len(found),) * 2), -1), dims=("step", "key_step"))
    texts = ["".join(trace.str_tokens[step.start : step.stop]) for step in found]
    by_trace, by_texts = (f.step_matrix(effect, each).panels[-1].y for each in (trace, texts))
    assert by_trace == by_texts and len(by_trace.ticks or ()) == len(found)
    with pytest.raises(FigureError, match="one text for each step"):
        f.step_matrix(effect[:2, :2], trace)


@pytest.mark.parametrize(
    "change",
    [
        lambda data: data.assign_coords(scale=["a", "b", "c"][: data.sizes["scale"]]),
        lambda data: data.assign(random=data["random"].astype(str)),
        lambda data: data.assign(steered=data["steered"].assign_attrs(slope="steep")),
        lambda data: data.assign(steered=data["steered"].assign_attrs(p=[1])),
    ],
)
def test_a_dose_response_curve_has_numbers(change):
    with pytest.raises(ArgumentTypeError, match="number"):
        wb.figures.dose(change(effect()))


def test_a_dose_response_curve_without_a_value_of_the_plain_model_has_no_line_for_it():
    data = effect()
    data["steered"].attrs["plain"] = float("nan")
    assert not any(isinstance(mark, Rule) for mark in wb.figures.dose(data).panels[0].marks)
