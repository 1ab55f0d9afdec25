"""Where a figure comes from: what it says of its traces, models, code and versions, and how that is read back.

The same facts stand in the metadata of the SVG, PDF or PNG and in the .json beside it, so a picture that has lost its
folder can still say which runs it shows.
"""

import json
import os
import platform
import re
from collections.abc import Iterable
from hashlib import sha256
from importlib.metadata import version
from typing import Any
from xml.etree import ElementTree

from workbench.errors import FigureError
from workbench.figures.spec import Figure
from workbench.paths import expanded
from workbench.text import visible
from workbench.traces import Trace
from workbench.traces.manifest import bit_determining

LIMIT = 256 << 20  # bytes of a picture that is read
_PDF = re.compile(rb"/Keywords \(((?:[^\\()]|\\.)*)\)", re.DOTALL)
_DESCRIPTION = "{http://purl.org/dc/elements/1.1/}description"


def origin(figure: Figure, data: bytes, traces: Iterable[Trace], code: str | os.PathLike | None) -> dict[str, Any]:
    """What a figure is made of, as plain values; `data` are the bytes of its table."""
    ids, models, numerics = [], [], []
    for trace in traces:
        if not isinstance(trace, Trace):
            raise FigureError(f"a figure comes from traces; source holds {type(trace).__name__}")
        manifest = trace.manifest
        ids.append(trace.id)
        model = {key: manifest.model[key] for key in ("name", "weights_digest", "tokenizer_digest")}
        models += [model] if model not in models else []
        # so that a figure has the same bytes wherever its numbers are the same
        decides = bit_determining(manifest.numerics)
        numerics += [decides] if decides not in numerics else []
    return {
        "title": figure.title,
        "spec": figure.digest,
        "data": sha256(data).hexdigest(),
        "code": None
        if code is None
        else {"name": expanded(code).name, "sha256": sha256(expanded(code).read_bytes()).hexdigest()},
        "traces": ids,
        "models": models,
        "numerics": numerics,
        "workbench": version("gpt-oss-workbench"),
        "drawn_with": versions(),
    }


def versions() -> dict[str, str]:
    """What decides about the bytes of a picture, besides its numbers."""
    from workbench.figures.backends.matplotlib import needed

    matplotlib = needed()
    from matplotlib.ft2font import __freetype_version__

    names = ("contourpy", "fonttools", "kiwisolver", "numpy", "pillow")
    found = {name: version(name) for name in names}
    found |= {"matplotlib": matplotlib.__version__, "freetype": __freetype_version__}
    return found | {"python": platform.python_version(), "machine": platform.machine()}


def provenance(path: str | os.PathLike) -> dict[str, Any]:
    """What an SVG, PDF or PNG that `save` wrote says of where it comes from, read without matplotlib.

    `traces` are ids, `models` their names and digests, `numerics` what computed them, `code` the script and its sha256,
    `spec` and `data` the sha256 of the figure and of its table, `drawn_with` versions.

    >>> figure = wb.figures.Figure(panels=[wb.figures.Panel(marks=[wb.figures.Rule(at=1.0)])], title="one line")
    >>> paths = wb.figures.save(figure, "out/one-line.svg", source=trace)  # doctest: +SKIP
    >>> wb.figures.provenance("out/one-line.svg")["traces"] == [trace.id]  # doctest: +SKIP
    True

    Raises FigureError if the file is none of these, or says nothing.
    """
    path = expanded(path)
    with path.open("rb") as file:
        data = file.read(LIMIT)
    try:
        if data.startswith(b"\x89PNG\r\n\x1a\n"):
            told = _from_png(data)
        elif data.startswith(b"%PDF-"):
            told = _from_pdf(data)
        else:
            told = _from_svg(data)
        found = json.loads(told) if told else None
    except (ValueError, ElementTree.ParseError, IndexError):
        found = None
    if not isinstance(found, dict) or "spec" not in found:
        raise FigureError(
            f"{visible(str(path))} says nothing of where it comes from: it is no SVG, PDF or PNG that "
            "wb.figures.save wrote, or another program has written it anew"
        )
    return found


def _from_png(data: bytes) -> str | None:
    at = 8
    while at + 12 <= len(data):
        size, kind = int.from_bytes(data[at : at + 4], "big"), data[at + 4 : at + 8]
        body = data[at + 8 : at + 8 + size]
        if kind == b"tEXt" and body.startswith(b"Description\0"):
            return body.split(b"\0", 1)[1].decode("latin-1")
        at += 12 + size
    return None


def _from_pdf(data: bytes) -> str | None:
    found = _PDF.search(data)
    return re.sub(rb"\\(.)", rb"\1", found[1], flags=re.DOTALL).decode("ascii") if found else None


def _from_svg(data: bytes) -> str | None:
    if b"<!ENTITY" in data:  # our files have none, and they could grow without bounds
        return None
    found = ElementTree.fromstring(data).find(f".//{_DESCRIPTION}")
    return None if found is None else found.text
