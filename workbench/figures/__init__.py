"""Figures for papers and for the screen: labeled arrays become a checked Figure, which becomes SVG, PDF, PNG or plotly.

    figure = wb.figures.heatmap(wb.attention.sink_mass(trace).mean("query"))
    wb.figures.save(figure, "sinks", source=trace)    # sinks.svg .pdf .png, and sinks.csv and sinks.json beside them
    figure.plotly()                                   # the same, interactive

A Figure holds only what is drawn. It is independent of any model, and both backends draw the same numbers.
"""

from workbench.figures.arrays import bars, heatmap, line, scatter, stacked
from workbench.figures.compose import above, beside
from workbench.figures.doses import dose
from workbench.figures.marks import Arcs, Bars, Blocks, Cells, Line, Points, Rule
from workbench.figures.provenance_record import provenance
from workbench.figures.saving import save
from workbench.figures.spec import WIDTHS, Axis, Figure, Panel
from workbench.figures.thoughts import step_matrix, strip

__all__ = [
    "WIDTHS",
    "Arcs",
    "Axis",
    "Bars",
    "Blocks",
    "Cells",
    "Figure",
    "Line",
    "Panel",
    "Points",
    "Rule",
    "above",
    "bars",
    "beside",
    "dose",
    "heatmap",
    "line",
    "provenance",
    "save",
    "scatter",
    "stacked",
    "step_matrix",
    "strip",
]


def __dir__() -> list[str]:  # tab completion lists the functions, not the submodules
    return __all__
