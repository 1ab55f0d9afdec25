"""Can an upcoming backtrack be decoded? A linear probe at the last token of a step, layer by layer."""

from collections.abc import Sequence
from functools import cache

import numpy as np
import xarray as xr

import workbench as wb
from workbench.figures import Figure, line
from workbench.studies.wrong_steps import takes_back, trace_with_wait, wrong_step_pairs

FAMILIES, LENGTH, N, SEED = ("variables", "swaps"), 3, 28, "fresh"


@cache
def step_traces(model: wb.Model, family: str, n: int = N, seed: str = SEED) -> list[wb.Trace]:
    """Traces of each problem up to one step, with the right and the wrong value in turn; only that token differs."""
    token_ids = [ids for pair in wrong_step_pairs(family, n, LENGTH, seed) for ids in (pair.right, pair.wrong)]
    return [trace_with_wait(model, ids, "blocks.*.hook_resid_post") for ids in token_ids]


@cache
def measure(model: wb.Model, n: int = N, seed: str = SEED) -> dict[str, xr.Dataset]:
    """By family, a linear probe at the last token of each step for whether pocket takes that step back."""
    probes = {}
    for family in FAMILIES:
        traces = step_traces(model, family, n, seed)
        labels = [[None] * (len(t) - 3) + ["backtracks" if takes_back(t) else "continues", None, None] for t in traces]
        probes[family] = wb.probes.linear_probe(traces, labels)
    return probes


def draw(model: wb.Model) -> tuple[Figure, Sequence[wb.Trace]]:
    """The figure, and the traces behind it."""
    probes = measure(model)
    figures = []
    for family, probe in probes.items():
        inputs = ["residual stream", "token, position, length"]
        baseline = np.full(probe.sizes["layer"], float(probe["baseline"]))
        accuracy = xr.DataArray(
            [probe["accuracy"].values, baseline],
            {"probe input": inputs, "layer": probe["layer"].values},
            ("probe input", "layer"),
            attrs={"long_name": f"{family}: accuracy"},
        )
        low, high = (
            xr.DataArray([probe[bound].values, baseline], accuracy.coords, accuracy.dims) for bound in ("low", "high")
        )
        figures.append(line(accuracy, by="probe input", low=low, high=high, null=probe["null"]))
    figure = wb.figures.beside(
        *figures,
        title="Backtracking is decodable early where names are compared, and late where numbers are compared",
        note=f"n = {N} held-out problems per family, each with the right and the wrong version of one step, which "
        "differ only in the last token; the probe is tested on problems it was not fitted on. Bands: 95 % intervals "
        "over problems; dashed: 95th percentile on shuffled labels.",
    )
    return figure, [trace for family in FAMILIES for trace in step_traces(model, family)]
