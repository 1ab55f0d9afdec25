"""What or who? The effect of hiding a step: what experts compute on, how they are weighted, and which of them run."""

from collections.abc import Sequence
from functools import cache

import numpy as np
import xarray as xr

import workbench as wb
from workbench.figures import Figure, bars, beside
from workbench.studies.held_out import read

FAMILIES, N, LENGTH, SEED = ("variables", "hops", "lists"), 6, 4, "what or who"
PARTS = {"content": "content", "reweighting": "other weights", "rerouting": "other experts"}


@cache
def measure(model: wb.Model, seed: str = SEED, n: int = N) -> xr.Dataset:
    """Of hiding each step, means over pairs of steps of a problem: `parts` of the effect on a step that uses it, in
    nats (family part problem), and `shift`, the share of experts that are others (family pair problem).
    """
    parts = np.zeros((len(FAMILIES), len(PARTS), n))
    shift = np.zeros((len(FAMILIES), 2, n))
    for f, family in enumerate(FAMILIES):
        for k, (problem, steps, trace) in enumerate(read(model, family, n, LENGTH, "", seed=seed)):
            effect = wb.reasoning.suppression(model, trace, steps, split_routing=True)
            uses = np.zeros((len(steps), len(steps)), bool)
            for i, sources in problem.edges.items():
                uses[i, list(sources)] = True
            rest = np.tril(~uses, -1)
            parts[f, :, k] = [effect[name].values[uses].mean() for name in PARTS]
            shift[f, :, k] = [effect["routing"].values[pairs].mean() for pairs in (uses, rest)]
    return xr.Dataset(
        {"parts": (("family", "part", "problem"), parts), "shift": (("family", "pair", "problem"), shift)},
        {"family": list(FAMILIES), "part": list(PARTS.values()), "pair": ["it uses it", "it does not"]},
        {"n": n},
    )


def draw(model: wb.Model) -> tuple[Figure, Sequence[wb.Trace]]:
    """The figure, and the traces behind it."""
    found, panels = measure(model), []
    for name, by, label in (
        ("parts", "part", "effect on a step that uses it (nats)"),
        ("shift", "pair", "share of experts that are others"),
    ):
        sure = wb.statistics.mean_interval(found[name].transpose("problem", "family", by).values)
        value, low, high = (found[name].isel(problem=0, drop=True).copy(data=part) for part in sure[:3])
        panels.append(bars(value.assign_attrs(long_name=label), by=by, low=low, high=high))
    figure = beside(
        *panels,
        title="A hidden step changes what experts compute on, more than which experts compute",
        note=f"n = {found.attrs['n']} held-out problems of length {LENGTH} a family; 95 % intervals over problems. "
        "Means over pairs of steps; left, those in which the later step truly uses the hidden one: content (experts "
        "and weights held), what free weights add, what free experts add; the three sum to the effect. Right, how many "
        "of the later step's experts are others, where it uses the hidden step and where it does not.",
    )
    return figure, [one.trace for family in FAMILIES for one in read(model, family, N, LENGTH, "", seed=SEED)]
