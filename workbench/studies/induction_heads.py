"""Previous-token, duplicate-token and induction heads, on sequences of random words that are repeated once.

The null is the same second half after a first half of other words. If a head attends to the position of a rule in the
repeated sequence but not in the null, the cause is the repeated words, not the distance.
"""

from collections.abc import Sequence
from functools import cache

import numpy as np
import xarray as xr

import workbench as wb
from workbench.figures import Figure, beside, heatmap
from workbench.studies.held_out import tokenizer_of

N, PERIODS, MIN_MASS = 16, (10, 30), 0.05
RULES = ("previous token", "duplicate token", "induction")


@cache
def runs(model: wb.Model) -> dict[int, list[tuple[wb.Trace, wb.Trace]]]:
    """By period: traces of a repeated sequence of words, and of the same words after other words."""
    rng, by_period = np.random.default_rng(5), {}
    str_tokens = tokenizer_of(model).str_tokens(range(len(tokenizer_of(model))))
    words = [i for i, text in enumerate(str_tokens) if text.strip().isalpha()]
    for period in PERIODS:
        for _ in range(N):
            repeated, other = rng.choice(words, (2, period), replace=False).tolist()
            pair = (model.trace([*first, *repeated], record="attention") for first in (repeated, other))
            by_period.setdefault(period, []).append(tuple(pair))
    return by_period


def masses(trace: wb.Trace, period: int) -> list[np.ndarray]:
    """Mean attention of the second half by rule, and the attention to each key if evenly spread (each: layer head)."""
    at, sink = np.arange(period, 2 * period), np.asarray(trace["sink"], float)[..., period:]
    patterns = np.stack([wb.attention.pattern(trace, layer).values for layer in range(trace.config["n_layers"])])
    by_rule = [patterns[:, :, at, at - back].mean(-1) for back in (1, period, period - 1)]
    return [*by_rule, ((1 - sink) / np.minimum(at + 1, trace.config["window"])).mean(-1)]


@cache
def measure(model: wb.Model) -> xr.Dataset:
    """Attention by rule: `mass` and its `null` (sequence rule period layer head), and `p`, adjusted for all tests."""
    pairs = np.array(
        [
            [[masses(t, period) for t in pair] for period, pair in zip(PERIODS, group)]
            for group in zip(*runs(model).values())
        ]
    )
    mass, null = pairs[:, :, 0, :3].swapaxes(1, 2), pairs[:, :, 1, [3, 1, 2]].swapaxes(1, 2)
    dims, coords = ("rule", "period", "layer", "head"), {"rule": list(RULES), "period": list(PERIODS)}
    data = {"mass": (("sequence", *dims), mass), "null": (("sequence", *dims), null)}
    return xr.Dataset(data | {"p": (dims, wb.statistics.westfall_young(mass - null))}, coords, {"n": N})


def followers(model: wb.Model) -> xr.DataArray:
    """Which heads follow which rule (rule period layer head): at least MIN_MASS above the null, and p < 0.05."""
    above_null = (measure(model)["mass"] - measure(model)["null"]).mean("sequence")
    return (above_null >= MIN_MASS) & (measure(model)["p"] < 0.05)


def induction_layers(model: wb.Model) -> list[int]:
    """The layers with heads that attend to the token after an earlier occurrence, beyond the window."""
    beyond = max(PERIODS)
    return np.flatnonzero(followers(model).sel(rule="induction", period=beyond).any("head").values).tolist()


def draw(model: wb.Model) -> tuple[Figure, Sequence[wb.Trace]]:
    """The figure, and the traces behind it."""
    figures = []
    for rule, period in (("previous token", 10), ("duplicate token", 10), ("induction", 10), ("induction", 30)):
        at = {"rule": rule, "period": period}
        above_null = (measure(model)["mass"] - measure(model)["null"]).mean("sequence").sel(at)
        above_null = above_null.where(followers(model).sel(at))
        above_null = above_null.assign_attrs(long_name="mass above the null", units="share")
        title = rule if rule == "previous token" else f"{rule}, period {period}"
        figures.append(heatmap(above_null, written=True, low=0, title=title))
    layers = ", ".join(map(str, induction_layers(model)))
    sliding = [str(i) for i, kind in enumerate(model.config.layer_types) if kind.startswith("sliding")]
    figure = beside(
        *figures,
        title=f"The induction heads of pocket are in layer {layers}, and reach beyond the window",
        note=f"n = {N} sequences of random words per period; window {model.config.window}, so sliding layers "
        f"({', '.join(sliding)}) cannot attend 30 tokens back. Null: the same words after other words; for the "
        f"previous token, evenly spread attention. Gray: less than {MIN_MASS} above the null, or adjusted p of 0.05 or "
        "more (Westfall and Young, over sequences, for all tests).",
        height=62,
    )
    return figure, [trace for pairs in runs(model).values() for pair in pairs for trace in pair]
