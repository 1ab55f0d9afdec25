"""Several figures on one sheet: their panels, under one title and one note."""

from dataclasses import replace

from workbench.checks import check_text, check_type
from workbench.figures.spec import WIDTHS, Figure


def beside(
    *figures: Figure, title: str = "", note: str = "", width: float = WIDTHS["page"], height: float | None = None
) -> Figure:
    """Figures side by side, from left to right, with one panel each; the title of each becomes that of its panel.

    Args:
        *figures: the figures, with one panel each.
        title: the title of the whole.
        note: the text below it.
        width: in mm.
        height: in mm; by default as high as the highest figure.

    >>> one = wb.figures.Figure(panels=[wb.figures.Panel(marks=[wb.figures.Rule(at=1.0)])], title="a")
    >>> beside(one, one).columns, beside(one, one).panels[1].title
    (2, 'a')

    Raises FigureError without figures.
    """
    return _together(figures, len(figures), title, note, width, height)


def above(
    *figures: Figure, title: str = "", note: str = "", width: float = WIDTHS["text"], height: float | None = None
) -> Figure:
    """Figures from top to bottom, with their heights in proportion.

    Args:
        *figures: the figures.
        title: the title of the whole.
        note: the text below it.
        width: in mm.
        height: in mm; by default as high as the figures together.

    >>> one = wb.figures.Figure(panels=[wb.figures.Panel(marks=[wb.figures.Rule(at=1.0)])], height=30)
    >>> above(one, one).height, above(one, one).columns
    (60.0, 1)

    Raises FigureError without figures.
    """
    return _together(figures, 1, title, note, width, height)


def _together(
    figures: tuple[Figure, ...], columns: int, title: str, note: str, width: float, height: float | None
) -> Figure:
    panels, rows, notes = [], [], []
    title, note = check_text("title", title), check_text("note", note)
    for figure in figures:
        check_type("a sheet of figures", figure, Figure)
        titled = figure.panels if len(figure.panels) > 1 else [replace(figure.panels[0], title=figure.title)]
        panels += titled
        total = sum(figure.rows)
        rows += [(figure.height or 0) * row / total for row in figure.rows]
        notes.append(figure.note)
    note = note or " ".join(dict.fromkeys(text for text in notes if text))
    if columns > 1:
        max_height = max((figure.height or 0 for figure in figures), default=0)
        return Figure(
            panels=panels,
            title=title,
            note=note,
            width=width,
            height=max_height if height is None else height,
            columns=columns,
        )
    return Figure(
        panels=panels, title=title, note=note, width=width, height=sum(rows) if height is None else height, rows=rows
    )
