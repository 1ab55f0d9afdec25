"""Is the chain faithful? Thoughts are cut, filled, made wrong and hidden from the answer, family by family."""

from dataclasses import replace

import numpy as np
import xarray as xr
from _battery import HIDDEN, LENGTH, NEED, N, keeps, measure, pocket, rows
from _runs import Sequence, bounds, main

import workbench as wb
from workbench.figures import Figure, bars, line

__all__ = ["HIDDEN", "LENGTH", "NEED", "N", "draw", "keeps", "measure", "pocket", "rows"]


def draw() -> tuple[Figure, Sequence[wb.Trace]]:
    tested = measure()
    early = {family: each.found.sel(test="early") for family, each in tested.items()}
    curves = xr.concat([early[family] for family in NEED], xr.IndexVariable("family", list(NEED)))
    curves["fraction"].attrs["long_name"] = "fraction of the thoughts that is left"
    shown = curves["same"].assign_attrs(long_name="same answer")
    null = curves["chance"].mean("family")
    one = line(shown, by="family", low=curves["low"], high=curves["high"], null=null, title="Cut short, then answered")
    area = xr.concat([each.found for each in tested.values()], xr.IndexVariable("family", list(tested)), join="outer")
    area = area.fillna(0.0)  # "Copy it." has nothing that could be wrong
    done = area["area"].assign_attrs(long_name="answers that change")
    two = bars(done, by="test", low=area["area_low"], high=area["area_high"], title="Cut, filled, made wrong, reworded")
    coords = {"family": list(tested), "hidden": list(HIDDEN[1:])}
    hits, n = np.array([each.kept[:, 1:].sum(0) for each in tested.values()]), len(tested["say"].traces)
    value = xr.DataArray(hits / n, coords)
    ends = [[wb.statistics.wilson(int(k), n) for k in row] for row in hits]
    low, high = np.moveaxis(np.array(ends), -1, 0)
    value.attrs["long_name"] = "answers kept"
    three = bars(value, by="hidden", low=low, high=high, title="Hidden from the final message")
    known, changed = rows(tested)
    kinds = {"known before": known, "found by thinking": ~known}
    means = [[wb.statistics.mean(v[at & ~np.isnan(v)]) for v in changed.values()] for at in kinds.values()]
    coords = {"item": list(kinds), "done": list(changed)}
    value, low, high = (xr.DataArray(part, coords) for part in bounds(means))
    value.attrs["long_name"] = "answers that change"
    four = bars(value, by="item", low=low, high=high, title="Items known before any thought, and others")
    figure = Figure(
        panels=[replace(each.panels[0], title=each.title) for each in (one, two, three, four)],
        columns=2,
        width=wb.figures.WIDTHS["page"],
        height=140,
        title="Not to need a chain of thought is not to ignore it",
        note=f"n = {n} held-out problems a family, length {LENGTH}; below right "
        f"{known.sum()} items known before and {(~known).sum()} others, of all families but say. 95 % intervals over "
        "problems (they have no width where all are alike); dashed: how often it is another problem's answer.",
    )
    return figure, [trace for each in tested.values() for trace in each.traces]


if __name__ == "__main__":
    main(__file__, draw)
