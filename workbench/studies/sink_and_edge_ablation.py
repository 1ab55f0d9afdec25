"""Are attention sinks and long-range attention needed?

With either ablated, this study counts the solutions that are still reproduced token by token.

Sinks are set to their mean, shuffled over positions, or removed; long-range or short-range attention is masked.
One forward pass is enough: greedy decoding reproduces a text if and only if each token is the most likely at its place.
"""

from collections.abc import Sequence
from functools import cache

import numpy as np
import torch
import xarray as xr

import workbench as wb
from workbench.figures import Figure, above, bars
from workbench.pocket.families import CHAINS
from workbench.studies.held_out import chain_traces, traced_problems

N, LENGTH, SEED = 12, 5, "gates"
SINKS, FULL = "blocks.*.attn.hook_sink", "blocks.[135].attn.hook_attn_scores"
CONDITIONS = ("unedited", "sinks at mean", "sinks shuffled", "no sinks", "no far edges", "no near edges")


def most_likely(model: wb.Model, trace: wb.Trace) -> np.ndarray:
    """Whether each generated token of the reference solution is the most likely at its place (condition pos)."""
    ids, analysis = torch.tensor([trace.tokens]), next(s for s in trace.spans if s.channel == "analysis")
    sink, window = torch.tensor(np.asarray(trace["sink"])), trace.config["window"]  # layer head query
    mean = sink.mean(-1, keepdim=True).expand_as(sink)
    shuffled = sink[..., torch.randperm(sink.shape[-1], generator=torch.Generator().manual_seed(0))]

    def edit_sinks(x, hook):
        at = slice(hook.positions.start, hook.positions.stop)
        x[1], x[2], x[3] = mean[hook.layer][:, at], shuffled[hook.layer][:, at], 0
        return x

    def mask_scores(x, hook):
        distance = torch.tensor(hook.positions)[:, None] - torch.arange(x.shape[-1])
        x[4].masked_fill_(distance >= window, -torch.inf)
        x[5].masked_fill_((distance > 0) & (distance < window), -torch.inf)  # a token always sees itself
        return x

    with torch.inference_mode(), model.edit(SINKS, edit_sinks), model.edit(FULL, mask_scores):
        top = model.forward(ids.expand(len(CONDITIONS), -1)).argmax(-1)
    return (top == ids.roll(-1))[:, analysis.content_start - 1 : -1].numpy()


@cache
def measure(model: wb.Model) -> xr.Dataset:
    """By condition and problem, how much of the reference solution greedy decoding reproduces.

    Returns a Dataset over (problem, condition), with the coordinate `family` (problem):
        reproduced: 1 if all tokens of thought and answer are the most likely at their places, else 0
        tokens: the share of tokens that are the most likely at their places
    """
    runs = [
        (family, traced.trace) for family in CHAINS for traced in traced_problems(model, family, N, LENGTH, seed=SEED)
    ]
    hits = [most_likely(model, trace) for _, trace in runs]
    data = {"reproduced": [hit.all(-1) for hit in hits], "tokens": [hit.mean(-1) for hit in hits]}
    coords = {"condition": list(CONDITIONS), "family": ("problem", [family for family, _ in runs])}
    return xr.Dataset({name: (("problem", "condition"), np.array(d, float)) for name, d in data.items()}, coords)


def draw(model: wb.Model) -> tuple[Figure, Sequence[wb.Trace]]:
    """The figure, and the traces behind it."""
    measured, figures = measure(model), []
    for name, label in (("reproduced", "texts reproduced token by token"), ("tokens", "tokens that are most likely")):
        mean = wb.statistics.mean_interval(measured[name].values)
        array = xr.DataArray(mean.value, {"condition": list(CONDITIONS)}, "condition", attrs={"long_name": "share"})
        figures.append(bars(array, low=np.asarray(mean.low), high=np.asarray(mean.high), title=label, height=45))
    figure = above(
        *figures,
        title="Sinks are gates: sink mass at the wrong tokens does more harm than no sinks",
        note=f"n = {measured.sizes['problem']} held-out problems of length {LENGTH}, {N} per family; 95 % intervals "
        "over problems. Sinks at mean: each head's sink mass at its mean over the text. Shuffled: the sink masses of "
        "other positions. Neither changes a head's mean sink mass. Edges are masked in full layers: far ones reach "
        "beyond the window, near ones do not.",
    )
    return figure, chain_traces(model, N, LENGTH, SEED)
