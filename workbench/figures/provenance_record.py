"""Where a figure comes from: its traces, models, code and versions, as written with the figure and read back.

The same facts are in the metadata of the SVG, PDF or PNG and in the .json beside it. A picture that was copied out of
its folder still names the runs it shows.
"""

import os
import platform
import re
from collections.abc import Iterable
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import Any
from xml.parsers.expat import ExpatError, ParserCreate

from workbench.errors import FigureError
from workbench.figures.spec import Figure
from workbench.paths import expanded
from workbench.text import visible
from workbench.traces import Trace
from workbench.traces.manifest import bit_determining
from workbench.untrusted import parse_json, read_bytes, read_json

LIMIT = 256 << 20  # bytes of a picture that are read
MAX_CHUNKS = 1000  # of a PNG before its provenance; `save` writes it as one of the first
_PDF = re.compile(rb"/Keywords \(((?:[^\\()]++|\\.)*+)\)", re.DOTALL)  # possessive: no memory for going back
_DESCRIPTION = "http://purl.org/dc/elements/1.1/ description"


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
        "title": figure.title.encode("utf-16", "surrogatepass").decode("utf-16", "replace"),  # without lone surrogates
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

    Raises FigureError if the file is not an SVG, PDF or PNG or holds no provenance, and if the .json beside it has
    another hash for it: then saving was interrupted, or one of the two was changed.
    """
    path = expanded(path)
    name = visible(str(path))[:500]
    data = read_bytes(path, FigureError, LIMIT)
    try:
        if data.startswith(b"\x89PNG\r\n\x1a\n"):
            text = _from_png(data)
        elif data.startswith(b"%PDF-"):
            text = _from_pdf(data)
        else:
            text = _from_svg(data)
    except (ValueError, ExpatError):
        text = None
    record = parse_json(text, f"the provenance in {name}", FigureError) if text else None
    if not isinstance(record, dict) or "spec" not in record:
        raise FigureError(
            f"{name} holds no provenance: it is not an SVG, PDF or PNG that wb.figures.save wrote, or another program "
            "has saved it since"
        )
    beside = path.with_suffix(".json")
    if beside.is_file():
        recorded = saved_hashes(beside).get(path.suffix.removeprefix("."))
        if recorded is not None and recorded != sha256(data).hexdigest():
            raise FigureError(_differs(path.name, beside))
    return record


def saved_hashes(path: Path) -> dict[str, str]:
    """The sha256 of each file of a saved figure by its ending, from its .json; {} if that is another kind of .json.

    Raises FigureError if the file cannot be read.
    """
    record = read_json(path, FigureError)
    hashes = record.get("sha256") if isinstance(record, dict) and "spec" in record else None
    hashes = hashes if isinstance(hashes, dict) else {}
    return {ending: value for ending, value in hashes.items() if isinstance(value, str)}


def check_saved(path: Path) -> None:
    """Raises FigureError if a file of the figure whose .json is at `path` is missing or differs from its hash."""
    for ending, recorded in saved_hashes(path).items():
        if not re.fullmatch("[a-z]+", ending):
            raise FigureError(
                f"{visible(str(path))} names the file ending {visible(ending)[:40]!r}. Save the figure again"
            )
        if sha256(read_bytes(path.with_suffix(f".{ending}"), FigureError, LIMIT)).hexdigest() != recorded:
            raise FigureError(_differs(f"{path.stem}.{ending}", path))


def _differs(name: str, record: Path) -> str:
    return (
        f"{visible(name)} is not the file that {visible(str(record))} describes: saving was interrupted, or one of "
        f"them was changed since. Save the figure again"
    )


def _from_png(data: bytes) -> str | None:
    at = 8
    for _ in range(MAX_CHUNKS):
        size, kind = int.from_bytes(data[at : at + 4], "big"), data[at + 4 : at + 8]
        if kind == b"tEXt" and data.startswith(b"Description\0", at + 8):
            return data[at + 20 : at + 8 + size].decode("latin-1")
        at += 12 + size
        if at + 12 > len(data):
            break
    return None


def _from_pdf(data: bytes) -> str | None:
    match = _PDF.search(data)
    return re.sub(rb"\\(.)", rb"\1", match[1], flags=re.DOTALL).decode("ascii") if match else None


def _from_svg(data: bytes) -> str | None:
    """The text of the first description. No tree is built, and a file with entities, which could expand, is refused."""
    texts: list[str] = []
    depth = 0  # above 0 inside the description

    def start(name: str, _: Any) -> None:
        nonlocal depth
        depth += depth > 0 or name == _DESCRIPTION

    def end(_: str) -> None:
        nonlocal depth
        if depth == 1:
            raise _Found
        depth -= depth > 0

    def entity(*_: Any) -> None:
        raise ValueError("a picture of `save` declares no entities")

    parser = ParserCreate(namespace_separator=" ")
    parser.StartElementHandler, parser.EndElementHandler, parser.EntityDeclHandler = start, end, entity
    parser.CharacterDataHandler = lambda text: texts.append(text) if depth else None
    try:
        parser.Parse(data, True)
    except _Found:
        return "".join(texts)
    return None


class _Found(Exception):
    """The description is complete."""
