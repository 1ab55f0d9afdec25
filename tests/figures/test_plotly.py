"""The interactive face: a plain plotly figure of the same numbers, in which no text is more than text."""

import json
from typing import Any

import pytest

from tests.figures.hostile import HOSTILE, SETS
from tests.figures.made import every_kind
from workbench.figures.backends.plotly import inert

plotly = pytest.importorskip("plotly", reason="needs the extra `lab`")


def every_text(value: object) -> list[str]:
    if isinstance(value, str):
        return [value]
    if isinstance(value, dict):
        return [text for one in value.values() for text in every_text(one)]
    return [text for one in value for text in every_text(one)] if isinstance(value, list) else []


def written(figure) -> Any:
    """The figure as it would be saved."""
    return json.loads(figure.to_json())


@pytest.mark.parametrize("kind", sorted(every_kind()))
def test_it_is_a_plain_figure_without_a_widget_or_javascript(kind: str):
    figure = every_kind()[kind].plotly()
    assert type(figure) is plotly.graph_objects.Figure
    assert written(figure) == written(every_kind()[kind].plotly())


@pytest.mark.parametrize("kind", sorted(every_kind()))
@pytest.mark.parametrize("names", SETS, ids=range(len(SETS)))
def test_no_text_of_a_plot_is_markup_a_formula_or_a_template(kind: str, names: list[str]):
    figure = every_kind(names)[kind].plotly()
    if kind != "heatmap":  # its own template writes the numbers
        assert not [said for said in every_text(written(figure)) if "%{" in said]
    for said in every_text(written(figure)):
        assert "<" not in said.replace("<br>", "") and "$" not in said, said
        assert said.isprintable() or not said, said


def test_inert_text_reads_as_it_was_written_once_plotly_has_decoded_it():
    from html import unescape

    from workbench.text import visible

    for text in HOSTILE:
        assert unescape(inert(text)) == visible(text, newline="↵")
