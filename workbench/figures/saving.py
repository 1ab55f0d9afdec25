"""Saves a figure: its pictures, the table of its numbers and its provenance. Either all is written, or nothing new.

The .json is written last and holds the hashes of the others. If a process is killed between two files, they do not
match it, which `wb.figures.provenance` and `workbench figures --check` report.
"""

import csv
import json
import os
from collections.abc import Mapping, Sequence
from hashlib import sha256
from io import StringIO
from pathlib import Path
from typing import Any

from workbench.checks import check_flag, check_items, check_type, require
from workbench.errors import FigureError
from workbench.figures.backends.matplotlib import FORMATS, images
from workbench.figures.marks import Row
from workbench.figures.provenance_record import origin
from workbench.figures.spec import Figure
from workbench.files import atomic_files, make_folder
from workbench.paths import expanded
from workbench.text import visible
from workbench.traces import Trace

COLUMNS = ("panel", "mark", "name", *Row._fields)


def save(
    figure: Figure,
    path: str | os.PathLike[str],
    *,
    source: Trace | Sequence[Trace] = (),
    code: str | os.PathLike[str] | None = None,
    parquet: bool = False,
) -> list[Path]:
    """Writes a figure and returns the paths of the files. Existing files are replaced.

    Args:
        figure: the figure
        path: with the ending .svg, .pdf or .png that picture is written; without an ending all three
        source: the traces that the figure comes from
        code: the script that made it
        parquet: whether to write the table as .parquet too

    Returns:
        The paths. Beside the pictures there are a .csv with every number that is drawn, and a .json with the
        provenance: the ids of the traces, their models, the versions, and the sha256 of the script. The metadata of the
        pictures hold the same: see `provenance`. The same figure gives the same bytes.

    Raises:
        MissingDependency: matplotlib (or pyarrow) is missing; nothing is written
        FigureError: the path has another ending; nothing is written
        FileError: a file cannot be written; then none has changed

    >>> figure = wb.figures.Figure(panels=[wb.figures.Panel(marks=[wb.figures.Rule(at=1.0)])], title="one line")
    >>> wb.figures.save(figure, "out/one-line.svg", source=trace)  # doctest: +SKIP
    [PosixPath('out/one-line.svg'), PosixPath('out/one-line.csv'), PosixPath('out/one-line.json')]
    """
    check_type("figures.save", figure, Figure)
    path, parquet = expanded(path), check_flag("parquet", parquet)
    suffix = path.suffix.removeprefix(".").lower()
    if suffix and suffix not in FORMATS:
        raise FigureError(
            f"{visible(path.name)!r} ends in .{visible(suffix)}; the ending must be one of {', '.join(FORMATS)}, "
            "or left out for all three"
        )
    formats = (suffix,) if suffix else FORMATS
    stem = path.with_suffix("") if suffix else path
    return write(contents(figure, formats, source=source, code=code, parquet=parquet), stem)


def write(files: Mapping[str, bytes], stem: Path) -> list[Path]:
    """Writes the `contents` of a figure under one name, all or none; FileError if a file cannot be written."""
    make_folder(stem.parent)
    return atomic_files({stem.with_name(f"{stem.name}.{ending}"): data for ending, data in files.items()})


def contents(
    figure: Figure,
    formats: Sequence[str] = FORMATS,
    *,
    source: Trace | Sequence[Trace] = (),
    code: str | os.PathLike[str] | None = None,
    parquet: bool = False,
) -> dict[str, bytes]:
    """The files that `save` would write, by file ending; the .json with their hashes is the last."""
    data = table(figure)
    provenance = origin(
        figure, data, [source] if isinstance(source, Trace) else check_items("source", source, low=0), code
    )
    files = images(figure, formats, provenance)
    files["csv"] = data
    if parquet:
        files["parquet"] = _parquet(figure)
    record = provenance | {
        "note": figure.note,
        "mm": [figure.width, figure.height],
        "sha256": {ending: sha256(image).hexdigest() for ending, image in files.items()},
    }
    files["json"] = (json.dumps(record, indent=1, sort_keys=True) + "\n").encode()
    return files


def table(figure: Figure) -> bytes:
    """Every number of a figure as CSV, one row for each drawn item, in the units of its axes.

    Texts are JSON strings with their quotes: they can be read back exactly, and a spreadsheet does not take a token
    such as `=1+2` for a formula.

    >>> curve = wb.figures.Line(x=[0, 1], y=[0.5, 1.0], name="p")
    >>> print(table(wb.figures.Figure(panels=[wb.figures.Panel(marks=[curve])])).decode())
    panel,mark,name,x,y,low,high,value,text
    0,line,\"""p\""",0,0.5,,,,
    0,line,\"""p\""",1,1,,,,
    <BLANKLINE>
    """
    out = StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(COLUMNS)
    for panel, mark, row in figure.numbers():
        numbers = ["" if x is None else f"{x:.17g}" if x != round(x) else f"{x:.0f}" for x in row[:-1]]
        writer.writerow([panel, mark.kind, json.dumps(mark.name), *map(_short, numbers), _quoted(row.text)])
    return out.getvalue().encode()


def _short(number: str) -> str:
    """The shortest text that is read back as the same number."""
    return repr(float(number)) if "." in number or "e" in number else number


def _quoted(text: str | None) -> str:
    return "" if text is None else json.dumps(text)


def _parquet(figure: Figure) -> bytes:
    pyarrow, parquet = (require(name, extra="export") for name in ("pyarrow", "pyarrow.parquet"))
    rows: list[dict[str, Any]] = [
        {"panel": panel, "mark": mark.kind, "name": mark.name, **row._asdict()} for panel, mark, row in figure.numbers()
    ]
    kinds = {"panel": pyarrow.int64(), "mark": pyarrow.string(), "name": pyarrow.string(), "text": pyarrow.string()}
    schema = pyarrow.schema([(column, kinds.get(column, pyarrow.float64())) for column in COLUMNS])
    out = pyarrow.BufferOutputStream()
    parquet.write_table(pyarrow.Table.from_pylist(rows, schema), out, write_page_checksum=True)
    return out.getvalue().to_pybytes()
