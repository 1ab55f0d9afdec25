"""Snapshots: static versions of views, as rows of HTML with small pictures. This module is independent of traces.

A notebook saves them in its outputs. They are visible without a kernel, untrusted, on GitHub and in nbconvert's pages.
Programs that show notebooks run MathJax over HTML, which would turn `$5 and $7` of a model's text into a formula. It
skips <pre> and <code>, which every sanitizer keeps: texts are in <pre>, which also keeps white space, and labels with
such characters in <code>.
"""

from dataclasses import dataclass

from workbench.text import html_of_shown
from workbench.views.snapshot_png import WIDTH, bars, columns, data_url, heat, png
from workbench.views.snapshot_svg import Drawing

__all__ = ["WIDTH", "Drawing", "Row", "bars", "columns", "cut", "heat", "label_html", "png", "table"]
# Where styles are kept. JupyterLab paints <pre> white, over the stripes of its tables.
_WRAP = "white-space: pre-wrap; word-break: normal; overflow-wrap: anywhere; background-color: transparent"


def cut(text: str, max_length: int) -> str:
    """The text, or its first `max_length` characters and "…" if it is longer."""
    return text if len(text) <= max_length else text[:max_length] + "…"


@dataclass(frozen=True, slots=True)
class Row:
    """One row of a snapshot: label, unit, a picture (PNG or drawing) or a text, and the range of its scale.

    Text of a model in a row has gone through `workbench.text.visible`.
    """

    label: str
    unit: str = ""
    png: bytes = b""
    text: str = ""
    scale: str = ""
    height: int = 16
    drawing: Drawing | None = None


def table(rows: list[Row]) -> str:
    """The rows as an HTML table, without script and class, which notebook viewers remove."""
    return "<table>" + "".join(map(_row, rows)) + "</table>"


def _row(row: Row) -> str:
    picture, alt = "", html_of_shown(row.label)
    if row.png:
        picture = f'<img src="{data_url(row.png)}" alt="{alt}" width="{WIDTH}" height="{row.height}">'
    if row.drawing:
        picture = f'<img src="{row.drawing.url}" alt="{alt}" width="{row.drawing.width}" height="{row.drawing.height}">'
    label, unit, scale = map(label_html, (row.label, row.unit, row.scale))
    small = f"<br><small>{unit}</small>" if row.unit else ""
    text = f'<pre style="{_WRAP}">{html_of_shown(row.text)}</pre>' if row.text else ""
    return (  # a div in each cell, because Jupyter's style aligns cells to the right
        f'<tr><th scope="row"><div align="right">{label}{small}</div></th><td><div align="left">{picture}'
        f'{text}</div></td><td><div align="left"><small>{scale}</small></div></td></tr>'
    )


def label_html(shown: str) -> str:
    """A short text as HTML in which MathJax finds no formula, and which keeps white space.

    >>> label_html("entropy, nats"), label_html("$p$")
    ('entropy, nats', '<code>$p$</code>')
    """
    text = html_of_shown(shown)
    return f"<code>{text}</code>" if any(mark in text for mark in ("$", "\\", "  ")) else text
