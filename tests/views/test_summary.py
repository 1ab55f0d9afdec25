"""The summary of a store: its columns and lanes are those of the traces, also sorted, filtered, at the end of 2,000."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import workbench as wb
from tests.stores.runs import chat
from tests.views import made
from tests.views.browser import Tab, needed
from tests.views.whole import LiveTab
from workbench.errors import ArgumentError, ArgumentTypeError, SelectionError
from workbench.views.notebook import bundle, snapshot
from workbench.views.summary_view import BINS, LANES, pooled


@pytest.fixture
def store(tmp_path: Path) -> wb.Store:
    """Three chats, and a run with every lane."""
    store = wb.Store(tmp_path / "runs")
    for number in range(3):
        store.add(chat(number, effort=["low", "high"][number % 2], question=f"What is {number}?"))
    store.add(made.run())
    return store


def column(view, name: str) -> list:
    header, arrays = view.payload()
    [place] = [i for i, each in enumerate(header["columns"]) if each["name"] == name]
    values = arrays[f"column:{place}"]
    texts = header["columns"][place].get("texts")
    return values.tolist() if texts is None else [texts[i] for i in values]


def test_the_columns_are_those_of_the_table(store: wb.Store):
    table = store.find()
    view = wb.views.summary(store, table)
    assert view.ids == table["id"].tolist() and len(view.ids) == 4
    assert column(view, "question") == table["question"].tolist()
    assert column(view, "effort") == table["effort"].tolist()
    assert column(view, "n_generated") == table["n_generated"].tolist()
    assert column(view, "verified") == ["yes" if value else "no" for value in table["verified"]]
    names = [each["name"] for each in view.payload()[0]["columns"]]
    assert "edits" not in names and "model" not in names  # the same in all runs


def test_scores_have_a_column(store: wb.Store):
    for trace_id in list(store)[:2]:
        store.score(trace_id, "correct", 0.5)
    view = wb.views.summary(store, store.find(score={"correct": (None, None)}))
    assert column(view, "score.correct") == [0.5, 0.5]


def test_a_run_is_selected_by_its_row_or_its_id(store: wb.Store):
    view = wb.views.summary(store, selected=list(store.find()["id"])[2])
    assert view.selected == {"pos": 2} and view.selected_trace is not None and view.selected_trace.id == view.ids[2]
    view.selected = 1
    assert view.selected == {"pos": 1}
    view.selected = None
    assert view.selected_trace is None and view.selected_range is None
    for wrong, error in ((4, SelectionError), ("ffff", ArgumentError), ({"layer": 1}, ArgumentError)):
        with pytest.raises(error):
            view.selected = wrong  # type: ignore[assignment]
    with pytest.raises(ArgumentTypeError):
        view.selected_range = slice(0, 2)


def test_what_is_no_table_of_runs_is_refused(store: wb.Store):
    for wrong in ("id", [1], store.find().drop(columns="id")):
        with pytest.raises(ArgumentTypeError, match=r"must be a table of store\.find"):
            wb.views.summary(store, wrong)  # type: ignore[arg-type]
    with pytest.raises(ArgumentTypeError, match="needs a Store"):
        wb.views.summary("runs")  # type: ignore[arg-type]
    table = store.find()
    with pytest.raises(ArgumentError, match="at most 20,000 runs, got 20,004"):
        wb.views.summary(store, table.loc[table.index.repeat(5001)])


@given(st.lists(st.floats(-9, 4) | st.just(float("nan")), max_size=400), st.sampled_from(list(LANES)))
def test_a_lane_has_the_extreme_of_each_column(values: list[float], name: str):
    _, low, high, keep = LANES[name]
    levels = pooled(np.array(values), low, high, keep)
    assert levels.shape == (BINS,) and levels.dtype == np.uint8
    n = len(values)
    for column in range(BINS):
        here = values[column * n // BINS : max(column * n // BINS + 1, (column + 1) * n // BINS)] if n else []
        numbers = [value for value in here if value == value]
        if not numbers:
            assert levels[column] == 0
            continue
        value = min(numbers) if keep == "min" else max(numbers)
        share = (min(max(value, low), high) - low) / (high - low)
        assert abs((int(levels[column]) - 1) / 254 - share) <= 0.5 / 254 + 1e-9


def test_lanes_and_score_sheets_are_sent_for_rows_that_there_are(store: wb.Store):
    view = wb.views.summary(store)
    row = view.ids.index(made.run().id)
    _, arrays = view.query("lanes", {"rows": [row, 0]})
    for lane, (name, (_, low, high, keep)) in enumerate(LANES.items()):
        assert (arrays["lanes"][0, lane] == pooled(made.run()[name], low, high, keep)).all()
    assert arrays["lanes"][1, 0].any() and not arrays["lanes"][1, 1].any()  # it has no entropy
    header, _ = view.query("sheet", {"row": row})
    assert header["view"] == "score_sheet" and header["trace"] == made.run().id
    for request in ({"rows": [4]}, {"rows": []}, {"rows": "0"}, {}, {"rows": [0] * 201}, {"rows": [0.5]}):
        with pytest.raises((ArgumentError, SelectionError)):
            view.query("lanes", request)
    for request in ({"row": -1}, {"row": 4}, {}, {"row": "0"}):
        with pytest.raises((ArgumentError, SelectionError)):
            view.query("sheet", request)
    with pytest.raises(SelectionError):
        view.query("other", {})


def test_a_trace_that_is_gone_keeps_its_row_without_lanes(store: wb.Store):
    view = wb.views.summary(store)
    (store.path_for(view.ids[0]) / "manifest.json").write_text("{}")
    assert not view.query("lanes", {"rows": [0]})[1]["lanes"].any()


def test_a_store_shows_itself_as_a_table(store: wb.Store):
    text = bundle(wb.views.summary(store))["text/html"]
    assert "What is 2?" in text and store._repr_mimebundle_()["text/html"].count("What is 2?") == 1
    assert "4 in" in snapshot(wb.views.summary(store))


HOSTILE = "<img src=x onerror=alert(1)>\u202e</script>\x1b\u200b"


def many(store: wb.Store, n: int):
    """A table of n runs, of which the last ones are in the store."""
    import pandas as pd

    table = store.find()
    copies = pd.concat([table.iloc[[0]]] * (n - len(table)), ignore_index=True)
    rng = np.random.default_rng(0)
    copies["id"] = [rng.bytes(16).hex() for _ in range(len(copies))]
    copies["question"] = [f"What is {number * 7919 % n}?" for number in range(len(copies))]
    copies["effort"] = [["low", "high"][number % 2] for number in range(len(copies))]
    copies["n_generated"] = pd.array(rng.integers(5, 400, len(copies)), dtype="Int64")
    return pd.concat([copies, table], ignore_index=True)


def shown(tab: Tab) -> list[list[str]]:
    """The texts of the rows in sight, from the top."""
    tab.settled()
    return tab.page.evaluate(
        """() => {
          const list = document.querySelector(".wb-list"), top = list.getBoundingClientRect().top;
          return [...list.querySelectorAll(".wb-run:not([hidden])")]
            .map(row => [row.getBoundingClientRect().top - top, [...row.children].map(cell => cell.textContent)])
            .sort((a, b) => a[0] - b[0]).filter(([y]) => y > -24 && y < list.clientHeight).map(([, texts]) => texts);
        }"""
    )


@needed
def test_two_thousand_runs_scroll_sort_and_filter(browser, tmp_path: Path, store: wb.Store):
    table = many(store, 2000)
    view = wb.views.summary(store, table)
    tab = LiveTab(browser, view, tmp_path)
    assert [row[0] for row in shown(tab)[:3]] == [each[:8] for each in table["id"][:3]]
    tab.page.evaluate("document.querySelector('.wb-list').scrollTop = 1e9")
    assert [row[0] for row in shown(tab)[-4:]] == [each[:8] for each in table["id"][-4:]]
    assert tab.page.locator(".wb-list .wb-run").count() < 60  # not 2,000
    tab.page.evaluate("document.querySelector('.wb-list').scrollTop = 0")
    titles = {name: tab.page.get_by_role("button", name=name, exact=True) for name in ("generated", "question")}
    place = [each["name"] for each in view.payload()[0]["columns"]].index("n_generated")
    titles["generated"].click()  # numbers: the largest first
    expected = table.sort_values("n_generated", ascending=False, kind="stable")
    assert [row[0] for row in shown(tab)[:9]] == [each[:8] for each in expected["id"][:9]]
    titles["generated"].click()
    expected = table.sort_values("n_generated", kind="stable")["n_generated"].tolist()
    assert [float(row[place]) for row in shown(tab)[:9]] == expected[:9]
    titles["question"].click()
    questions = sorted(table["question"].str.lower())
    assert [row[1].lower() for row in shown(tab)[:9]] == questions[:9]
    tab.page.locator(".wb-bar input[type=search]").fill("17? HIGH")
    matching = table[table["question"].str.contains("17?", regex=False) & (table["effort"] == "high")]
    assert tab.page.locator(".wb-count").inner_text() == f"{len(matching)} of 2,000 runs"
    tab.page.locator(".wb-bar input[type=search]").fill("no such run")
    assert shown(tab) == []
    assert tab.console == []
    tab.page.close()


@needed
def test_a_click_opens_the_score_sheet_and_keys_move(browser, tmp_path: Path, store: wb.Store):
    view = wb.views.summary(store)
    row = view.ids.index(made.run().id)
    tab = LiveTab(browser, view, tmp_path)
    tab.page.locator(f'.wb-list [aria-rowindex="{row + 2}"]').click()
    tab.page.wait_for_selector(".wb-sheet .wb canvas")
    assert tab.selected() == {"pos": row} and "sheet" in tab.queries
    assert "So c=9." in tab.page.locator(".wb-sheet .wb-text").inner_text()
    tab.page.locator(".wb-summary").focus()
    tab.page.keyboard.press("Escape")
    tab.settled()
    assert tab.page.locator(".wb-sheet .wb").count() == 0 and tab.selected() == {"pos": row}
    tab.page.keyboard.press("Home")
    assert tab.selected() == {"pos": 0}
    tab.page.keyboard.press("ArrowDown")
    assert tab.selected() == {"pos": 1}
    tab.page.keyboard.press("Enter")
    tab.page.wait_for_selector(".wb-sheet .wb")
    tab.page.locator(".wb-summary > .wb-bar").get_by_role("button", name="Python").click()
    assert tab.page.locator(".wb-summary > .wb-code").input_value() == f'store["{view.ids[1]}"]'
    assert tab.console == []
    tab.page.close()


@needed
def test_summaries_of_the_same_runs_share_the_selection(browser, tmp_path: Path, store: wb.Store):
    tab = LiveTab(browser, wb.views.summary(store), tmp_path, wb.views.summary(store))
    tab.page.locator('.view >> nth=1 >> .wb-list [aria-rowindex="3"]').click()
    tab.settled()
    assert tab.page.locator('.wb-list [aria-selected="true"]').count() == 2
    tab.page.close()


@needed
@pytest.mark.parametrize(("scheme", "width"), [("light", 1280), ("dark", 1280), ("light", 420)])
def test_a_page_needs_no_python_in_light_and_dark(browser, tmp_path: Path, store: wb.Store, scheme, width: int):
    path = wb.views.summary(store).to_html(tmp_path / "runs.html")
    tab = Tab(browser, path, color_scheme=scheme, width=width)
    assert tab.page.evaluate("document.documentElement.scrollWidth") <= width
    assert len(shown(tab)) == 4
    painted = "[...document.querySelectorAll('.wb-list canvas')].filter(c => c.toDataURL().length > 300).length"
    assert tab.page.evaluate(painted) >= 5  # four lanes of the log-probability, one of the entropy
    tab.page.locator(".wb-list .wb-run >> nth=0").click()
    tab.settled()
    assert "sheet needs Python" in tab.page.locator(".wb-sheet").inner_text()
    tab.shot(f"summary-{scheme}-{width}")
    tab.close()


@needed
def test_hostile_texts_are_visible_and_inert(browser, tmp_path: Path):
    store = wb.Store(tmp_path / HOSTILE.replace("/", "_"))
    for number in range(2):
        store.add(chat(number, question=f"{number}{HOSTILE}", answer=HOSTILE, model=f"{number}{HOSTILE}"))
    store.score(next(iter(store)), HOSTILE, 1)
    view = wb.views.summary(store, store.find(score={HOSTILE: 1}))
    text = snapshot(view)
    assert "<img" not in text and "\u202e" not in text and "\x1b" not in text
    for tab in (Tab(browser, view.to_html(tmp_path / "runs.html")), LiveTab(browser, view, tmp_path)):
        tab.page.locator(".wb-list .wb-run >> nth=0").click()
        tab.settled()
        assert tab.page.locator("#view img, #view script").count() == 0
        texts = tab.page.locator("#view").inner_text()
        assert "<img src=x" in texts and not set(texts) & set("\u202e\x1b\u200b")
        assert tab.console == []
        tab.page.close()


@needed
def test_a_browser_without_scripts_shows_the_table(browser, tmp_path: Path, store: wb.Store):
    path = wb.views.summary(store).to_html(tmp_path / "runs.html")
    tab = Tab(browser, path, java_script_enabled=False)
    assert tab.page.locator("#snapshot tbody tr").count() == 4
    tab.page.close()
