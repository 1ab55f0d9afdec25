"""The error of attribution patching where routing flips, where it does not, and with frozen routing.

Pairs of texts that differ in one step's value: activation patching and its first-order approximation, each with
recomputed and with frozen routing.
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
COLUMNS = ("first_order", "exact", "frozen_first_order", "frozen_exact", "flips", "pair")
STATISTICS = ("flip", "same", "frozen_flip", "frozen_same", "flip_share", "same_share", "reduction")


def text_pairs(family: str, n: int, length: int, seed: str) -> list[tuple[list[int], list[int]]]:
    """Token ids of held-out solutions, right and with one wrong value, up to the first later token that differs.

    The last token is the one to predict; before it, the two texts differ in the value only.
    """
    rng, result = Random(f"{seed} {family}"), []
    while len(result) < n:
        problem = make(family, rng, length=length, split="test", wording=None)
        slip = rng.choice(slips(problem, rng, corrected=False))
        right, wrong = render(problem, "high"), render(problem.slipped(slip), "high")
        differ = [i for i, (a, b) in enumerate(zip(right.ids, wrong.ids)) if a != b]
        later = [i for i in differ if i >= right.steps[slip.number].stop]
        if later and later[0] > differ[0] + 2:
            result.append((list(right.ids[: later[0] + 1]), list(wrong.ids[: later[0] + 1])))
    return result


def frozen_experts(trace: wb.Trace) -> Callable:
    """An edit for `blocks.*.mlp.hook_expert_indices`: the experts of `trace` run; their weights are recomputed."""
    experts = torch.tensor(np.array(trace["expert_indices"]))
    return lambda x, hook: experts[hook.layer, hook.positions.start : hook.positions.stop].expand_as(x).clone()


@cache
def measure(model: wb.Model, seed: str = SEED, n: int = N) -> tuple[xr.Dataset, tuple[wb.Trace, ...]]:
    """Patching effects (COLUMNS) at every layer and position of every pair, and the traces of the corrupted texts.

    Returns a Dataset over location (one layer and position of one pair), with attrs `n`, the number of pairs, and `of`,
    the number before pairs were dropped in which the prediction does not depend on the value; and the traces.
    """
    rows, traces = [], []
    for clean, corrupted in (pair for family in FAMILIES for pair in text_pairs(family, n, LENGTH, seed)):
        arguments = (model, clean[:-1], corrupted[:-1], wb.patching.logit_diff(model, clean[-1], corrupted[-1]))
        traces.append(model.trace(corrupted[:-1], record=""))
        first_order = wb.patching.attribution_patching(*arguments, site=SITE)
        exact = wb.patching.activation_patching(*arguments, site=SITE)
        if not exact.attrs["clean"] > 0 > exact.attrs["corrupted"]:
            continue  # the model's prediction does not depend on that value
        with model.edit("blocks.*.mlp.hook_expert_indices", frozen_experts(traces[-1])):
            frozen_first_order = wb.patching.attribution_patching(*arguments, site=SITE)
            frozen_exact = wb.patching.activation_patching(*arguments, site=SITE)
        effects = (first_order["effect"], exact, frozen_first_order["effect"], frozen_exact)
        columns = (*effects, first_order["flips"], 0 * exact + len(traces))
        rows.append([column.values.ravel() for column in columns])
    table = dict(zip(COLUMNS, np.concatenate(rows, 1), strict=True))
    locations = xr.Dataset({name: ("location", column) for name, column in table.items()})
    return locations.assign_attrs(n=len(rows), of=len(traces)), tuple(traces)


def errors(locations: xr.Dataset) -> dict[str, wb.statistics.Interval]:
    """The error of the first-order approximation (STATISTICS), with intervals over pairs.

    `flip` and `same` are mean absolute errors where routing flips and where it does not, `frozen_…` the same with
    frozen routing, `…_share` the summed error divided by the summed effect, and `reduction` the share of the error
    that frozen routing removes where routing flips.
    """
    flips, pair, size = locations["flips"].values > 0, locations["pair"].values, abs(locations["exact"]).values
    free = abs(locations["first_order"] - locations["exact"]).values
    frozen = abs(locations["frozen_first_order"] - locations["frozen_exact"]).values

    def statistics(rows: np.ndarray) -> np.ndarray:
        groups = (rows[flips[rows]], rows[~flips[rows]])
        means = [error[group].mean() for error in (free, frozen) for group in groups]
        shares = [free[group].sum() / size[group].sum() for group in groups]
        return np.array([*means, *shares, 1 - frozen[groups[0]].sum() / free[groups[0]].sum()])

    interval = wb.statistics.bootstrap_interval(statistics, len(pair), pair, resamples=500)
    bounds = np.array(interval[:3]).T  # (statistic, then value, low and high)
    return {name: interval._replace(value=v, low=a, high=b) for name, (v, a, b) in zip(STATISTICS, bounds, strict=True)}


def draw(model: wb.Model) -> tuple[Figure, Sequence[wb.Trace]]:
    """The figure, and the traces behind it."""
    locations, traces = measure(model)
    error, flips = errors(locations), locations["flips"].values > 0
    table = [[error[name][:3] for name in names] for names in (("flip", "frozen_flip"), ("same", "frozen_same"))]
    coords = {"location": ["experts differ", "same experts"], "routing": ["recomputed", "frozen"]}
    mean = xr.DataArray(np.array(table), coords, ("location", "routing", "bound"))
    value, low, high = mean.transpose("bound", ...)
    figure = beside(
        scatter(
            locations["exact"].assign_attrs(long_name="activation patching (share of the gap)"),
            locations["first_order"].assign_attrs(long_name="attribution patching (share of the gap)"),
            groups=["experts differ between the texts" if flip else "same experts" for flip in flips],
        ),
        bars(value.assign_attrs(long_name="mean error (share of the gap)"), by="routing", low=low, high=high),
        title="Attribution patching errs where routing flips, and errs as much with frozen routing",
        note=f"n = {locations.attrs['n']} pairs of held-out texts ({', '.join(FAMILIES)}) that differ in the value of "
        f"one step; {len(flips)} locations of {SITE}, with different experts at {flips.mean():.0%}. 95 % intervals, "
        "cluster bootstrap over pairs. Frozen: both texts use the experts of the corrupted one, with both methods.",
    )
    return figure, traces
