"""What are experts about? What the choice of one tells about the kind of problem, and what is left given the token."""

from collections.abc import Sequence

import xarray as xr

import workbench as wb
from workbench.figures import Figure, line
from workbench.pocket.families import CHAINS
from workbench.studies.held_out import read

N, LENGTH = 6, 4


def draw(model: wb.Model) -> tuple[Figure, Sequence[wb.Trace]]:
    """The figure, and the traces behind it."""
    traces, labels = [], []
    for family in CHAINS:
        for one in read(model, family, N, LENGTH):
            thought = next(span for span in one.trace.spans if span.channel == "analysis")
            inside = range(thought.content_start, thought.content_stop)
            labels.append([family if pos in inside else None for pos in range(len(one.trace))])
            traces.append(one.trace)
    plain, given = (
        wb.routing.expert_specialization(traces, labels, condition_on_token=condition_on_token, shuffles=100)
        for condition_on_token in (False, True)
    )
    both = xr.concat([plain["information"], given["information"]], "about")
    both = both.assign_coords(about=["of the family", "of the family, the token known"])
    both = both.assign_attrs(long_name="information", units="bits")
    figure = line(
        both,
        by="about",
        null=given["null"],
        title="Experts of pocket know the kind of problem, beyond its tokens",
        note=f"n = {plain.attrs['n']} tokens of the analyses of {len(traces)} texts, {len(CHAINS)} families; less the "
        "mean of 100 shuffles of the tokens. Chance: the 95th percentile when whole texts exchange their families, the "
        "token known.",
    )
    return figure, traces
