"""The page of a run, as text: complete, self-contained, and deaf to whatever the model wrote."""

import time
from html import escape
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from tests.views import made
from workbench.views import page_lanes
from workbench.views.page import page, save_page
from workbench.visible import visible

VOID = {"meta", "br", "img", "link", "input", "hr"}


class Outline(HTMLParser):
    """Opens and closes every tag; keeps the tags, their attributes, and the text of every token."""

    def __init__(self, text: str):
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.tokens: list[str] = []
        self.titles: list[str] = []
        self._token: int | None = None
        self.feed(text)
        self.close()
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]):
        found = dict(attrs)
        self.tags.append((tag, found))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "span" and (found.get("class") or "").split()[:1] == ["t"] and "title" in found:
            self.tokens.append("")
            self.titles.append(found["title"] or "")
            self._token = len(self.open)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str):
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag
        if self._token is not None and len(self.open) < self._token:
            self._token = None

    def handle_data(self, data: str):
        if self._token is not None:
            self.tokens[-1] += data


def test_every_token_is_there_once_and_in_order():
    trace = made.run()
    assert Outline(page(trace)).tokens == trace.pieces


def test_every_title_says_position_and_id():
    trace = made.run()
    for position, title in enumerate(Outline(page(trace)).titles):
        assert f"position {position} · id {trace.tokens[position]}" in title
        assert "next: " in title
        assert "sink mass" in title
        assert "router margin" in title


def test_the_page_is_the_same_for_the_same_trace():
    assert page(made.run()) == page(made.run())


def hostile() -> list[made.Message]:
    return [
        ("user", None, made.HOSTILE),
        ("assistant", "</h3><script>alert(7)</script>", made.HOSTILE),
        ('"><script>alert(8)</script>', "analysis", [*made.HOSTILE, "."]),
    ]


@pytest.mark.parametrize("lanes", [True, False])
def test_hostile_text_shows_and_does_nothing(lanes: bool):
    evil = "<script>alert(9)</script>\u202e"
    changes = {
        "gave_way": [evil],
        "notes": [evil],
        "numerics": {evil: evil, "deep": {evil: [evil]}},
        "edits": [{"identity": evil, evil: [evil]}],
        "verification": [{"identity": evil, "status": "fails", "worst": None, "tolerance": None, "why": evil}],
        "created": evil,
    }
    trace = made.run(hostile(), lanes=lanes, **changes)
    trace = made.run(hostile(), lanes=lanes, **changes, model=trace.manifest.model | {"name": evil, "format": evil})
    text = page(trace)
    seen = Outline(text)
    assert [tag for tag, _ in seen.tags].count("script") == 1
    assert [tag for tag, _ in seen.tags].count("style") == 1
    assert not [name for _, attributes in seen.tags for name in attributes if name.startswith("on") or name == "style"]
    assert not [tag for tag, _ in seen.tags if tag in {"img", "iframe", "object", "link", "base", "form"}]
    assert [token.replace("\n", "") for token in seen.tokens] == [visible(p, "") for p in trace.pieces]
    for character in "\u202e\u2066\x00\u200b\ud800":
        assert character not in text
    assert escape("<script>alert(1)</script>") in text


def test_the_page_asks_the_network_for_nothing():
    text = page(made.run())
    assert "http://" not in text
    assert "https://" not in text
    assert "@import" not in text
    assert "url(" not in text
    for tag, attributes in Outline(text).tags:
        assert "src" not in attributes, tag
        assert (attributes.get("href") or "#").startswith("#"), tag


def test_the_policy_allows_only_this_style_and_this_script():
    [policy] = [a["content"] for tag, a in Outline(page(made.run())).tags if a.get("http-equiv")]
    assert policy.startswith("default-src 'none'; style-src 'sha256-")
    assert "unsafe" not in policy


def test_a_trace_without_lanes_says_how_to_record_them():
    text = page(made.run(lanes=False))
    assert text.count("not in this trace") == 6
    assert 'record="lens" records it' in text
    assert Outline(text).tokens == made.run().pieces


def test_an_empty_channel_is_shown_as_empty():
    text = page(made.run([("user", None, ["hi"]), ("assistant", "analysis", [])]))
    assert "(empty)" in text
    Outline(text)


@pytest.mark.parametrize("count", [0, 1])
def test_a_trace_of_almost_nothing(count: int):
    trace = made.run([], tokens=[5] * count, pieces=["x"] * count, prompt_length=count, generation=None, lanes=False)
    assert Outline(page(trace)).tokens == ["x"] * count


def test_positions_outside_of_every_span_are_not_lost():
    trace = made.run()
    bare = made.run(spans=trace.spans[1:2])
    assert Outline(page(bare)).tokens == trace.pieces
    assert "unparsed" in page(bare)


def test_what_went_wrong_is_said_first():
    line = {"identity": "pattern + sink = 1", "status": "fails", "worst": 0.5, "tolerance": 2e-5, "why": "layer 1"}
    text = page(made.run(verification=[line], status="partial", edits=[{"identity": "e"}]))
    head = text[: text.index("</header>")]
    assert "1 of 1 identities fail" in head
    assert "partial" in head
    assert "1 edit in force" in head


def test_the_verification_shows_worst_and_tolerance():
    text = page(made.run(routes={"compared": 5120, "differ": 3}, gave_way=["sliding layers: band only"]))
    assert "1.2e−07" in text
    assert "2e−05" in text
    assert "3 of 5,120 expert choices differ" in text
    assert "sliding layers: band only" in text


def test_lanes_of_another_size_are_left_out_and_not_misplaced():
    trace = made.run()
    odd = made.arrays(trace.tokens, 4, 0) | {
        "entropy": np.zeros(len(trace) + 3, "f4"),
        "margin": np.zeros((2, len(trace)), "f4"),
        "logprob": np.full(len(trace), np.nan, "f4"),
        "resid_norm": np.full((4, len(trace)), np.inf, "f4"),
    }
    text = page(type(trace)(made.run(lanes=False).manifest, odd))
    assert text.count("not in this trace") == 2
    assert "nan" not in text
    Outline(text)


def test_sixteen_thousand_tokens_make_a_page_quickly():
    said = made.words("So we add 12 and 34, which gives 46. Wait, check that again. ") * 800
    trace = made.run([("user", None, ["Add."]), ("assistant", "analysis", said[:16_000])], layers=24)
    started = time.perf_counter()
    text = page(trace)
    assert time.perf_counter() - started < 5
    assert len(text.encode()) < 15e6
    assert "downsampled (max)" in text
    assert "downsampled (min)" in text
    assert len(Outline(text).tokens) == len(trace)


def test_save_page_replaces_what_was_there(tmp_path: Path):
    target = tmp_path / "deep" / "page.html"
    assert save_page(made.run(lanes=False), target) == target
    save_page(made.run(), target)
    assert target.read_text("utf-8") == page(made.run())


# The drawing.


def test_downsampling_keeps_every_extreme():
    rng = np.random.default_rng(0)
    values = rng.normal(size=(3, 5000))
    kept = page_lanes.columns(values, "max", 700)
    assert kept.shape == (3, 700)
    assert np.array_equal(kept.max(1), values.max(1))
    assert np.array_equal(page_lanes.columns(values, "min", 700).min(1), values.min(1))


def test_few_columns_are_left_alone():
    values = np.arange(10.0)
    assert page_lanes.columns(values, "max", 10) is values


def test_a_heat_map_fills_every_cell_but_those_without_a_number():
    values = np.random.default_rng(0).random((4, 50))
    values[1, 7] = np.nan
    drawn = page_lanes.heat(values, 0, 1)
    area = sum(int(run.split("v1")[0]) for run in drawn.split("h")[1:] if "v1" in run)
    assert area == 4 * 50 - 1
