"""Labeled arrays, texts found in a run, and the keys that completion offers."""

import re
from dataclasses import replace

import numpy as np
import pytest

from tests.traces import made
from workbench import hooks, units
from workbench.errors import ArgumentError, HookNameError, NotRecorded, SelectionError
from workbench.traces import Trace
from workbench.traces.occurrences import occurrences
from workbench.traces.spans import Span


def said(*pieces: str, spans: tuple[Span, ...] = ()) -> Trace:
    """A trace of these tokens."""
    manifest = made.manifest(len(pieces))
    return Trace(replace(manifest, str_tokens=pieces, spans=spans), {})  # pyright: ignore[reportArgumentType]


def test_every_hook_point_and_summary_has_a_label_and_units() -> None:
    assert {*units.LABELS} == {*hooks.POINTS, *hooks.SUMMARIES, *hooks.GENERATION_STATE}
    assert all(label and unit for label, unit in units.LABELS.values())
    assert units.labels("of another library") == {}


def test_a_labeled_array_has_the_numbers_axes_texts_and_units_of_its_name() -> None:
    trace = made.trace()
    for key in trace._ipython_key_completions_():
        name, layer = key if isinstance(key, tuple) else (key, None)
        array = trace.array(name, layer)
        assert np.array_equal(array.values, trace[key], equal_nan=True), key
        axes = hooks.axes(hooks.full_name(name)) if name not in hooks.SUMMARIES else hooks.axes(name)
        if name not in hooks.SUMMARIES and layer is None and len(axes) < array.ndim:
            axes = ("layer", *axes)
        if name in hooks.SUMMARIES and layer is not None:
            axes = axes[1:]
        assert array.dims == axes, key
        assert array.attrs["n"] == len(trace) and array.attrs["trace"] == trace.id
        for axis, texts in {"pos": "text", "query": "query_text", "key": "key_text"}.items():
            if axis in array.dims:
                assert array[texts].values.tolist() == trace.str_tokens and array[texts].dims == (axis,)
    pattern = trace.array("pattern", -3)
    assert pattern.dims == ("head", "query", "key") and pattern.attrs["layer"] == 0
    assert (pattern.attrs["long_name"], pattern.attrs["units"]) == ("attention", "probability")
    assert trace.array("margin", 1).dims == ("pos",) and trace.array("margin").dims == ("layer", "pos")
    assert trace.array("blocks.1.hook_resid_post").attrs["units"] == "activation"


def test_a_labeled_array_cannot_be_changed_and_refuses_what_the_trace_refuses() -> None:
    trace = made.trace()
    with pytest.raises(ValueError, match="read-only"):
        trace.array("logprob").values[0] = 1
    with pytest.raises(HookNameError, match="Did you mean 'logprob'"):
        trace.array("logprobs")
    with pytest.raises(NotRecorded, match="was not recorded"):
        trace.array("lens_kl")
    with pytest.raises(SelectionError, match="layer"):
        trace.array("resid_post", 3)


@pytest.mark.parametrize(
    ("pieces", "text", "expected"),
    [
        (["My", " name", " is", " Kay", "."], "Kay", [(3, 4)]),  # the occurrence begins inside a token
        (["K", "ay", " K", "ay"], "Kay", [(0, 2), (2, 4)]),
        (["aa", "a", "a"], "aa", [(0, 1), (1, 3)]),  # no overlap
        (["2", "2", "2"], "22", [(0, 2)]),
        (["abcabc"], "abc", [(0, 1), (0, 1)]),  # twice in one token
        (["x", "", "é", "y"], "é", [(1, 3)]),  # a token with the first byte of a character has no text
        (["x", "", "é", "y"], "x", [(0, 1)]),
        (["x", "", "é", "y"], "xé", [(0, 3)]),
        (["Kay"], "kay", []),
        ([], "a", []),
        (["a|b", "|c"], "|", [(0, 1), (1, 2)]),
    ],
)
def test_the_slices_of_an_occurrence_cover_it(pieces: list[str], text: str, expected: list[tuple[int, int]]) -> None:
    assert [(part.start, part.stop) for part in occurrences(pieces, text)] == expected


def test_each_slice_begins_and_ends_with_tokens_of_its_occurrence() -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        pieces = ["".join(rng.choice(["a", "b"], rng.integers(0, 4))) for _ in range(rng.integers(1, 200))]
        text = "".join(rng.choice(["a", "b"], rng.integers(1, 4)))
        ends = np.cumsum([len(piece) for piece in pieces])
        expected = list(re.finditer(text, "".join(pieces)))
        found = occurrences(pieces, text)
        assert len(found) == len(expected)
        for part, match in zip(found, expected):
            first, last = next(i for i in range(part.start, part.stop) if pieces[i]), part.stop - 1
            assert ends[first] - len(pieces[first]) <= match.start() < ends[first]
            assert ends[last] - len(pieces[last]) < match.end() <= ends[last]


def test_a_text_is_found_in_every_turn_and_far_into_a_run() -> None:
    trace = said(*[" w"] * 300, " Kay", *[" w"] * 300, " K", "ay")
    assert trace.find("Kay") == [slice(300, 301), slice(601, 603)]
    with pytest.raises(ArgumentError, match="at least one character"):
        trace.find("")


def test_question_and_answer_are_those_of_the_last_turn() -> None:
    spans = (
        Span(0, 1, 0, 1, "user"),
        Span(1, 2, 1, 2, "assistant", "final"),
        Span(2, 4, 3, 4, "user"),
        Span(4, 6, 4, 6, "assistant", "analysis"),
        Span(6, 8, 6, 7, "assistant", "final"),
    )
    trace = said("q0", "a0", "|", "q1", "t", "t", "a1", "|", spans=spans)
    assert (trace.question, trace.answer) == ("q1", "a1")
    assert (said("a").question, said("a").answer) == ("", "")


def test_completion_in_ipython_offers_the_recorded_names_and_their_layers() -> None:
    pytest.importorskip("IPython")
    from IPython.core.completer import IPCompleter, provisionalcompleter

    trace = made.trace()
    completer = IPCompleter(namespace={"trace": trace}, use_jedi=False)
    with provisionalcompleter():
        names = {each.text for each in completer.completions('trace["lo', 9)}
        layers = {each.text for each in completer.completions('trace["resid_post", ', 20)}
    assert names == {"logits", "logprob"}
    assert layers == {"0", "1", "2"}


def test_a_channel_with_a_typo_is_named() -> None:
    with pytest.raises(ArgumentError, match=r"analysis, commentary, final, got 'finale'\. Did you mean 'final'\?"):
        made.trace().text(channel="finale")
