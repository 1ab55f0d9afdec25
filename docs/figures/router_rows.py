"""Which experts run? What a router's rows say of a token alone, beside the usual route of that token elsewhere."""

import numpy as np
from _foretold import WAYS, measure, traces
from _runs import CHAINS, Sequence, main, pocket

import workbench as wb
from workbench.figures import Figure, line

__all__ = ["WAYS", "draw", "measure", "traces"]


def draw() -> tuple[Figure, Sequence[wb.Trace]]:
    found = measure()
    sure = wb.statistics.mean(found["share"].values)
    figure = line(
        found["share"].mean("text").assign_attrs(long_name="of the experts that ran", units="share"),
        by="way",
        low=np.asarray(sure.low),
        high=np.asarray(sure.high),
        null=found["null"].mean("text"),
        title="The router's rows tell the routes of the first layer, and less above",
        note=f"n = {found.sizes['text']} held-out texts of {len(CHAINS)} families; bands: 95 % intervals over texts. "
        f"Four of {pocket().config.n_experts} experts run for a token. Chance: what the rows say of the same tokens in "
        "another order.",
    )
    return figure, traces()


if __name__ == "__main__":
    main(__file__, draw)
