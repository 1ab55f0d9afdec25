"""Where a figure comes from: its traces, models, code and versions, as written with the figure and read back.

The same facts are in the metadata of the SVG, PDF or PNG and in the .json beside it. A picture that was copied out of
its folder still names the runs it shows.
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
from workbench.untrusted import read_bytes

LIMIT = 256 << 20  # bytes of a picture that are read
_PDF = re.compile(rb"/Keywords \(((?:[^\\()]|\\.)*)\)", re.DOTALL)
_DESCRIPTION = "{http://purl.org/dc/elements/1.1/}description"


def origin(figure: Figure, data: bytes, traces: Iterable[Trace], code: str | os.PathLike[str] | None) -> dict[str, Any]:
    """The provenance of a figure, as plain values; `data` are the bytes of its table."""
    ids, models, numerics = [], [], []
    for trace in traces:
        if not isinstance(trace, Trace):
            raise FigureError(f"source must hold Traces, got {type(trace).__name__}; load it with wb.load first")
        manifest = trace.manifest
        ids.append(trace.id)
        model = {key: manifest.model[key] for key in ("name", "weights_digest", "tokenizer_digest")}
        models += [model] if model not in models else []
        arithmetic = bit_determining(
            manifest.numerics
        )  # only what can change numbers, so that equal numbers give equal bytes
        numerics += [arithmetic] if arithmetic not in numerics else []
    return {
        "title": figure.title,
        "spec": figure.digest,
        "data": sha256(data).hexdigest(),
        "code": None
        if code is None
        else {"name": expanded(code).name, "sha256": sha256(read_bytes(code, FigureError)).hexdigest()},
        "traces": ids,
        "models": models,
        "numerics": numerics,
        "workbench": version("gpt-oss-workbench"),
        "drawn_with": versions(),
    }


def versions() -> dict[str, str]:
    """The versions that the bytes of a picture depend on, besides its numbers."""
    from workbench.figures.backends.matplotlib import import_matplotlib

    matplotlib = import_matplotlib()
    from matplotlib.ft2font import __freetype_version__

    names = ("contourpy", "fonttools", "kiwisolver", "numpy", "pillow")
    packages = {name: version(name) for name in names}
    packages |= {"matplotlib": matplotlib.__version__, "freetype": __freetype_version__}
    return packages | {"python": platform.python_version(), "machine": platform.machine()}


def provenance(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The provenance in an SVG, PDF or PNG that `save` wrote, read without matplotlib.

    `traces` are the ids of its traces, `models` their names and digests, `numerics` the arithmetic they were computed
    with, `code` the script and its sha256, `spec` and `data` the sha256 of the figure and of its table, and
    `drawn_with` the versions.

    >>> figure = wb.figures.Figure(panels=[wb.figures.Panel(marks=[wb.figures.Rule(at=1.0)])], title="one line")
    >>> paths = wb.figures.save(figure, "out/one-line.svg", source=trace)  # doctest: +SKIP
    >>> wb.figures.provenance("out/one-line.svg")["traces"] == [trace.id]  # doctest: +SKIP
    True

    Raises FigureError if the file is not an SVG, PDF or PNG, or holds no provenance.
    """
    path = expanded(path)
    data = read_bytes(path, FigureError, LIMIT)
    try:
        if data.startswith(b"\x89PNG\r\n\x1a\n"):
            text = _from_png(data)
        elif data.startswith(b"%PDF-"):
            text = _from_pdf(data)
        else:
            text = _from_svg(data)
        record = json.loads(text) if text else None
    except (ValueError, ElementTree.ParseError, IndexError):
        record = None
    if not isinstance(record, dict) or "spec" not in record:
        raise FigureError(
            f"{visible(str(path))} holds no provenance: it is not an SVG, PDF or PNG that wb.figures.save wrote, or "
            "another program has saved it since"
        )
    return record


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
    match = _PDF.search(data)
    return re.sub(rb"\\(.)", rb"\1", match[1], flags=re.DOTALL).decode("ascii") if match else None


def _from_svg(data: bytes) -> str | None:
    if b"<!ENTITY" in data:  # pictures of `save` have none, and entities could expand without bounds
        return None
    description = ElementTree.fromstring(data).find(f".//{_DESCRIPTION}")
    return None if description is None else description.text
