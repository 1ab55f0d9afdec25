"""A ModelReport as one HTML page without scripts: what was checked, by part, with what fails first."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

from workbench.files import atomic_write, make_folder
from workbench.model_check.line import FAILS, HOLDS, NOT_CHECKED, PARTS, Line
from workbench.paths import expanded
from workbench.text import html

if TYPE_CHECKING:
    from workbench.model_check.report import ModelReport

STYLE = """
:root { color-scheme: light dark; --line: #8884; --fails: #b3261e; --holds: #1b7f4b; --quiet: #777; }
@media (prefers-color-scheme: dark) { :root { --fails: #ff8a80; --holds: #7bd8a4; --quiet: #aaa; } }
body { font: 15px/1.45 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.4rem; margin-bottom: .2rem; } h2 { font-size: 1.1rem; margin: 2rem 0 .4rem; }
.verdict { font-size: 1.1rem; font-weight: 600; } .holds { color: var(--holds); } .fails { color: var(--fails); }
.quiet { color: var(--quiet); } code { overflow-wrap: anywhere; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: .25rem .6rem .25rem 0; border-bottom: 1px solid var(--line); vertical-align: top; }
th { font-weight: 600; } td.number { text-align: right; }
td.number, td.status { white-space: nowrap; } summary { cursor: pointer; }
"""


def save_page(report: "ModelReport", path: os.PathLike[str] | str) -> Path:
    """Writes the page and returns its path; an existing file is replaced."""
    target = expanded(path)
    make_folder(target.parent)
    return atomic_write(target, page(report))


def page(report: "ModelReport") -> str:
    """The page as a complete HTML document. Texts from files are escaped, and hidden characters made visible."""
    title = f"{html(str(report.model['name']))} checked by workbench"
    verdict = (
        '<span class="holds">Nothing fails.</span>'
        if report.ok
        else f'<span class="fails">{len(report.failed)} of {len(report.lines)} lines fail.</span>'
    )
    facts = {**report.model, **report.machine}
    about = "".join(f"<tr><th>{html(str(k))}</th><td><code>{html(str(v))}</code></td></tr>" for k, v in facts.items())
    sections = [_section("What fails", "", report.failed, is_open=True)] if report.failed else []
    for part, what in PARTS.items():
        if lines := report.select(part):
            bad = sum(line.status == FAILS for line in lines)
            sections.append(_section(part.capitalize(), f"{what}; {_counts(lines)}", lines, is_open=bad > 0))
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">\n"
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{title}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<h1>{title}</h1>\n"
        f'<p class="verdict">{verdict} <span class="quiet">{html(report.date)}</span></p>\n'
        f"<p>{_counts(report.lines)}. A line that is not checked says why.</p>\n{''.join(sections)}\n"
        f"<h2>Model and machine</h2>\n<table>{about}</table>\n</body>\n</html>\n"
    )


def _counts(lines: list[Line]) -> str:
    statuses = (HOLDS, FAILS, NOT_CHECKED)
    n = {status: sum(line.status == status for line in lines) for status in statuses}
    words = {HOLDS: "hold", FAILS: "fail", NOT_CHECKED: NOT_CHECKED}
    return ", ".join(f"{n[status]:,} {words[status] if n[status] > 1 else status}" for status in statuses if n[status])


def _section(name: str, about: str, lines: list[Line], *, is_open: bool) -> str:
    rows = "".join(map(_row, lines))
    head = "".join(f"<th>{name}</th>" for name in ("layer", "tensor", "status", "worst", "tolerance", "seconds", ""))
    n_lines = "1 line" if len(lines) == 1 else f"{len(lines)} lines"
    opened = " open" if is_open or len(lines) <= 30 else ""
    return (
        f'<h2>{html(name)}</h2>\n<p class="quiet">{html(about)}</p>\n<details{opened}><summary>{n_lines}'
        f"</summary>\n<table><tr>{head}</tr>{rows}</table></details>\n"
    )


def _row(line: Line) -> str:
    numbers = ("" if value is None else f"{value:.2g}" for value in (line.worst, line.tolerance))
    kind = line.status.replace(" ", "-")
    cells = (
        f"<td>{'' if line.layer is None else html(str(line.layer))}</td><td><code>{html(line.tensor)}</code></td>"
        f'<td class="status {html(kind)}">{html(line.status)}</td>'
    )
    cells += "".join(f'<td class="number">{text}</td>' for text in (*numbers, f"{line.seconds:.2f}"))
    return f"<tr>{cells}<td>{html(line.note)}</td></tr>"
