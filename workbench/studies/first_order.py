"""Where attribution patching fails: its error where routes flip and where they do not, and with the routes held.

Pairs of texts that differ in one step's value, patched exactly and to first order, with routes free and held.
"""

from collections.abc import Callable, Sequence
from functools import cache
from random import Random

import numpy as np
import torch
import xarray as xr

import workbench as wb
from workbench.figures import Figure, bars, beside, scatter
from workbench.pocket.families import make, slips
from workbench.pocket.rendering import render

FAMILIES, N, LENGTH, SEED, SITE = ("variables", "lists"), 5, 4, "first order", "mlp_out"
COLUMNS = ("line", "exact", "held_line", "held_exact", "flips", "pair")
TOLD = ("flip", "same", "held_flip", "held_same", "flip_share", "same_share", "saved")


def pairs(family: str, n: int, length: int, seed: str) -> list[tuple[list[int], list[int]]]:
    """Held-out solutions, each right and with one step's value wrong, up to the first later token that hangs on it.

    The last tokens are what is to be predicted; all but the value is the same before.
    """
    rng, found = Random(f"{seed} {family}"), []
    while len(found) < n:
        problem = make(family, rng, length=length, split="test", wording=None)
        slip = rng.choice(slips(problem, rng, corrected=False))
        right, wrong = render(problem, "high"), render(problem.slipped(slip), "high")
        differ = [i for i, (a, b) in enumerate(zip(right.ids, wrong.ids)) if a != b]
        later = [i for i in differ if i >= right.steps[slip.number].stop]
        if later and later[0] > differ[0] + 2:
            found.append((list(right.ids[: later[0] + 1]), list(wrong.ids[: later[0] + 1])))
    return found


def held(trace: wb.Trace) -> Callable:
    """An edit for `blocks.*.mlp.hook_expert_indices`: the experts of that trace run; their weights are made anew."""
    experts = torch.tensor(np.array(trace["expert_indices"]))
    return lambda x, hook: experts[hook.layer, hook.positions.start : hook.positions.stop].expand_as(x).clone()


@cache
def measure(model: wb.Model, seed: str = SEED, n: int = N) -> tuple[xr.Dataset, tuple[wb.Trace, ...]]:
    """Every place of every pair: to first order and exact, both again with routes held, whether routes flip there."""
    rows, traces = [], []
    for clean, corrupted in (pair for family in FAMILIES for pair in pairs(family, n, LENGTH, seed)):
        asked = (model, clean[:-1], corrupted[:-1], wb.patching.logit_diff(model, clean[-1], corrupted[-1]))
        traces.append(model.trace(corrupted[:-1], record=""))
        line, exact = (
            wb.patching.attribution_patching(*asked, site=SITE),
            wb.patching.activation_patching(*asked, site=SITE),
        )
        if not exact.attrs["clean"] > 0 > exact.attrs["corrupted"]:
            continue  # what the model says next does not hang on that value
        with model.edit("blocks.*.mlp.hook_expert_indices", held(traces[-1])):
            again, truth = (
                wb.patching.attribution_patching(*asked, site=SITE),
                wb.patching.activation_patching(*asked, site=SITE),
            )
        columns = (line["effect"], exact, again["effect"], truth, line["flips"], 0 * exact + len(traces))
        rows.append([column.values.ravel() for column in columns])
    table = dict(zip(COLUMNS, np.concatenate(rows, 1), strict=True))
    found = xr.Dataset({name: ("place", column) for name, column in table.items()})
    return found.assign_attrs(n=len(rows), of=len(traces)), tuple(traces)


def errors(found: xr.Dataset) -> dict[str, wb.statistics.Interval]:
    """Mean error where routes flip and where not, free and held; both as shares of the effects; what holding saves."""
    flips, pair, size = found["flips"].values > 0, found["pair"].values, abs(found["exact"]).values
    free, kept = abs(found["line"] - found["exact"]).values, abs(found["held_line"] - found["held_exact"]).values

    def told(at: np.ndarray) -> np.ndarray:
        both = (at[flips[at]], at[~flips[at]])
        means = [error[here].mean() for error in (free, kept) for here in both]
        shares = [free[here].sum() / size[here].sum() for here in both]
        return np.array([*means, *shares, 1 - kept[both[0]].sum() / free[both[0]].sum()])

    sure = wb.statistics.bootstrap_interval(told, len(pair), pair, resamples=500)
    ends = np.array(sure[:3]).T  # what, then value, low and high
    return {name: sure._replace(value=v, low=a, high=b) for name, (v, a, b) in zip(TOLD, ends, strict=True)}


def draw(model: wb.Model) -> tuple[Figure, Sequence[wb.Trace]]:
    """The figure, and the traces behind it."""
    found, traces = measure(model)
    sure, flips = errors(found), found["flips"].values > 0
    four = [[sure[name] for name in names] for names in (("flip", "held_flip"), ("same", "held_same"))]
    coords = {"place": ["other experts", "same experts"], "routes": ["as they are", "held"]}
    mean = xr.DataArray(np.array([[each[:3] for each in row] for row in four]), coords, ("place", "routes", "bound"))
    value, low, high = mean.transpose("bound", ...)
    figure = beside(
        scatter(
            found["exact"].assign_attrs(long_name="patched (share of the gap)"),
            found["line"].assign_attrs(long_name="to first order (share of the gap)"),
            groups=["other experts in the two texts" if flip else "same experts" for flip in flips],
        ),
        bars(value.assign_attrs(long_name="mean error (share of the gap)"), by="routes", low=low, high=high),
        title="Where routes flip, attribution patching errs; with the routes held it errs as much",
        note=f"n = {found.attrs['n']} pairs of held-out texts ({', '.join(FAMILIES)}) that differ in the value of one "
        f"step; {len(flips)} places of {SITE}, other experts at {flips.mean():.0%}. 95 % intervals, cluster bootstrap "
        "over pairs. Held: both texts use the experts of the one that is patched, in patching and to first order.",
    )
    return figure, traces
