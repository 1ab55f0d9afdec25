"""The compare view: alignment of any two texts, values and differences over one axis, links between the two runs."""

import re
import time
from itertools import combinations, pairwise
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st

import workbench as wb
from tests.views import made
from tests.views.browser import Tab, needed
from tests.views.whole import HOSTILE, LiveTab, check_inert
from workbench.errors import NotRecorded
from workbench.views.compare_view import aligned
from workbench.views.diff import common
from workbench.views.notebook import snapshot

OTHER = [
    *made.TALK[:2],
    ("assistant", "analysis", made.words("c=b+2, b=a+4, a=5.\nSo b=9, c=11, or c=1.")),
    made.TALK[3],
]
FIRST, SECOND = made.run(), made.run(OTHER, seed=5, record=["lens"])  # with different ids


@given(st.lists(st.sampled_from("abc")), st.lists(st.sampled_from("abcd")))
def test_every_token_is_aligned_once_and_in_order(first: list[str], second: list[str]):
    positions1, positions2 = aligned(first, second)
    assert [i for i in positions1 if i >= 0] == list(range(len(first)))
    assert [j for j in positions2 if j >= 0] == list(range(len(second)))
    assert all(i >= 0 or j >= 0 for i, j in zip(positions1, positions2, strict=True))


@given(st.lists(st.sampled_from("abc")), st.lists(st.sampled_from("abcd")), st.lists(st.sampled_from("xyz")))
def test_a_common_beginning_is_aligned_with_itself(head: list[str], first: list[str], second: list[str]):
    positions1, positions2 = aligned(head + first, head + second)
    assert positions1[: len(head)].tolist() == positions2[: len(head)].tolist() == list(range(len(head)))


def longest(first: list[str], second: list[str]) -> int:
    """The length of the longest common subsequence, by dynamic programming along the diagonals."""
    a, b = (
        np.unique(first + second, return_inverse=True)[1][part] for part in (slice(len(first)), slice(len(first), None))
    )
    before = last = np.zeros(len(a) + 1, "i4")  # by position in first: for the last diagonal i + j, and the one before
    for total in range(2, len(a) + len(b) + 1):
        i = np.arange(max(1, total - len(b)), min(len(a), total - 1) + 1)
        now = np.zeros(len(a) + 1, "i4")
        now[i] = np.where(a[i - 1] == b[total - i - 1], before[i - 1] + 1, np.maximum(last[i - 1], last[i]))
        before, last = last, now
    return int(last[len(a)])


@given(st.lists(st.sampled_from("abc"), max_size=12), st.lists(st.sampled_from("abcd"), max_size=12))
def test_alignment_is_a_longest_common_subsequence(first: list[str], second: list[str]):
    pairs = common(first, second)
    assert all(first[i] == second[j] for i, j in pairs)
    assert all(i < k and j < m for (i, j), (k, m) in pairwise(pairs))
    sizes = range(min(len(first), len(second)), -1, -1)
    assert len(pairs) == next(k for k in sizes if set(combinations(first, k)) & set(combinations(second, k)))


@pytest.mark.parametrize("words", [2, 17, 5000])
@pytest.mark.parametrize("edit", ["one in front", "a tenth changed", "a stretch moved", "unrelated"])
def test_texts_of_five_thousand_tokens_are_aligned_by_an_exact_diff(words: int, edit: str):
    rng = np.random.default_rng(words)
    first = [f"w{number}" for number in rng.integers(0, words, 5000)]
    other = [f"w{number}" for number in rng.integers(0, words, 5000)]
    second = {
        "one in front": ["w0", *first],
        "a tenth changed": [
            b if change else a for a, b, change in zip(first, other, rng.random(5000) < 0.1, strict=True)
        ],
        "a stretch moved": first[1000:2000] + first[:1000] + first[2000:],
        "unrelated": other,
    }[edit]
    began = time.process_time()
    positions1, positions2 = (positions.tolist() for positions in aligned(first, second))
    assert time.process_time() - began < 2  # 0.02 s; a diff that is quadratic takes minutes
    same = sum(i >= 0 and j >= 0 and first[i] == second[j] for i, j in zip(positions1, positions2, strict=True))
    assert [i for i in positions1 if i >= 0] == list(range(len(first)))
    assert [j for j in positions2 if j >= 0] == list(range(len(second)))
    assert same == longest(first, second)
    if edit == "one in front":
        assert same == 5000


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


def test_a_run_compared_with_itself_has_no_differences():
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


def test_lanes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="one number for each of the 98 tokens"):
        wb.views.compare(FIRST, SECOND, ["margin"])
    with pytest.raises(NotRecorded, match="entropy"):
        wb.views.compare(FIRST, made.run(OTHER, lanes=False), ["entropy"])


def test_a_snapshot_shows_the_first_difference():
    text = snapshot(wb.views.compare(FIRST, SECOND))
    assert "first difference" in text
    assert text.count("<img") == 6
    assert "<script" not in snapshot(wb.views.compare(FIRST, made.run(HOSTILE)))


def surprises(trace, last: float) -> xr.DataArray:
    """−26 over the prompt; −1 over what was generated, and `last` at its end."""
    values = np.r_[np.full(trace.prompt_length, -26.0), np.full(len(trace) - trace.prompt_length, -1.0)]
    values[-1] = last
    return xr.DataArray(values, dims="pos", name="own")


def test_the_generated_tokens_of_both_runs_set_the_scale_unless_another_choice_is_made():
    pair = surprises(FIRST, -2.0), surprises(SECOND, -4.0)
    window = (len(FIRST) - 3, len(FIRST) - 1)
    scales = {
        scale: [row.scale for row in wb.views.compare(FIRST, SECOND, [pair], scale=scale, window=window).snapshot()]
        for scale in ("generated", "shown", "run")
    }
    assert {scale: texts[-3:] for scale, texts in scales.items()} == {
        "generated": ["−4 to 0, clipped", "−4 to 0, clipped", "0 to 2"],
        "shown": ["−1 to 0, clipped", "−1 to 0, clipped", "0 to 0.01, clipped"],
        "run": ["−26 to 0", "−26 to 0", "0 to 2"],
    }
    with pytest.raises(ValueError, match="scale must be 'generated', 'shown' or 'run', got 'prompt'"):
        wb.views.compare(FIRST, SECOND, scale="prompt")


@needed
def test_the_menu_changes_the_scale_and_the_python_code_follows(browser, tmp_path: Path):
    view = wb.views.compare(FIRST, SECOND, [(surprises(FIRST, -2.0), surprises(SECOND, -4.0))])
    tab = Tab(browser, view.to_html(tmp_path / "page.html"))
    height = """n => {
      const canvas = document.querySelector(".wb-plot canvas"), ratio = canvas.width / canvas.clientWidth;
      const x = canvas.clientWidth - 8 - 1.5 * (canvas.clientWidth - 158) / n;  // the last token but one
      const pixels = canvas.getContext("2d").getImageData(x * ratio, 20 * ratio, 1, 34 * ratio).data;
      return pixels.filter((v, i) => i % 4 === 3 && v > 128).length / ratio;
    }"""
    tall = tab.page.evaluate(height, len(FIRST))
    assert 8 <= tall <= 9, "on a scale from -4 to 0, a bar of -1 has a quarter of 34 pixels"
    menu = tab.page.get_by_role("combobox", name="which tokens set the scales")
    menu.select_option("run")
    tab.settled()
    assert tab.page.evaluate(height, len(FIRST)) <= 2
    assert 'scale="run"' in tab.python()
    tab.console[:] = [text for text in tab.console if "willReadFrequently" not in text]
    tab.close()


@needed
def test_readout_has_both_values_and_d_goes_to_the_next_difference(browser, tmp_path: Path):
    view = wb.views.compare(FIRST, SECOND)
    tab = LiveTab(browser, view, tmp_path)
    tab.page.locator(".wb").press("End")
    readout = tab.readout()
    at, back = len(FIRST) - 1, len(SECOND) - 1
    assert f"position {back} in second" in readout
    assert f"entropy: {float(FIRST['entropy'][at]):.2g}"[:12] in readout
    tab.page.locator(".wb").press("Home")
    tab.page.locator(".wb").press("d")
    first = next(
        int(i)
        for i, j in zip(view.first_positions, view.second_positions, strict=True)
        if FIRST.str_tokens[i] != SECOND.str_tokens[j]
    )
    assert tab.selected() == {"pos": first}
    tab.page.locator(".wb").press("d")
    assert tab.selected()["pos"] > first
    tab.page.locator(".wb").press("D")
    assert tab.selected() == {"pos": first}
    assert tab.python() == f"wb.views.compare(trace, other, selected={first})"
    assert tab.console == []
    tab.page.close()


@needed
def test_two_keys_in_neighboring_frames_both_take_effect(browser, tmp_path: Path):
    tab = LiveTab(browser, wb.views.compare(FIRST, SECOND), tmp_path)
    tab.page.locator(".wb").press("Home")
    tab.page.locator(".wb").press("d")
    first_difference = tab.selected()
    for frames in range(4):  # between the keys: the pin reaches the other run's views and comes back
        tab.page.locator(".wb").press("End")
        tab.settled()
        tab.page.evaluate(
            """async frames => {
              const press = key => document.querySelector(".wb").dispatchEvent(
                new KeyboardEvent("keydown", {key, bubbles: true}));
              press("Home");
              for (let i = 0; i < frames; i++) await new Promise(requestAnimationFrame);
              press("d");
            }""",
            frames,
        )
        assert tab.selected() == first_difference != {"pos": 0}
    tab.page.close()


@needed
def test_hover_and_pin_mark_the_aligned_token_in_views_of_the_other_run(browser, tmp_path: Path):
    tab = LiveTab(browser, wb.views.compare(FIRST, SECOND), tmp_path)
    other_bus = f"globalThis[Symbol.for('workbench.views.1')].get('{SECOND.id}')"
    tab.page.locator(".wb").press("End")
    tab.settled()
    assert tab.page.evaluate(other_bus + ".state.pin") == len(SECOND) - 1
    tab.page.evaluate(other_bus + ".set({ pin: 3, hover: 4 })")
    tab.settled()
    assert tab.selected() == {"pos": 3}
    assert "position 4 ·" in tab.readout()
    tab.page.evaluate(other_bus + ".set({ hover: -1 })")
    tab.settled()
    assert "position 3 ·" in tab.readout()
    assert tab.console == []
    tab.page.close()


@needed
def test_the_texts_can_be_hovered(browser, tmp_path: Path):
    tab = LiveTab(browser, wb.views.compare(FIRST, SECOND, selected=0), tmp_path)
    box = tab.page.locator(".wb-plot >> nth=-1").bounding_box()
    tab.page.mouse.move(box["x"] + 150 + 66 * 2.5, box["y"] + 26 + 42 + 10)
    per = int((box["width"] - 158) // 66)
    assert f"position {per + 2} ·" in tab.readout()
    tab.page.close()


def rows(tab: Tab, folder: Path) -> tuple[list[str], str]:
    """The texts of the drawing, and its text about the rows that are not shown."""
    with tab.page.expect_download() as download:
        tab.page.get_by_role("button", name="save this view as SVG").click()
    download.value.save_as(folder / "saved.svg")
    drawn = re.findall(r"<text [^>]*>([^<]*)</text>", (folder / "saved.svg").read_text("utf-8"))
    return drawn, next((text for text in drawn if text.startswith("… ")), "")


@needed
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_rows_of_five_thousand_tokens_can_be_paged_and_hidden_rows_are_counted(browser, tmp_path: Path, scheme):
    thoughts = [word for number in range(1250) for word in (" So", " c", "=", f"{number}")]
    other = [*thoughts[:4], " Wait", *thoughts[4:2600], *thoughts[2604:]]
    first, second = (made.run([("user", None, ["Go."]), ("assistant", "analysis", text)]) for text in (thoughts, other))
    view = wb.views.compare(first, second)
    assert view._counts() == (len(first) - 4, 4, 1)
    tab = LiveTab(browser, view, tmp_path, color_scheme=scheme)
    per = int((tab.page.locator(".wb-plot >> nth=-1").bounding_box()["width"] - 158) // 66)
    total = len(view.first_positions)
    drawn, hidden_rows = rows(tab, tmp_path)
    begin = next(c for c in range(total) if view.first_positions[c] < 0) - 8
    below = -(-(total - begin - 8 * per) // per)
    assert hidden_rows == f"… 1 more row above, {below} more rows below"
    assert " Wait" in drawn
    tab.shot(f"compare-5000-{scheme}")
    assert f"{1249}" not in drawn
    for key in ("PageDown", "PageDown"):
        tab.page.locator(".wb").press(key)
    assert rows(tab, tmp_path)[1] == f"… 17 more rows above, {below - 16} more rows below"
    for _ in range(below // 8):
        tab.page.get_by_role("button", name="later rows of the texts").click()
    drawn, hidden_rows = rows(tab, tmp_path)
    assert hidden_rows == f"… {-(-(total - 8 * per) // per)} more rows above"
    assert f"{1249}" in drawn
    tab.page.locator(".wb").press("PageUp")
    assert "below" in rows(tab, tmp_path)[1]
    tab.page.locator(".wb").press("Home")  # the rows follow the pinned token
    tab.page.locator(".wb").press("ArrowRight")
    assert "above" not in rows(tab, tmp_path)[1]
    tab.page.locator(".wb").press("PageDown")  # and can be paged away from it
    assert "8 more rows above" in rows(tab, tmp_path)[1]
    assert [text for text in tab.console if "willReadFrequently" not in text] == []
    tab.page.close()


@needed
def test_short_texts_are_shown_completely(browser, tmp_path: Path):
    tab = LiveTab(browser, wb.views.compare(FIRST, SECOND), tmp_path)
    drawn, hidden_rows = rows(tab, tmp_path)
    assert hidden_rows == ""
    assert [text.strip() for text in drawn].count("So") == sum(
        t.strip() == "So" for run in (FIRST, SECOND) for t in run.str_tokens
    )
    assert tab.page.get_by_role("button", name="later rows of the texts").count() == 0
    tab.page.close()


@needed
@pytest.mark.parametrize(("scheme", "width"), [("light", 1280), ("dark", 1280), ("light", 420)])
def test_it_fits_the_window_in_light_and_dark(browser, tmp_path: Path, scheme, width: int):
    path = wb.views.compare(FIRST, SECOND, selected=60).to_html(tmp_path / "page.html")
    tab = Tab(browser, path, color_scheme=scheme, width=width)
    assert tab.page.evaluate("document.documentElement.scrollWidth") <= width
    tab.shot(f"compare-{scheme}-{width}")
    tab.close()


@needed
def test_hostile_tokens_and_names_are_visible_and_inert(browser, tmp_path: Path):
    view = wb.views.compare(made.run(HOSTILE), FIRST, names=("<img src=x>", "\u202eb"))
    tab = Tab(browser, view.to_html(tmp_path / "page.html"))
    texts = check_inert(tab, browser, tmp_path)
    assert "<img src=x>" in texts
    assert "⟨U+202E⟩b" in texts
    tab.close()


@pytest.mark.parametrize(
    ("first", "second", "names"),
    [
        ({}, {}, ("first", "second")),
        ({}, {"system": "Reasoning: low"}, ("effort high", "effort low")),
        ({}, {"user": "Why?"}, ("Mod 10: a=3, b=a+4,…", "Why?")),
        ({"user": "Why? " * 9 + "a"}, {"user": "Why? " * 9 + "b"}, ("first", "second")),
    ],
)
def test_the_names_of_the_runs_say_what_differs(first: dict, second: dict, names: tuple[str, str]):
    def run(changed: dict[str, str]):
        return made.run(
            [
                (role, channel, made.words(changed[role]) if role in changed else texts)
                for role, channel, texts in made.TALK
            ]
        )

    assert wb.views.compare(run(first), run(second)).names == names
