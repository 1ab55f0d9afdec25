"""Which head follows which rule? Words drawn at random and said twice, beside the same words after other ones.

The second half is the same in both: what a head gives to the place of a rule in the one and not in the other is due to
the words that return, not to the distance.
"""

from _followers import LEAST, PERIODS, N, followers, measure, runs, told
from _runs import Sequence, main, pocket

import workbench as wb
from workbench.figures import Figure, beside, heatmap

__all__ = ["LEAST", "PERIODS", "N", "draw", "followers", "measure", "runs", "told"]


def draw() -> tuple[Figure, Sequence[wb.Trace]]:
    sheets = []
    for rule, period in (("previous token", 10), ("duplicate token", 10), ("induction", 10), ("induction", 30)):
        one = {"rule": rule, "period": period}
        more = (measure()["mass"] - measure()["null"]).mean("sequence").sel(one)
        more = more.where(followers().sel(one)).assign_attrs(long_name="mass above the null", units="share")
        title = rule if rule == "previous token" else f"{rule}, period {period}"
        sheets.append(heatmap(more, written=True, low=0, title=title))
    figure = beside(
        *sheets,
        title="Induction in pocket is the work of layer 1, and reaches beyond the window",
        note=f"n = {N} sequences a period, of words drawn at random; window {pocket().config.window}, so sliding "
        "layers (0, 2, 4) see nothing 30 back. Null: the same words after other ones; of the previous token, an even "
        f"spread. Grey: not {LEAST} above it, or not p < 0.05 for all tests together (Westfall and Young, over "
        "sequences).",
        height=62,
    )
    return figure, [trace for pairs in runs().values() for pair in pairs for trace in pair]


if __name__ == "__main__":
    main(__file__, draw)
