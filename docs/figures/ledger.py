"""Where does attention go? The ledger of every layer: sink, self, first token, window, and what lies beyond it."""

import xarray as xr
from _runs import CHAINS, Sequence, main, read

import workbench as wb
from workbench.figures import Figure, stacked

N, LENGTH = 6, 4
PARTS = {
    "sink": "the sink",
    "self": "itself",
    "first": "the first token",
    "local": "the window",
    "beyond": "beyond the window",
}


def draw() -> tuple[Figure, Sequence[wb.Trace]]:
    traces = [one.trace for family in CHAINS for one in read(family, N, LENGTH)]
    ledgers = xr.concat([wb.attention_ledger(trace) for trace in traces], "text")
    mean = ledgers[list(PARTS)].mean(("text", "head")).to_dataarray("part").assign_coords(part=list(PARTS.values()))
    kinds = traces[0].config["layer_types"]
    mean = mean.assign_coords(layer=[f"{i} {kind.split('_')[0]}" for i, kind in enumerate(kinds)])
    by_text = ledgers["beyond"].sel(layer=[i for i, kind in enumerate(kinds) if kind[0] == "f"]).mean(("head", "layer"))
    sure = wb.statistics.mean(by_text.values)
    figure = stacked(
        mean.assign_attrs(long_name="share of attention", units="1"),
        by="part",
        title="What full layers of pocket are for: beyond the window",
        note=f"n = {len(traces)} texts of {len(CHAINS)} families, means over queries, heads and texts; window "
        f"{traces[0].config['window']}. Beyond it, in full layers: {sure.value:.2f} ({sure.low:.2f} to {sure.high:.2f}"
        ", 95 %, over texts); in sliding layers 0 by construction.",
        height=62,
    )
    return figure, traces


if __name__ == "__main__":
    main(__file__, draw)
