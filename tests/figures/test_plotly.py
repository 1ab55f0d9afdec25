"""The plotly backend: a plain plotly figure of the same numbers, in which no text is markup."""

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
        return [text for item in value.values() for text in every_text(item)]
    return [text for item in value for text in every_text(item)] if isinstance(value, list) else []


def as_saved(figure) -> Any:
    """The figure in its saved form."""
    return json.loads(figure.to_json())


@pytest.mark.parametrize("kind", sorted(every_kind()))
def test_the_plot_is_a_plain_figure_without_widgets_or_javascript(kind: str):
    figure = every_kind()[kind].plotly()
    assert type(figure) is plotly.graph_objects.Figure
    assert as_saved(figure) == as_saved(every_kind()[kind].plotly())


@pytest.mark.parametrize("kind", sorted(every_kind()))
@pytest.mark.parametrize("names", SETS, ids=range(len(SETS)))
def test_no_text_of_a_plot_is_markup_a_formula_or_a_template(kind: str, names: list[str]):
    figure = every_kind(names)[kind].plotly()
    if kind != "heatmap":  # its own template prints the numbers
        assert not [text for text in every_text(as_saved(figure)) if "%{" in text]
    for text in every_text(as_saved(figure)):
        assert "<" not in text.replace("<br>", "") and "$" not in text, text
        assert text.isprintable() or not text, text


def test_inert_text_is_the_original_once_plotly_has_decoded_it():
    from html import unescape

    from workbench.text import visible

    for text in HOSTILE:
        assert unescape(inert(text)) == visible(text, newline="↵")
