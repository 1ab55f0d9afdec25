"""The matplotlib backend: the same bytes in every process, no influence of the user's settings, texts as text."""

import hashlib
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.figures.hostile import HOSTILE, SETS
from tests.figures.made import every_kind
from workbench import figures as f
from workbench.errors import FigureError, MissingDependency
from workbench.figures.backends.matplotlib import FORMATS, drawable, font, images

matplotlib = pytest.importorskip("matplotlib", reason="needs the extra `figures`")

SUMS = """
import hashlib, json, sys
from tests.figures.made import every_kind
from workbench.figures.saving import contents
made = {kind: contents(figure) for kind, figure in every_kind().items()}
print(json.dumps({k: {e: hashlib.sha256(b).hexdigest() for e, b in files.items()} for k, files in made.items()}))
"""


def made_in_another_process(seed: str, **environment: str) -> dict:
    env = os.environ | {"PYTHONHASHSEED": seed} | environment
    done = subprocess.run([sys.executable, "-c", SUMS], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_two_processes_with_other_hash_seeds_and_settings_write_the_same_bytes(tmp_path: Path):
    (tmp_path / "matplotlibrc").write_text("font.size: 31\naxes.grid: True\nsvg.fonttype: none\nfont.family: serif\n")
    environment = {"MATPLOTLIBRC": str(tmp_path / "matplotlibrc"), "SOURCE_DATE_EPOCH": "1", "MPLBACKEND": "svg"}
    first, second = made_in_another_process("1"), made_in_another_process("2", **environment)
    assert len(first) == 8
    assert first == second


def test_drawing_again_later_in_one_process_gives_the_same_bytes():
    figure = every_kind()["step_matrix"]
    first = images(figure)
    time.sleep(1.1)  # dates have seconds
    assert images(figure) == first


def test_matplotlibs_settings_are_unchanged_and_pyplot_is_not_loaded():
    before = dict(matplotlib.rcParams)
    images(every_kind()["line"], ["png"])
    assert dict(matplotlib.rcParams) == before
    code = (
        "import sys; from tests.figures.made import every_kind; every_kind()['line'].image('png'); print([m for m in "
    )
    code += "('matplotlib.pyplot', 'torch', 'plotly') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("kind", sorted(every_kind()))
def test_pictures_have_the_size_of_the_figure(kind: str):
    figure = every_kind()[kind]
    assert figure.height is not None
    files = images(figure)
    svg = re.search(
        rb'<svg[^>]* width="([\d.]+)pt" height="([\d.]+)pt"|<svg[^>]*height="([\d.]+)pt"[^>]*width="([\d.]+)pt"',
        files["svg"],
    )
    assert svg
    points = [float(x) for x in svg.groups() if x]
    assert sorted(points) == pytest.approx(sorted(x / 25.4 * 72 for x in (figure.width, figure.height)), abs=1e-3)
    wide, high = (int.from_bytes(files["png"][i : i + 4], "big") for i in (16, 20))
    assert (wide, high) == pytest.approx((figure.width / 25.4 * 300, figure.height / 25.4 * 300), abs=1)


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_text_is_drawn_with_the_font_and_loses_nothing(text: str):
    shown = drawable(text)
    assert shown.isprintable()
    assert all(ord(char) in font()[1] for char in shown)
    restored = re.sub(r"⟨U\+([0-9A-F]{4,6})⟩", lambda match: chr(int(match[1], 16)), shown).replace("↵", "\n")
    assert restored == text


@pytest.mark.parametrize("kind", sorted(every_kind()))
def test_hostile_text_is_not_markup_in_a_picture(kind: str):
    known = tags(every_kind(list("abcdefg"))[kind].image("svg"))
    for names in SETS:
        svg = every_kind(names)[kind].image("svg")
        assert tags(svg) <= known | {b"use", b"path", b"g", b"defs"}
        for danger in (b"<script", b"<img", b"<a ", b"href='", b'href="java', b"<!ENTITY", b"onerror=alert(2)>"):
            assert danger not in re.sub(rb"<!--.*?-->", b"", svg, flags=re.DOTALL)


def tags(svg: bytes) -> set[bytes]:
    """The elements as an XML parser finds them, which also shows that the file is well-formed."""
    from xml.etree import ElementTree

    return {element.tag.rsplit("}")[-1].encode() for element in ElementTree.fromstring(svg).iter()}


def test_a_formula_is_drawn_as_plain_text():
    dollars = f.Figure(panels=[f.Panel(marks=[f.Rule(at=1.0)], title="$x_1$")])
    broken = f.Figure(panels=[f.Panel(marks=[f.Rule(at=1.0)], title=r"$\frac{1$")])
    assert b"<!-- $x_1$ -->" in dollars.image("svg")
    assert b"<!-- $\\frac{1$ -->" in broken.image("svg")


@pytest.mark.parametrize("text", ["a\u202eb", "a\u200bb", "a\x00b", "a\nb", "a中b", "a b"])
def test_characters_without_a_glyph_still_change_the_picture(text: str):
    def drawn(title: str) -> bytes:
        return images(f.Figure(panels=[f.Panel(marks=[f.Rule(at=1.0)], title=title)]), ["png"])["png"]

    assert pixels(drawn(text)) != pixels(drawn("ab"))


def pixels(png: bytes) -> str:
    import io

    from PIL import Image

    return hashlib.sha256(Image.open(io.BytesIO(png)).tobytes()).hexdigest()


def test_text_in_a_pdf_is_text():
    pdf = f.Figure(panels=[f.Panel(marks=[f.Rule(at=1.0)], title="a")]).image("pdf")
    assert b"/FontFile2" in pdf and b"/Type /Font" in pdf


def test_an_unknown_format_is_refused():
    with pytest.raises(FigureError, match="format must be one of svg, pdf, png, got 'gif'"):
        every_kind()["rule"].image("gif")


def test_without_matplotlib_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingDependency, match=r"gpt-oss-workbench\[figures\]"):
        every_kind()["rule"].image("png")
    assert "figures" in every_kind()["rule"]._repr_mimebundle_()[0]["text/plain"]


def test_a_large_matrix_is_drawn_as_one_image_in_small_files():
    import numpy as np
    import xarray as xr

    figure = f.heatmap(xr.DataArray(np.random.default_rng(0).random((300, 400)), dims=("query", "key")))
    files = images(figure)
    assert len(files["svg"]) < 900_000 and len(files["pdf"]) < 900_000
    assert files == images(figure)


def test_the_formats_are_svg_pdf_and_png():
    assert FORMATS == ("svg", "pdf", "png")
