"""Information of the expert choice about the kind of problem: plain, and conditioned on the token."""

from collections.abc import Sequence

import xarray as xr

import workbench as wb
from workbench.figures import Figure, line
from workbench.pocket.families import CHAINS
from workbench.studies.held_out import traced_problems

N, LENGTH = 6, 4


def draw(model: wb.Model) -> tuple[Figure, Sequence[wb.Trace]]:
    """The figure, and the traces behind it."""
    traces, labels = [], []
    for family in CHAINS:
        for one in traced_problems(model, family, N, LENGTH):
            thought = next(span for span in one.trace.spans if span.channel == "analysis")
            inside = range(thought.content_start, thought.content_stop)
            labels.append([family if pos in inside else None for pos in range(len(one.trace))])
            traces.append(one.trace)
    plain, conditional = (
        wb.routing.expert_specialization(traces, labels, condition_on_token=condition_on_token, n_shuffles=100)
        for condition_on_token in (False, True)
    )
    information = xr.concat([plain["information"], conditional["information"]], "about")
    information = information.assign_coords(about=["the family", "the family, given the token"])
    information = information.assign_attrs(long_name="mutual information", units="bits")
    figure = line(
        information,
        by="about",
        null=conditional["null"],
        title="In pocket, the expert choice carries information about the kind of problem beyond the token",
        note=f"n = {plain.attrs['n']} tokens of the analyses of {len(traces)} texts, {len(CHAINS)} families; minus the "
        "mean of 100 shuffles of the tokens. Chance: the 95th percentile with families shuffled among whole texts, "
        "given the token.",
    )
    return figure, traces
