"""Does it switch experts when it stops thinking? How the answer is routed, and what of that is the channel's doing."""

import json
from pathlib import Path

import numpy as np
import xarray as xr
from _channels import LENGTH, SEED, N, measure
from _runs import CHAINS, Sequence, main, read

import workbench as wb
from workbench.figures import Axis, Figure, Line, Panel, Rule, above, bars

REFERENCE = json.loads((Path(__file__).parents[2] / "data/reference/gpt-oss-20b-routing.json").read_text())


def draw() -> tuple[Figure, Sequence[wb.Trace]]:
    found = measure()
    lines = []
    for color, name in enumerate(found["compared"].values[[0, 1, 4]]):
        sure = wb.statistics.mean(found["drift"].sel(compared=name).values)
        lines.append(Line(x=_depth(6), y=sure.value, low=sure.low, high=sure.high, name=name, color=color))
    large = np.array(REFERENCE["analysis_final_jsd_bits"])
    lines.append(Line(x=_depth(24), y=large, name="gpt-oss-20b, all words", color=3))
    panel = Panel(
        marks=[Rule(at=0.0, text="no more than chance"), *lines],
        x=Axis(label="depth (0 is the first layer, 1 the last)"),
        y=Axis(label="divergence from the analysis (bits)"),
    )
    sure = wb.statistics.mean(found["drift"].mean("layer").values.T)
    mean = xr.DataArray(
        sure.value, {"compared": found["compared"].values}, attrs={"long_name": "mean of the layers (bits)"}
    )
    figure = above(
        Figure(panels=[panel], height=62),
        bars(mean, low=sure.low, high=sure.high, height=45, null=found["null"].mean("layer").values),
        title="The answer has experts of its own, and hardly for being called the answer",
        note=f"n = {found.attrs['n']} held-out problems of each of {len(CHAINS)} families; 95 % intervals over "
        "problems, jackknife. Jensen-Shannon divergence of expert loads, less the mean over positions dealt out anew; "
        "chance: their 95th percentile. By word: each token counts alike on both sides. Renamed: the header says "
        "analysis; within: no header, the answer ends the analysis. Last step: against those before it, by word. Other "
        "problems: analyses of two families, by word. gpt-oss-20b: public counts of 36,000 prompts (Priyanshu and "
        "Vijay 2025, Apache-2.0), generated tokens, not matched by token, nothing taken off. Layers of two models are "
        "not the same.",
    )
    return figure, [one.trace for family in CHAINS for one in read(family, N, LENGTH, "", seed=SEED)]


def _depth(layers: int) -> np.ndarray:
    return np.linspace(0, 1, layers)


if __name__ == "__main__":
    main(__file__, draw)
