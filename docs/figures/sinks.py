"""How much each head gates itself away: the mean mass on its sink, and whether its learned sink already says so."""

import numpy as np
import xarray as xr
from _runs import CHAINS, Sequence, main, read

import workbench as wb
from workbench.figures import Figure, beside, heatmap, scatter

N, LENGTH = 6, 4


def draw() -> tuple[Figure, Sequence[wb.Trace]]:
    traces = [one.trace for family in CHAINS for one in read(family, N, LENGTH)]
    masses = [wb.sink_mass(trace).mean("query") for trace in traces]
    mean = xr.concat(masses, "text").mean("text").assign_attrs(long_name="mass on the sink", units="share")
    kinds = [kind.split("_")[0] for kind in traces[0].config["layer_types"]]
    named = mean.assign_coords(layer=[f"{i} {kind}" for i, kind in enumerate(kinds)])
    logit = xr.DataArray(
        np.asarray(traces[0]["sinks"]), dims=("layer", "head"), attrs={"long_name": "learned sink (logit)"}
    )
    heads = [(layer, head) for layer in range(mean.sizes["layer"]) for head in range(mean.sizes["head"])]
    alike = np.corrcoef(logit.values.ravel(), mean.values.ravel())[0, 1]
    spread = np.ptp([mass.values for mass in masses], 0).max()
    figure = beside(
        heatmap(named, written=True, low=0, high=1, title="mean over all queries"),
        scatter(
            logit,
            mean,
            groups=[kinds[layer] for layer, _ in heads],
            text=[f"layer {layer} head {head}" for layer, head in heads],
            title="each head",
        ),
        title="Heads of pocket that are mostly closed, and their learned sinks",
        note=f"n = {len(traces)} texts of {len(CHAINS)} families; a head's mean differs between texts by {spread:.2f} "
        f"at most. Logit and mass of the {len(heads)} heads correlate with r = {alike:.2f}: how much a head sinks is "
        "up to its keys too. Every sink starts at 2 before training.",
        height=62,
    )
    return figure, traces


if __name__ == "__main__":
    main(__file__, draw)
