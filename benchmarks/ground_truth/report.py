"""The tables of docs/ground_truth.md, from the figures of all rows."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.ground_truth.measure import COLUMNS
from benchmarks.ground_truth.methods import QUESTION_RULE
from workbench.errors import FileError
from workbench.files import atomic_write
from workbench.pocket.families import DAGS, of_row

BEGIN, END = "<!-- from the figures of benchmarks.ground_truth -->", "<!-- end -->"
Figures = Mapping[str, Any]  # what `measure.measure_row` returns


def tables(figures: Mapping[str, Figures]) -> str:
    """All tables as Markdown, from the figures of each row: the content of the JSON file."""
    balanced = {row: of for row, of in figures.items() if of_row(row, trained=False)[0] in DAGS}
    older = {row: of for row, of in figures.items() if row not in balanced}
    parts = [about(next(iter(figures.values()))["settings"])]
    for heading, rows in (("Balanced families", balanced), ("Older families", older)):
        if rows:
            parts += [f"## {heading}", summary(rows)]
            parts += [f"### {heading}: {column}\n\n{main_table(rows, column)}" for column in COLUMNS]
    parts += ["## By length", by_length(figures)]
    return "\n\n".join(parts) + "\n"


def about(settings: Mapping[str, Any]) -> str:
    """What the figures were made with."""
    name, digest = settings["model"]
    return (
        f"{settings['n']} problems per row, {settings['seed']} seed, on `{name}` ({digest[:19]}…). AUROC with 95 % "
        "intervals, cluster bootstrap over problems. Bold: above every baseline of the row that reads the chain alone, "
        "by the lower bound of the paired difference."
    )


def summary(figures: Mapping[str, Figures]) -> str:
    """Which methods are above all baselines of their row, and how far the best method is from the best baseline."""
    header = ["row", "compared", "best baseline", "best method", "difference", "above every baseline"]
    rows = []
    for row, of in figures.items():
        for column in COLUMNS:
            cell = of[column]
            differences = {name: d for name, d in cell["above best baseline"].items() if d[0] is not None}
            if not differences:
                continue  # no used and unused pair can be compared
            best, baseline = max(differences, key=lambda name: differences[name][0]), cell["best baseline"]
            rows.append(
                [
                    row,
                    column,
                    f"{baseline}: {_area(cell['auroc'][baseline])}",
                    f"{best}: {_area(cell['auroc'][best])}",
                    _difference(differences[best]),
                    ", ".join(cell["works"]) or "none",
                ]
            )
    return _markdown(header, rows)


def main_table(figures: Mapping[str, Figures], column: str) -> str:
    """A line for each baseline and method. Bold: above every baseline of the row."""
    first = next(iter(figures.values()))
    longest = max(first["lengths"], key=int)
    header = ["", "needs", f"passes (length {longest})", *figures]
    rows = [
        [name, "chain", "0", *(_area(of[column]["auroc"][name]) for of in figures.values())]
        for name in first["baselines"]
    ]
    if any(QUESTION_RULE in of[column]["auroc"] for of in figures.values()):
        areas = [of[column]["auroc"].get(QUESTION_RULE) for of in figures.values()]
        rows.append([f"{QUESTION_RULE} (not a baseline)", "question", "0", *map(_area, areas)])
    for name, needs in first["needs"].items():
        cells = []
        for of in figures.values():
            text = _area(of[column]["auroc"][name])
            share = of["scored_pairs"][name]
            text = f"**{text}**" if name in of[column]["works"] else text
            cells.append(f"{text}; {100 * share:.0f} % of pairs" if share < 1 and text != "—" else text)
        rows.append([name, needs, f"{first['passes'][name][longest]:.1f}", *cells])
    return _markdown(header, rows)


def by_length(figures: Mapping[str, Figures]) -> str:
    """AUROC over all pairs of the best baseline and of every method, for each length."""
    names = list(next(iter(figures.values()))["needs"])
    rows = []
    for row, of in figures.items():
        for length, by_column in of["lengths"].items():
            cell = by_column["all pairs"]
            areas = [cell["auroc"][name][0] for name in (cell["best baseline"], *names)]
            rows.append([row, length, *("—" if area is None else f"{area:.2f}" for area in areas)])
    return _markdown(["row", "length", "best baseline", *names], rows)


def write_page(page: Path, text: str) -> None:
    """Replaces what stands between the two markers of a page.

    Raises FileError if the page does not exist or lacks the markers.
    """
    content = page.read_text("utf-8") if page.is_file() else ""
    before, begin, rest = content.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise FileError(f"{page} must exist and contain the lines {BEGIN!r} and {END!r}; add them around the tables.")
    atomic_write(page, f"{before}{begin}\n\n{text}\n{end}{after}")


def _area(numbers: Sequence[float | None] | None) -> str:
    if numbers is None or numbers[0] is None:
        return "—"
    value, low, high = numbers
    return f"{value:.2f} ({low:.2f}–{high:.2f})"


def _difference(numbers: Sequence[float]) -> str:
    value, low, high = numbers
    return f"{value:+.2f} ({low:+.2f} to {high:+.2f})"


def _markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
