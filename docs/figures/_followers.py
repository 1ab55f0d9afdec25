"""Heads that follow a rule, on words drawn at random and said twice, beside the same words after other ones."""

from functools import cache

import numpy as np
import xarray as xr
from _runs import pocket

import workbench as wb

N, PERIODS, LEAST = 16, (10, 30), 0.05
RULES = ("previous token", "duplicate token", "induction")


@cache
def runs() -> dict[int, list[tuple[wb.Trace, wb.Trace]]]:
    """By period: words said twice, and the same words after others."""
    model, rng, found = pocket(), np.random.default_rng(5), {}
    words = [i for i, text in enumerate(model.tokenizer.pieces(range(len(model.tokenizer)))) if text.strip().isalpha()]
    for period in PERIODS:
        for _ in range(N):
            said, other = rng.choice(words, (2, period), replace=False).tolist()
            both = (model.trace([*first, *said], record="attention") for first in (said, other))
            found.setdefault(period, []).append(tuple(both))
    return found


def told(trace: wb.Trace, period: int) -> list[np.ndarray]:
    """Of the second half: the mean mass on the place of each rule, and what a token gets of an even spread."""
    at, sink = np.arange(period, 2 * period), np.asarray(trace["sink"], float)[..., period:]
    patterns = np.stack([wb.pattern(trace, layer).values for layer in range(trace.config["n_layers"])])
    on = [patterns[:, :, at, at - back].mean(-1) for back in (1, period, period - 1)]
    return [*on, ((1 - sink) / np.minimum(at + 1, trace.config["window"])).mean(-1)]


@cache
def measure() -> xr.Dataset:
    """`mass` on the place of a rule, and its `null` (sequence rule period layer head); `p`, adjusted for all tests."""
    both = np.array(
        [[[told(t, period) for t in pair] for period, pair in zip(PERIODS, g)] for g in zip(*runs().values())]
    )
    mass, null = both[:, :, 0, :3].swapaxes(1, 2), both[:, :, 1, [3, 1, 2]].swapaxes(1, 2)
    dims, coords = ("rule", "period", "layer", "head"), {"rule": list(RULES), "period": list(PERIODS)}
    data = {"mass": (("sequence", *dims), mass), "null": (("sequence", *dims), null)}
    return xr.Dataset(data | {"p": (dims, wb.statistics.max_t(mass - null))}, coords, {"n": N})


def followers() -> xr.DataArray:
    """Which heads follow which rule (rule period layer head): at least `LEAST` above the null, and p < 0.05."""
    return ((measure()["mass"] - measure()["null"]).mean("sequence") >= LEAST) & (measure()["p"] < 0.05)
