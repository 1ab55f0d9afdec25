"""Where can it be read off that a step will be taken back? A linear probe at its last token, layer by layer."""

from collections.abc import Sequence
from functools import cache

import numpy as np
import xarray as xr

import workbench as wb
from workbench.figures import Figure, line
from workbench.studies.wrong_steps import pairs, takes_back, written_on

FAMILIES, LENGTH, N, SEED = ("variables", "swaps"), 3, 28, "fresh"


@cache
def read(model: wb.Model, family: str, n: int = N, seed: str = SEED) -> list[wb.Trace]:
    """A step written rightly and one written wrongly in turn, of each problem: equal but for the last token."""
    texts = [ids for pair in pairs(family, n, LENGTH, seed) for ids in (pair.right, pair.wrong)]
    return [written_on(model, ids, "blocks.*.hook_resid_post") for ids in texts]


@cache
def measure(model: wb.Model, n: int = N, seed: str = SEED) -> dict[str, xr.Dataset]:
    """By family, a linear probe at the last token of each step for whether pocket takes the step back."""
    found = {}
    for family in FAMILIES:
        traces = read(model, family, n, seed)
        labels = [[None] * (len(t) - 3) + ["goes back" if takes_back(t) else "goes on", None, None] for t in traces]
        found[family] = wb.probes.linear_probe(traces, labels)
    return found


def draw(model: wb.Model) -> tuple[Figure, Sequence[wb.Trace]]:
    """The figure, and the traces behind it."""
    found = measure(model)
    figures = []
    for family, probe in found.items():
        names = ["the layer's stream", "token, position, length"]
        flat = np.full(probe.sizes["layer"], float(probe["baseline"]))
        two = xr.DataArray(
            [probe["accuracy"].values, flat],
            {"read": names, "layer": probe["layer"].values},
            ("read", "layer"),
            attrs={"long_name": f"{family}: share told rightly"},
        )
        bounds = [xr.DataArray([probe[end].values, flat], two.coords, two.dims) for end in ("low", "high")]
        figures.append(line(two, by="read", low=bounds[0], high=bounds[1], null=probe["null"]))
    figure = wb.figures.beside(
        *figures,
        title="A step back is read off early where names are compared, and late where numbers are",
        note=f"n = {N} held-out problems a family, each with one step written rightly and wrongly, alike but for its "
        "last token; the probe is tried on problems that it was not fitted on. Bands: 95 % intervals over problems; "
        "dashed: 95th percentile on shuffled labels.",
    )
    return figure, [trace for family in FAMILIES for trace in read(model, family)]
