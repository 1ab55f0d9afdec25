"""How hiding a step acts on later ones: through the experts' inputs, through their weights, or through their choice."""

from collections.abc import Sequence
from functools import cache

import numpy as np
import xarray as xr

import workbench as wb
from workbench.figures import Figure, bars, beside
from workbench.studies.held_out import traced_problems

FAMILIES, N, LENGTH, SEED = ("variables", "hops", "lists"), 6, 4, "what or who"
PARTS = {"content": "content", "reweighting": "reweighting", "rerouting": "rerouting"}


@cache
def measure(model: wb.Model, seed: str = SEED, n: int = N) -> xr.Dataset:
    """The effects of hiding each step, averaged over the pairs of steps of a problem.

    Returns a Dataset:
        parts (family part problem): parts of the effect on a later step that uses the hidden one, in nats
        shift (family pair problem): the share of the later step's experts that change, where it uses the hidden step
            and where it does not
    """
    parts = np.zeros((len(FAMILIES), len(PARTS), n))
    shift = np.zeros((len(FAMILIES), 2, n))
    for f, family in enumerate(FAMILIES):
        for k, (problem, steps, trace) in enumerate(traced_problems(model, family, n, LENGTH, "", seed=seed)):
            effect = wb.reasoning.suppression(model, trace, steps, split_routing=True)
            uses = np.zeros((len(steps), len(steps)), bool)
            for i, sources in problem.edges.items():
                uses[i, list(sources)] = True
            unused = np.tril(~uses, -1)
            parts[f, :, k] = [effect[name].values[uses].mean() for name in PARTS]
            shift[f, :, k] = [effect["routing"].values[pairs].mean() for pairs in (uses, unused)]
    return xr.Dataset(
        {"parts": (("family", "part", "problem"), parts), "shift": (("family", "pair", "problem"), shift)},
        {"family": list(FAMILIES), "part": list(PARTS.values()), "pair": ["used", "not used"]},
        {"n": n},
    )


def draw(model: wb.Model) -> tuple[Figure, Sequence[wb.Trace]]:
    """The figure, and the traces behind it."""
    effects, panels = measure(model), []
    for name, by, label in (
        ("parts", "part", "effect on a step that uses it (nats)"),
        ("shift", "pair", "share of experts that change"),
    ):
        mean = wb.statistics.mean_interval(effects[name].transpose("problem", "family", by).values)
        value, low, high = (effects[name].isel(problem=0, drop=True).copy(data=bound) for bound in mean[:3])
        panels.append(bars(value.assign_attrs(long_name=label), by=by, low=low, high=high))
    figure = beside(
        *panels,
        title="Hiding a step acts through the experts' inputs more than through the choice of experts",
        note=f"n = {effects.attrs['n']} held-out problems of length {LENGTH} per family; 95 % intervals over problems. "
        "Means over pairs of steps. Left, pairs in which the later step uses the hidden one: content is the effect "
        "with frozen experts and weights, reweighting what recomputed weights add, rerouting what recomputed experts "
        "add; the three sum to the effect. Right, the share of the later step's experts that change, where it uses the "
        "hidden step and where it does not.",
    )
    problems = (traced_problems(model, family, N, LENGTH, "", seed=SEED) for family in FAMILIES)
    return figure, [one.trace for of_family in problems for one in of_family]
