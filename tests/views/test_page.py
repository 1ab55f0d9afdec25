"""The page of a view, as text: complete, self-contained, and safe from model text."""

import json
import zlib
from base64 import b64decode
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from urllib.parse import unquote
from xml.etree import ElementTree

import numpy as np
import pytest

import workbench as wb
from tests.views import made
from workbench.text import visible
from workbench.views.page import page
from workbench.views.payload import unpacked

VOID = {"meta", "br", "img", "link", "input", "hr"}


class Outline(HTMLParser):
    """Checks that every tag is closed; collects the tags, their attributes, the texts, and the block of data."""

    def __init__(self, text: str):
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.raw = ""
        self.feed(text)
        self.close()
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str):
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data: str):
        if self.open and self.open[-1] in ("script", "style"):
            self.raw += data if self.tags[-1][1].get("id") == "data" else ""
        else:
            self.text += data

    def payload(self):
        return unpacked(zlib.decompress(b64decode(self.raw)))


def score_sheet_page(trace, **options) -> str:
    return page(wb.views.score_sheet(trace, **options))


def tokens_of(header: dict, arrays: dict) -> list[str]:
    return [header["token_texts"][text_id] for text_id in arrays["token_text_ids"]]


def test_every_token_is_in_the_page_once_and_in_order():
    trace = made.run()
    outline = Outline(score_sheet_page(trace))
    assert tokens_of(*outline.payload()) == trace.str_tokens
    at = 0
    for text in trace.str_tokens:  # also without script
        at = outline.text.index(text, at) + len(text)


def test_the_page_is_the_same_for_the_same_trace():
    assert score_sheet_page(made.run()) == score_sheet_page(made.run())


def hostile() -> list[made.Message]:
    return [
        ("user", None, made.HOSTILE),
        ("assistant", "</h3><script>alert(7)</script>", made.HOSTILE),
        ('"><script>alert(8)</script>', "analysis", [*made.HOSTILE, "."]),
    ]


def check_drawing(source: str) -> None:
    """A drawing consists of shapes, texts and PNGs, whatever its texts are."""
    assert source.startswith("data:image/svg+xml,")
    root = ElementTree.fromstring(unquote(source.partition(",")[2]))
    for element in root.iter():
        assert element.tag.rpartition("}")[2] in {"svg", "rect", "text", "image"}
        assert not [name for name in element.attrib if name.startswith("on") or name == "style"]
        assert element.get("href", "data:image/png;base64,").startswith("data:image/png;base64,")


@pytest.mark.parametrize("lanes", [True, False])
def test_hostile_text_is_visible_and_inert(lanes: bool):
    evil = "<script>alert(9)</script>\u202e"
    changes = {
        "omitted": [evil],
        "notes": [evil],
        "numerics": {evil: evil, "deep": {evil: [evil]}},
        "edits": [{"identity": evil, evil: [evil]}],
        "verification": [{"identity": evil, "status": "fails", "max_error": None, "tolerance": None, "reason": evil}],
        "created": evil,
    }
    trace = made.run(hostile(), lanes=lanes, **changes)
    trace = made.run(hostile(), lanes=lanes, **changes, model=trace.manifest.model | {"name": evil, "format": evil})
    text = score_sheet_page(trace)
    outline = Outline(text)
    scripts = [attributes for tag, attributes in outline.tags if tag == "script"]
    assert scripts == [{"type": "application/octet-stream", "id": "data"}, {"type": "module"}]
    assert [tag for tag, _ in outline.tags].count("style") == 1
    assert not [
        name for _, attributes in outline.tags for name in attributes if name.startswith("on") or name == "style"
    ]
    assert not [tag for tag, _ in outline.tags if tag in {"iframe", "object", "link", "base", "form"}]
    for source in [a["src"] or "" for tag, a in outline.tags if tag == "img"]:
        if not source.startswith("data:image/png;base64,"):
            check_drawing(source)
    assert tokens_of(*outline.payload()) == [visible(token, "\n") for token in trace.str_tokens]
    header = json.dumps(outline.payload()[0], ensure_ascii=False)
    for character in "\u202e\u2066\x00\u200b\ud800":
        assert character not in text
        assert character not in header
    for token in trace.str_tokens:
        assert visible(token, "\n") in outline.text


def test_the_page_has_no_links_to_the_network():
    text = score_sheet_page(made.run())
    assert "https://" not in text
    assert "@import" not in text
    assert "url(" not in text
    assert (
        text.replace("http://www.w3.org/2000/svg", "").count("http://") == 0
    )  # the SVG namespace, which is not fetched
    for tag, attributes in Outline(text).tags:
        assert (attributes.get("src") or "data:").startswith("data:"), tag
        assert (attributes.get("href") or "#").startswith("#"), tag


def test_the_policy_allows_only_this_style_and_this_script():
    [policy] = [a["content"] for tag, a in Outline(score_sheet_page(made.run())).tags if a.get("http-equiv")]
    assert policy is not None
    assert policy.startswith("default-src 'none'; style-src 'sha256-")
    assert "unsafe" not in policy
    assert "blob:" not in policy


def test_an_empty_channel_is_shown_as_empty():
    text = score_sheet_page(made.run([("user", None, ["hi"]), ("assistant", "analysis", [])]))
    assert "(empty)" in text
    Outline(text)


@pytest.mark.parametrize("count", [0, 1])
def test_a_trace_of_zero_or_one_token_has_a_page(count: int):
    trace = made.run(
        [], tokens=[5] * count, str_tokens=["x"] * count, prompt_length=count, generation=None, lanes=False
    )
    assert tokens_of(*Outline(score_sheet_page(trace)).payload()) == ["x"] * count


def test_positions_outside_of_all_spans_are_shown():
    trace = made.run()
    bare = made.run(spans=trace.spans[1:2])
    header, arrays = Outline(score_sheet_page(bare)).payload()
    assert tokens_of(header, arrays) == trace.str_tokens
    edges = [(m["start"], m["stop"]) for m in header["messages"]]
    assert edges[0][0] == 0
    assert edges[-1][1] == len(bare)
    assert all(a[1] == b[0] for a, b in pairwise(edges))
    assert [m["name"] for m in header["messages"]].count("unparsed") == 2


def test_failures_edits_and_partial_runs_are_in_the_header():
    line = {
        "identity": "pattern + sink = 1",
        "status": "fails",
        "max_error": 0.5,
        "tolerance": 2e-5,
        "reason": "layer 1",
    }
    text = score_sheet_page(made.run(verification=[line], status="partial", edits=[{"identity": "e"}]))
    head = text[: text.index("</header>")]
    assert "1 of 1 identities fail" in head
    assert "partial" in head
    assert "1 edit active" in head


def test_the_verification_shows_maximum_error_and_tolerance():
    text = score_sheet_page(
        made.run(replayed_routing={"compared": 5120, "different": 3}, omitted=["sliding layers: band only"])
    )
    assert "1.2e−07" in text
    assert "2e−05" in text
    assert "3 of 5,120 expert choices differ" in text
    assert "sliding layers: band only" in text


def test_sixteen_thousand_tokens_make_a_page_of_a_few_megabytes():
    thoughts = made.words("So we add 12 and 34, which gives 46. Wait, check that again. ") * 800
    trace = made.run([("user", None, ["Add."]), ("assistant", "analysis", thoughts[:16_000])], layers=24)
    text = score_sheet_page(trace)
    assert len(text.encode()) < 15e6
    assert "downsampled (max)" in text
    assert "downsampled (min)" in text
    assert len(Outline(text).payload()[1]["token_text_ids"]) == len(trace)


def test_an_existing_page_is_replaced_atomically(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    target = tmp_path / "deep" / "page.html"
    assert wb.views.score_sheet(made.run(lanes=False)).to_html(target) == target
    wb.views.score_sheet(made.run()).to_html(target)
    assert target.read_text("utf-8") == score_sheet_page(made.run())
    monkeypatch.setattr("workbench.views.page.os.replace", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        wb.views.tokens(made.run()).to_html(target)
    assert target.read_text("utf-8") == score_sheet_page(made.run())
    assert list(target.parent.iterdir()) == [target]


def test_lanes_in_the_page_are_exact():
    trace = made.run()
    _, arrays = Outline(score_sheet_page(trace)).payload()
    assert np.array_equal(arrays["lane:entropy"], trace["entropy"])
    assert np.array_equal(arrays["lane:margin"], trace["margin"])
    assert np.array_equal(arrays["lane:logprob"], trace["logprob"], equal_nan=True)


@pytest.mark.parametrize(
    ("prefix", "method"), [("", "sha256"), ("sha256:", "sha256"), ("sampled-sha256:", "sha256 of samples")]
)
def test_the_digest_of_the_weights_is_shown_with_its_hash_method(prefix: str, method: str):
    model = made.run().manifest.model | {"weights_digest": prefix + "3f" * 32}
    text = Outline(page(wb.views.score_sheet(made.run(model=model)))).text
    assert f"weights{'3f' * 6}{method}, first 12" in text
