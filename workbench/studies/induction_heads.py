"""Which head follows which rule? Words drawn at random and said twice, beside the same words after other ones.

Heads that follow a rule, on words drawn at random and said twice, beside the same words after other ones.
The second half is the same in both: what a head gives to the place of a rule in the one and not in the other is due to
the words that return, not to the distance.
"""

from collections.abc import Sequence
from functools import cache

import numpy as np
import xarray as xr

import workbench as wb
from workbench.figures import Figure, beside, heatmap
from workbench.studies.held_out import tokenizer_of

N, PERIODS, LEAST = 16, (10, 30), 0.05
RULES = ("previous token", "duplicate token", "induction")


@cache
def runs(model: wb.Model) -> dict[int, list[tuple[wb.Trace, wb.Trace]]]:
    """By period: words said twice, and the same words after others."""
    rng, found = np.random.default_rng(5), {}
    pieces = tokenizer_of(model).str_tokens(range(len(tokenizer_of(model))))
    words = [i for i, text in enumerate(pieces) if text.strip().isalpha()]
    for period in PERIODS:
        for _ in range(N):
            said, other = rng.choice(words, (2, period), replace=False).tolist()
            both = (model.trace([*first, *said], record="attention") for first in (said, other))
            found.setdefault(period, []).append(tuple(both))
    return found


def told(trace: wb.Trace, period: int) -> list[np.ndarray]:
    """Of the second half: the mean mass on the place of each rule, and what a token gets of an even spread."""
    at, sink = np.arange(period, 2 * period), np.asarray(trace["sink"], float)[..., period:]
    patterns = np.stack([wb.attention.pattern(trace, layer).values for layer in range(trace.config["n_layers"])])
    on = [patterns[:, :, at, at - back].mean(-1) for back in (1, period, period - 1)]
    return [*on, ((1 - sink) / np.minimum(at + 1, trace.config["window"])).mean(-1)]


@cache
def measure(model: wb.Model) -> xr.Dataset:
    """`mass` on the place of a rule, and its `null` (sequence rule period layer head); `p`, adjusted for all tests."""
    both = np.array(
        [[[told(t, period) for t in pair] for period, pair in zip(PERIODS, g)] for g in zip(*runs(model).values())]
    )
    mass, null = both[:, :, 0, :3].swapaxes(1, 2), both[:, :, 1, [3, 1, 2]].swapaxes(1, 2)
    dims, coords = ("rule", "period", "layer", "head"), {"rule": list(RULES), "period": list(PERIODS)}
    data = {"mass": (("sequence", *dims), mass), "null": (("sequence", *dims), null)}
    return xr.Dataset(data | {"p": (dims, wb.statistics.westfall_young(mass - null))}, coords, {"n": N})


def followers(model: wb.Model) -> xr.DataArray:
    """Which heads follow which rule (rule period layer head): at least `LEAST` above the null, and p < 0.05."""
    return ((measure(model)["mass"] - measure(model)["null"]).mean("sequence") >= LEAST) & (measure(model)["p"] < 0.05)


def draw(model: wb.Model) -> tuple[Figure, Sequence[wb.Trace]]:
    """The figure, and the traces behind it."""
    sheets = []
    for rule, period in (("previous token", 10), ("duplicate token", 10), ("induction", 10), ("induction", 30)):
        one = {"rule": rule, "period": period}
        more = (measure(model)["mass"] - measure(model)["null"]).mean("sequence").sel(one)
        more = more.where(followers(model).sel(one)).assign_attrs(long_name="mass above the null", units="share")
        title = rule if rule == "previous token" else f"{rule}, period {period}"
        sheets.append(heatmap(more, written=True, low=0, title=title))
    figure = beside(
        *sheets,
        title="Induction in pocket is the work of layer 1, and reaches beyond the window",
        note=f"n = {N} sequences a period, of words drawn at random; window {model.config.window}, so sliding "
        "layers (0, 2, 4) see nothing 30 back. Null: the same words after other ones; of the previous token, an even "
        f"spread. Grey: not {LEAST} above it, or not p < 0.05 for all tests together (Westfall and Young, over "
        "sequences).",
        height=62,
    )
    return figure, [trace for pairs in runs(model).values() for pair in pairs for trace in pair]
