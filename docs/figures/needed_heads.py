"""Which heads can pocket not do without? Additions that it would still write word by word with one head silenced.

One pass tells: greedy text is the text that was read if, and only if, each of its tokens is the likeliest in its place.
"""

import numpy as np
from _runs import Sequence, main, read
from _silenced import FAMILY, LENGTH, SEED, N, measure

import workbench as wb
from workbench.figures import Figure, heatmap

__all__ = ["FAMILY", "LENGTH", "SEED", "N", "draw", "measure"]


def draw() -> tuple[Figure, Sequence[wb.Trace]]:
    found = measure()
    missed = ", ".join(f"{layer}.{head}" for layer, head in np.argwhere((found["p"] < 0.05).values))
    figure = heatmap(
        found["kept"].assign_attrs(long_name="still written", units="share"),
        written=True,
        low=0,
        high=1,
        title="Heads without which pocket writes sums differently",
        note=f"n = {N} held-out additions of {LENGTH} digits; {int(found['whole'].sum())} are written word by word "
        f"with all heads. Missed, with p < 0.05 for all together (Westfall and Young, over texts): {missed}. "
        f"Intervals are at most {float((found['high'] - found['low']).max()):.2f} wide (Wilson, 95 %).",
        height=75,
        width=wb.figures.WIDTHS["column"],
    )
    return figure, [one.trace for one in read(FAMILY, N, LENGTH, "", SEED)]


if __name__ == "__main__":
    main(__file__, draw)
