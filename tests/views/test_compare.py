"""Two runs side by side: aligned whatever they say, numbers and differences over one axis, each linked to the other."""

from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st

import workbench as wb
from tests.views import made
from tests.views.browser import Seen, needed
from tests.views.whole import HOSTILE, Alive, inert
from workbench.errors import NotRecorded
from workbench.views.live import snapshot
from workbench.views.pairing import aligned

OTHER = [
    *made.TALK[:2],
    ("assistant", "analysis", made.words("c=b+2, b=a+4, a=5.\nSo b=9, c=11, or c=1.")),
    made.TALK[3],
]
FIRST, SECOND = made.run(), made.run(OTHER, seed=5, record=["lens"])  # another id


@given(st.lists(st.sampled_from("abc")), st.lists(st.sampled_from("abcd")))
def test_every_token_stands_once_and_in_order(first: list[str], second: list[str]):
    left, right = aligned(first, second)
    assert [i for i in left if i >= 0] == list(range(len(first)))
    assert [j for j in right if j >= 0] == list(range(len(second)))
    assert all(i >= 0 or j >= 0 for i, j in zip(left, right, strict=True))


@given(st.lists(st.sampled_from("abc")), st.lists(st.sampled_from("abcd")), st.lists(st.sampled_from("xyz")))
def test_what_both_begin_with_stands_above_itself(head: list[str], first: list[str], second: list[str]):
    left, right = aligned(head + first, head + second)
    assert left[: len(head)].tolist() == right[: len(head)].tolist() == list(range(len(head)))


def test_counts_and_differences_are_those_of_the_runs():
    view = wb.views.compare(FIRST, SECOND)
    same, first, second = view._counts()
    assert (same + first, same + second) == (len(FIRST), len(SECOND))
    gap = view._gap(view.lanes[1])
    assert np.isfinite(gap).sum() == same
    at = len(FIRST) - 2  # in the last message, which both have
    back = len(SECOND) - 2
    assert gap[at] == SECOND["entropy"][back] - FIRST["entropy"][at]
    assert view.summary().startswith(f"{same} tokens in both")


def test_a_run_beside_itself_differs_nowhere():
    view = wb.views.compare(FIRST, FIRST)
    assert view._counts() == (len(FIRST), 0, 0)
    assert np.nanmax(np.abs(view._gap(view.lanes[0]))) == 0


def test_lanes_may_be_pairs_of_your_own_arrays():
    pair = tuple(xr.DataArray(np.arange(len(t)), dims="pos", attrs={"long_name": "mine"}) for t in (FIRST, SECOND))
    view = wb.views.compare(FIRST, SECOND, [pair], names=("before", "after"))  # pyright: ignore[reportArgumentType]
    header, arrays = view.payload()
    assert header["lanes"][0]["label"] == "mine"
    assert header["names"] == ["before", "after"]
    assert (arrays["b:0"] == np.arange(len(SECOND))).all()


def test_what_does_not_fit_is_told():
    with pytest.raises(ValueError, match="one number for each of 98 tokens"):
        wb.views.compare(FIRST, SECOND, ["margin"])
    with pytest.raises(NotRecorded, match="entropy"):
        wb.views.compare(FIRST, made.run(OTHER, lanes=False), ["entropy"])


def test_a_snapshot_says_where_they_part():
    text = snapshot(wb.views.compare(FIRST, SECOND))
    assert "where they part first" in text
    assert text.count("<img") == 6
    assert "<script" not in snapshot(wb.views.compare(FIRST, made.run(HOSTILE)))


@needed
def test_a_token_says_both_numbers_and_d_goes_to_the_next_difference(browser, tmp_path: Path):
    view = wb.views.compare(FIRST, SECOND)
    seen = Alive(browser, view, tmp_path)
    seen.page.locator(".wb").press("End")
    said = seen.said()
    at, back = len(FIRST) - 1, len(SECOND) - 1
    assert f"position {back} in second" in said
    assert f"entropy: {float(FIRST['entropy'][at]):.2g}"[:12] in said
    seen.page.locator(".wb").press("Home")
    seen.page.locator(".wb").press("d")
    first = next(int(i) for i, j in zip(view.left, view.right, strict=True) if FIRST.pieces[i] != SECOND.pieces[j])
    assert seen.picked() == {"pos": first}
    seen.page.locator(".wb").press("d")
    assert seen.picked()["pos"] > first
    seen.page.locator(".wb").press("D")
    assert seen.picked() == {"pos": first}
    seen.page.get_by_role("button", name="the line that makes this view").click()
    assert seen.page.locator(".wb-code").input_value() == f"wb.views.compare(trace, other, picked={first})"
    assert seen.complaints == []
    seen.page.close()


@needed
def test_what_is_pointed_at_is_pointed_at_in_the_views_of_the_other_run(browser, tmp_path: Path):
    seen = Alive(browser, wb.views.compare(FIRST, SECOND), tmp_path)
    there = f"globalThis[Symbol.for('workbench.views.1')].get('{SECOND.id}')"
    seen.page.locator(".wb").press("End")
    seen.settled()
    assert seen.page.evaluate(there + ".state.lock") == len(SECOND) - 1
    seen.page.evaluate(there + ".set({ lock: 3, hover: 4 })")
    seen.settled()
    assert seen.picked() == {"pos": 3}
    assert "position 4 ·" in seen.said()
    seen.page.evaluate(there + ".set({ hover: -1 })")
    seen.settled()
    assert "position 3 ·" in seen.said()
    assert seen.complaints == []
    seen.page.close()


@needed
def test_the_texts_can_be_hovered(browser, tmp_path: Path):
    seen = Alive(browser, wb.views.compare(FIRST, SECOND, picked=0), tmp_path)
    box = seen.page.locator(".wb-plot >> nth=-1").bounding_box()
    seen.page.mouse.move(box["x"] + 150 + 66 * 2.5, box["y"] + 26 + 42 + 10)
    per = int((box["width"] - 158) // 66)
    assert f"position {per + 2} ·" in seen.said()
    seen.page.close()


@needed
@pytest.mark.parametrize(("scheme", "width"), [("light", 1280), ("dark", 1280), ("light", 420)])
def test_it_fits_the_window_in_light_and_dark(browser, tmp_path: Path, scheme, width: int):
    path = wb.views.compare(FIRST, SECOND, picked=60).to_html(tmp_path / "page.html")
    seen = Seen(browser, path, color_scheme=scheme, width=width)
    assert seen.page.evaluate("document.documentElement.scrollWidth") <= width
    seen.shot(f"compare-{scheme}-{width}")
    seen.close()


@needed
def test_hostile_tokens_and_names_are_seen_and_inert(browser, tmp_path: Path):
    view = wb.views.compare(made.run(HOSTILE), FIRST, names=("<img src=x>", "\u202eb"))
    seen = Seen(browser, view.to_html(tmp_path / "page.html"))
    texts = inert(seen, browser, tmp_path)
    assert "<img src=x>" in texts
    assert "⟨U+202E⟩b" in texts
    seen.close()
