"""Views in Python, without a browser: payloads, snapshots and errors."""

import json
import re
import struct
import zlib
from types import SimpleNamespace

import numpy as np
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import workbench as wb
from tests.views import made
from workbench.errors import HookNameError, NotRecorded, SelectionError
from workbench.text import range_text
from workbench.traces import Trace
from workbench.views import snapshot_html
from workbench.views.notebook import _reply, snapshot
from workbench.views.payload import KINDS, packed, unpacked
from workbench.views.script import script


@given(
    header=st.dictionaries(st.text().filter(lambda k: k != "arrays"), st.none() | st.text() | st.integers()),
    arrays=st.dictionaries(
        st.text(),
        st.sampled_from(KINDS).flatmap(lambda kind: hnp.arrays(kind, hnp.array_shapes(min_dims=0, min_side=0))),
    ),
)
def test_unpacking_a_packed_payload_returns_the_same_values(header, arrays):
    data = packed(header, arrays)
    assert len(data) % 8 == 0
    unpacked_header, unpacked_arrays = unpacked(data)
    assert unpacked_header == header
    assert list(unpacked_arrays) == list(arrays)
    for name, array in arrays.items():
        assert unpacked_arrays[name].dtype == array.dtype
        assert np.array_equal(unpacked_arrays[name], array, equal_nan=array.dtype.kind == "f")


def test_a_payload_with_values_that_javascript_cannot_represent_is_refused():
    with pytest.raises(TypeError, match="int64"):
        packed({}, {"ids": np.arange(3)})
    with pytest.raises(ValueError):
        packed({"x": float("nan")}, {})


def test_selected_can_be_set_in_python():
    view = wb.views.tokens(made.run(), selected=4)
    assert view.selected == {"pos": 4}
    view.selected = 9
    assert view.selected == {"pos": 9}
    view.selected = {"pos": 3, "layer": 2}
    assert view.payload()[0]["selected"] == {"pos": 3, "layer": 2}
    view.selected = None
    assert view.selected is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"window": (5, 5)}, "first, stop"),
        ({"window": (0, 99)}, "first < stop <= 98"),
        ({"window": (3,)}, "first, stop"),
        (
            {"lanes": ["entropie"]},
            r"lane 'entropie' does not exist\. Did you mean 'entropy'\? Use transcript, forced_answer",
        ),
        (
            {"lanes": [xr.DataArray(np.zeros(5), dims="pos")]},
            r"98 positions, as from trace\.array\('entropy'\); got \{'pos': 5\}",
        ),
        ({"lanes": [3]}, "got int"),
        ({"forced_answer": xr.DataArray(np.zeros(5), dims="pos")}, "wb.reasoning.forced_answer"),
        ({"drift": xr.DataArray(np.zeros((4, 2, 2)), dims=("layer", "step", "key_step"))}, "routing_drift"),
        ({"arcs": xr.DataArray(np.zeros((2, 2)), dims=("step", "key_step"))}, "this trace has 7 steps"),
    ],
)
def test_invalid_arguments_raise_errors_that_say_what_is_allowed(arguments, message):
    with pytest.raises(ValueError, match=message):
        wb.views.score_sheet(made.run(), **arguments)


@pytest.mark.parametrize("position", [98, -1])
def test_a_position_outside_the_trace_cannot_be_selected(position):
    with pytest.raises(SelectionError, match=rf"^selected must be between 0 and 97, got {position}\.$"):
        wb.views.score_sheet(made.run(), selected=position)


def test_values_must_be_one_for_each_token():
    with pytest.raises(ValueError, match="98 tokens"):
        wb.views.tokens(made.run(), np.zeros(97))


def test_lanes_are_in_the_order_of_the_argument_including_own_arrays():
    trace = made.run()
    own = xr.DataArray(np.arange(98.0), dims="pos", attrs={"long_name": "my own", "units": "apples"})
    by_head = xr.DataArray(np.zeros((3, 98)), dims=("head", "pos"), name="heads")
    sheet = wb.views.score_sheet(trace, ["sink", own, "logprob", by_head])
    assert sheet.shown == ("sink", "my own", "logprob", "heads")
    header, arrays = sheet.payload()
    [own_lane] = [lane for lane in header["lanes"] if lane["name"] == "my own"]
    assert (own_lane["kind"], own_lane["unit"]) == ("bars", "apples")
    assert np.array_equal(arrays["lane:my own"], own.values)
    assert sheet.lanes["heads"].names == ("head 0", "head 1", "head 2")


def test_views_take_recorded_names_and_label_them():
    trace = made.run()
    header, arrays = wb.views.tokens(trace, "entropy").payload()
    assert (header["scale"]["label"], header["scale"]["unit"]) == ("entropy of the next token", "nats")
    assert header["args"] == ", 'entropy'" and np.array_equal(arrays["values"], trace["entropy"], equal_nan=True)
    with pytest.raises(ValueError, match=r"one number for each of the 98 tokens.*trace\.array\('margin'\)"):
        wb.views.tokens(trace, "margin")
    with pytest.raises(HookNameError, match="Did you mean 'entropy'"):
        wb.views.tokens(trace, "entropie")
    assert wb.views.score_sheet(trace, "entropy").shown == ("entropy",)
    sheet = wb.views.score_sheet(trace, ["entropy", "resid_norm", trace.array("margin")])
    assert sheet.shown == ("entropy", "resid_norm", "margin")
    assert (sheet.lanes["resid_norm"].kind, sheet.lanes["resid_norm"].label) == ("heat", "L2 norm of resid_post")
    with pytest.raises(NotRecorded, match="attn_out_norm"):
        wb.views.score_sheet(trace, "attn_out_norm")
    assert wb.views.score_sheet(trace, trace.array("entropy")).shown == ("entropy",)
    one = wb.views.compare(trace, made.run(seed=1), "entropy")
    assert [(lane.label, lane.unit) for lane in one.lanes] == [("entropy", "nats")]


def test_changing_an_array_later_does_not_change_the_views():
    values = np.zeros(98)
    own = xr.DataArray(values, dims="pos", name="own")
    views = wb.views.tokens(made.run(), values), wb.views.score_sheet(made.run(), [own])
    values[:] = 7
    assert views[0].payload()[1]["values"].max() == 0
    assert views[1].payload()[1]["lane:own"].max() == 0


def test_the_sink_lane_is_the_mean_over_heads_and_the_depth_lane_is_prediction_depth():
    trace = made.run()
    sheet = wb.views.score_sheet(trace)

    def lane(name: str) -> np.ndarray:
        values = sheet.lanes[name].values
        assert values is not None
        return values

    assert np.allclose(lane("sink"), np.stack([trace["sink", layer].mean(0) for layer in range(4)]))
    assert np.array_equal(lane("depth"), wb.lens.prediction_depth(trace).values)
    assert np.allclose(lane("norm"), np.log10(trace["resid_norm"]))


def test_forced_answer_is_drawn_from_the_end_of_a_step_to_the_end_of_the_next():
    trace = made.run()
    ends = [step.stop for step in wb.steps(trace)]
    curve = xr.DataArray(
        [[0.1], [0.4], [0.9]],
        {"step": [0, 1, 2], "answer": ["9"], "pos": ("step", [20, *ends[:2]])},
        ("step", "answer"),
    )
    values = wb.views.score_sheet(trace, forced_answer=curve).lanes["forced_answer"].values
    assert values is not None
    assert np.isnan(values[:20]).all()
    assert np.allclose(values[20 : ends[0]], 0.1)
    assert np.allclose(values[ends[0] : ends[1]], 0.4)
    assert np.allclose(values[ends[1] :], 0.9)


def test_drift_is_drawn_over_the_step_compared_with_the_previous_one():
    trace = made.run()
    steps = wb.steps(trace)
    drift = np.arange(4 * 7 * 7, dtype=float).reshape(4, 7, 7)
    lane = wb.views.score_sheet(trace, drift=xr.DataArray(drift, dims=("layer", "step", "key_step"))).lanes["drift"]
    assert lane.values is not None
    for number in range(1, 7):
        stretch = lane.values[:, steps[number].start : steps[number].stop]
        assert np.array_equal(stretch, np.repeat(drift[:, number, number - 1, None], stretch.shape[1], 1))
    assert np.isnan(lane.values[:, : steps[1].start]).all()


def test_missing_lanes_say_how_to_get_them():
    lanes = wb.views.score_sheet(made.run(lanes=False)).lanes
    assert all(lane.values is None for lane in lanes.values())
    assert lanes["depth"].missing == 'not in this trace; record="lens" records it'
    assert lanes["forced_answer"].missing.endswith(
        "score_sheet(trace, forced_answer=wb.reasoning.forced_answer(model, trace))"
    )
    assert '"entropy"' in lanes["entropy"].missing


def test_lanes_without_a_finite_number_are_omitted():
    trace = made.run()
    odd = made.arrays(trace.tokens, 4, 0) | {
        "logprob": np.full(len(trace), np.nan, "f4"),
        "resid_norm": np.full((4, len(trace)), np.inf, "f4"),
    }
    del odd["entropy"], odd["margin"], odd["lens_ids"]
    sheet = wb.views.score_sheet(Trace(made.run(lanes=False).manifest, odd))
    assert [name for name in ("entropy", "margin", "depth") if sheet.lanes[name].values is not None] == []
    unpacked(sheet.reply("open", {}))
    assert "nan" not in snapshot(sheet)


@pytest.mark.parametrize("count", [0, 1, 2])
def test_a_trace_of_up_to_two_tokens_has_views(count: int):
    trace = made.run(
        [], tokens=[5] * count, str_tokens=["x"] * count, prompt_length=count, generation=None, lanes=False
    )
    for view in (wb.views.score_sheet(trace), wb.views.tokens(trace)):
        assert len(unpacked(view.reply("open", {}))[1]["token_text_ids"]) == count
        assert "data-wb-still" in snapshot(view)


def test_the_payload_of_four_thousand_tokens_is_below_seventy_kilobytes():
    thoughts = made.words("So we add 12 and 34, which gives 46. Wait, check that again. ") * 300
    trace = made.run([("assistant", "analysis", thoughts[:4_090])], layers=24)
    assert len(trace) == 4_096
    assert len(wb.views.tokens(trace).reply("open", {})) < 70_000


def test_a_failing_query_is_answered_with_its_error():
    view = wb.views.tokens(made.run())
    head, buffers = _reply(view, {"id": "7", "kind": "tile", "request": {}})
    assert head == {"id": "7", "error": "SelectionError: this view does not answer queries of kind 'tile'"}
    assert buffers == []
    head, [data] = _reply(view, {"id": "8", "kind": "open"})
    assert head == {"id": "8"}
    assert unpacked(data)[0]["view"] == "tokens"
    assert "error" in _reply(view, {})[0]


def test_without_anywidget_a_view_is_its_snapshot(monkeypatch: pytest.MonkeyPatch):
    shown = []
    monkeypatch.setattr("workbench.views.notebook._class", lambda: (_ for _ in ()).throw(ImportError("anywidget")))
    monkeypatch.setattr("IPython.get_ipython", lambda: SimpleNamespace(kernel=True))
    monkeypatch.setattr("IPython.display.display", lambda data, **_: shown.append(data))
    wb.views.tokens(made.run())._ipython_display_()
    [only] = shown
    assert "pip install gpt-oss-workbench[lab]" in only["text/html"]
    assert "display: none" not in only["text/html"]


def test_outside_of_jupyter_ipython_falls_back_to_repr():
    for shown in (made.run(), wb.views.tokens(made.run())):
        with pytest.raises(NotImplementedError):  # IPython then prints the repr
            shown._ipython_display_()


def test_the_widget_state_contains_its_script_and_no_trace_data():
    pytest.importorskip("anywidget")
    from workbench.views.notebook import loader, widget

    view = wb.views.tokens(made.run())
    live = widget(view)
    assert widget(view) is live
    state = live.get_state()
    text = str({key: value for key, value in state.items() if key not in ("_esm", "_css")})
    assert len(text) < 2000
    assert state["_esm"] == loader(view.module) and len(state["_esm"]) < 1500
    header, [sent] = _reply(view, {"id": "1", "kind": "script"})
    assert header == {"id": "1"} and sent.decode().startswith(script(view.module))
    live.close()


@pytest.mark.parametrize(
    "message", [None, [1], "open", {"id": float("nan")}, {"id": 10**5000}, {"kind": {}, "request": 3}]
)
def test_any_message_is_answered(message):
    header, _ = _reply(wb.views.tokens(made.run()), message)
    assert "error" in json.loads(json.dumps(header, allow_nan=False)) and header["id"] is None


def test_a_wrong_place_from_the_browser_changes_nothing():
    pytest.importorskip("anywidget")
    from workbench.views.notebook import widget

    view = wb.views.tokens(made.run(), selected=7)
    live = widget(view)
    for wrong in ({"pos": 10**9}, {"pos": float("nan")}, {"token": 1}, "pos", [1]):
        live.set_state({"selected": wrong})
        assert view.selected == {"pos": 7}
    live.set_state({"selected": {"pos": 8, "layer": 1}})
    assert view.selected == {"pos": 8, "layer": 1}
    live.close()


@pytest.mark.parametrize("wrong", [{"pos": 10**9}, {"token": 1}, "pos", 0.5, {"layer": -1}])
def test_a_wrong_place_is_refused(wrong):
    view = wb.views.tokens(made.run())
    with pytest.raises(wb.errors.WorkbenchError):
        view.selected = wrong
    assert view.selected is None


@pytest.mark.parametrize("window", [5, (3, 3), (0.5, 3), (float("nan"), 4), (0, 10**9), "ab"])
def test_a_wrong_window_is_refused(window):
    with pytest.raises(wb.errors.ArgumentError, match="window must be"):
        wb.views.tokens(made.run(), window=window)


# Snapshots.


def test_a_snapshot_keeps_formulas_and_white_space_of_a_text():
    text = "It costs $5 and $7: \\(x\\)\n    indented  twice"
    snapshot = wb.views.score_sheet(made.run([("user", None, [text]), ("$a$ $b$", None, ["x"])]))._repr_mimebundle_()
    outside = re.sub(r"<(pre|code)\b.*?</\1>", "", snapshot["text/html"], flags=re.DOTALL)
    assert "It costs $5 and $7: \\(x\\)↵     indented  twice</pre>" in snapshot["text/html"]
    assert "<code>$a$ $b$</code>" in snapshot["text/html"]
    assert "$" not in outside and "\\" not in outside


def pixels(data: bytes) -> np.ndarray:
    """The cells of a palette PNG."""
    width, height = struct.unpack(">II", data[16:24])
    body, at = b"", 8
    while at < len(data):
        size, kind = struct.unpack(">I4s", data[at : at + 8])
        assert zlib.crc32(data[at + 4 : at + 8 + size]) == struct.unpack(">I", data[at + 8 + size : at + 12 + size])[0]
        body += data[at + 8 : at + 8 + size] if kind == b"IDAT" else b""
        at += 12 + size
    return np.frombuffer(zlib.decompress(body), "u1").reshape(height, width + 1)[:, 1:]


def test_downsampling_keeps_maxima_and_minima():
    values = np.random.default_rng(0).normal(size=(3, 5000))
    pooled = snapshot_html.columns(values, "max", 700)
    assert pooled.shape == (3, 700)
    assert np.array_equal(pooled.max(1), values.max(1))
    assert np.array_equal(snapshot_html.columns(values, "min", 700).min(1), values.min(1))
    few = np.arange(10.0)
    assert snapshot_html.columns(few, "max", 10) is few


def test_a_bar_is_as_high_as_its_value():
    drawn = pixels(snapshot_html.bars(np.array([0.0, 0.5, 1.0, np.nan]), "max", 0.0, 1.0, height=10))
    assert drawn.shape == (10, snapshot_html.WIDTH)
    assert drawn[:, :: snapshot_html.WIDTH // 4].sum(0).tolist() == [0, 5, 10, 0]
    hanging = pixels(snapshot_html.bars(np.array([0.0, -0.5, -1.0]), "min", -1.0, 0.0, height=10))
    assert hanging[0, :: snapshot_html.WIDTH // 3].tolist() == [0, 1, 1]
    assert hanging.sum(0)[:: snapshot_html.WIDTH // 3].tolist() == [0, 5, 10]


def test_a_heat_map_leaves_only_nan_cells_transparent():
    values = np.random.default_rng(0).random((4, 50))
    values[1, 7] = np.nan
    drawn = pixels(snapshot_html.heat(values, "max", 0.0, 1.0, height=4))
    first = [at * snapshot_html.WIDTH // 50 + 1 for at in range(50)]
    assert np.argwhere(drawn[:, first] == 0).tolist() == [[2, 7]]  # row 0 is at the bottom
    order = np.argsort(values[0])
    assert (np.diff(drawn[3, first][order].astype(int)) >= 0).all()


def test_a_cut_text_ends_with_an_ellipsis():
    assert [snapshot_html.cut("abc", length) for length in (2, 3)] == ["ab…", "abc"]


def test_the_generated_tokens_set_the_scale_of_a_lane_unless_another_choice_is_made():
    trace = made.run()
    surprises = np.r_[np.full(trace.prompt_length, -26.0), np.linspace(-3, 0, len(trace) - trace.prompt_length)]
    own = xr.DataArray(surprises, dims="pos", name="own")
    window = (len(trace) - 2, len(trace))
    scales = {
        scale: wb.views.score_sheet(trace, [own], scale=scale, window=window).snapshot()[-1].scale
        for scale in ("generated", "shown", "run")
    }
    assert scales == {
        "generated": "−3 to 0, clipped",
        "shown": f"{range_text(surprises[-2], 0)}, clipped",
        "run": "−26 to 0",
    }
    fixed = wb.views.score_sheet(trace, ["depth"]).lanes["depth"]
    assert (fixed.low, fixed.high) == (0.0, 3.0), "a lane with fixed ends keeps them"
    only_prompt = made.run(made.TALK[:2])
    assert only_prompt.prompt_length == len(only_prompt)
    own = xr.DataArray(np.linspace(-26, 0, len(only_prompt)), dims="pos", name="own")
    assert wb.views.score_sheet(only_prompt, [own]).snapshot()[-1].scale == "−26 to 0"
    with pytest.raises(ValueError, match="scale must be 'generated', 'shown' or 'run', got 'prompt'"):
        wb.views.score_sheet(trace, scale="prompt")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -3e38])
def test_levels_of_numbers_that_are_not_finite_are_computed_without_a_warning(value):
    from workbench.views.heads_view import _levels

    with np.errstate(all="raise"):
        assert _levels(np.array([[0.0, value, 1.0]]))[0, [0, 2]].tolist() == [0, 255]
