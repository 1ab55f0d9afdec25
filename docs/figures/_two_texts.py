"""Pairs of texts that differ in one step's value, patched exactly and to first order, with routes free and held."""

from collections.abc import Callable
from functools import cache
from random import Random

import numpy as np
import torch
import xarray as xr
from _runs import pocket

import workbench as wb
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
def measure(seed: str = SEED, n: int = N) -> tuple[xr.Dataset, tuple[wb.Trace, ...]]:
    """Every place of every pair: to first order and exact, both again with routes held, whether routes flip there."""
    model, rows, traces = pocket(), [], []
    for clean, corrupt in (pair for family in FAMILIES for pair in pairs(family, n, LENGTH, seed)):
        asked = (model, clean[:-1], corrupt[:-1], wb.logit_gap(model, clean[-1], corrupt[-1]))
        traces.append(model.trace(corrupt[:-1], record=""))
        line, exact = wb.attribution_patching(*asked, site=SITE), wb.patch_sweep(*asked, site=SITE)
        if not exact.attrs["clean"] > 0 > exact.attrs["corrupt"]:
            continue  # what the model says next does not hang on that value
        with model.edit("blocks.*.mlp.hook_expert_indices", held(traces[-1])):
            again, truth = wb.attribution_patching(*asked, site=SITE), wb.patch_sweep(*asked, site=SITE)
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

    sure = wb.statistics.bootstrap(told, len(pair), pair, resamples=500)
    assert isinstance(sure.value, np.ndarray)
    return {name: sure._replace(value=v, low=a, high=b) for name, v, a, b in zip(TOLD, *sure[:3], strict=True)}
