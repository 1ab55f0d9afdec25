"""What sinks and far edges are worth: would pocket still write the solution, word by word, without them?

Texts read with sinks held, moved and taken away, and with far and near edges cut.
One pass tells: greedy text is the text that was read if, and only if, each of its tokens is the likeliest in its place.
"""

from collections.abc import Sequence
from functools import cache

import numpy as np
import torch
import xarray as xr

import workbench as wb
from workbench.figures import Figure, above, bars
from workbench.pocket.families import CHAINS
from workbench.studies.held_out import read, texts

N, LENGTH, SEED = 12, 5, "gates"
SINKS, FULL = "blocks.*.attn.hook_sink", "blocks.[135].attn.hook_attn_scores"
SETS = ("as it is", "sinks held", "sinks moved", "no sinks", "no far edges", "no near edges")


def likeliest(model: wb.Model, trace: wb.Trace) -> np.ndarray:
    """For each token that the model should write: is it the likeliest in its place? (set pos); a set is a row."""
    ids, thought = torch.tensor([trace.tokens]), next(s for s in trace.spans if s.channel == "analysis")
    sink, window = torch.tensor(np.asarray(trace["sink"])), trace.config["window"]  # layer head query
    mean = sink.mean(-1, keepdim=True).expand_as(sink)
    others = sink[..., torch.randperm(sink.shape[-1], generator=torch.Generator().manual_seed(0))]

    def gate(x, hook):
        at = slice(hook.positions.start, hook.positions.stop)
        x[1], x[2], x[3] = mean[hook.layer][:, at], others[hook.layer][:, at], 0
        return x

    def cut(x, hook):
        behind = torch.tensor(hook.positions)[:, None] - torch.arange(x.shape[-1])
        x[4].masked_fill_(behind >= window, -torch.inf)
        x[5].masked_fill_((behind > 0) & (behind < window), -torch.inf)  # a token always sees itself
        return x

    with torch.inference_mode(), model.edit(SINKS, gate), model.edit(FULL, cut):
        top = model.forward(ids.expand(len(SETS), -1)).argmax(-1)
    return (top == ids.roll(-1))[:, thought.content_start - 1 : -1].numpy()


@cache
def measure(model: wb.Model) -> xr.Dataset:
    """By problem (set problem): `written`, whether all of thought and answer is written as it should; `tokens`, the
    share of tokens that are the likeliest in their places. `family` (problem).
    """
    runs = [(family, one.trace) for family in CHAINS for one in read(model, family, N, LENGTH, seed=SEED)]
    hits = [likeliest(model, trace) for _, trace in runs]
    data = {"written": [one.all(-1) for one in hits], "tokens": [one.mean(-1) for one in hits]}
    coords = {"set": list(SETS), "family": ("problem", [family for family, _ in runs])}
    return xr.Dataset({name: (("problem", "set"), np.array(d, float)) for name, d in data.items()}, coords)


def draw(model: wb.Model) -> tuple[Figure, Sequence[wb.Trace]]:
    """The figure, and the traces behind it."""
    found, sheets = measure(model), []
    for name, label in (("written", "texts written word by word"), ("tokens", "tokens likeliest in their place")):
        sure = wb.statistics.mean_interval(found[name].values)
        array = xr.DataArray(sure.value, {"set": list(SETS)}, "set", attrs={"long_name": "share"})
        sheets.append(bars(array, low=np.asarray(sure.low), high=np.asarray(sure.high), title=label, height=45))
    figure = above(
        *sheets,
        title="Sinks are gates: at the wrong tokens they harm more than if there were none",
        note=f"n = {found.sizes['problem']} held-out problems of length {LENGTH}, {N} a family; 95 % intervals over "
        "problems. Held: each head's sink at its mean over the text. Moved: sinks of other tokens of the text. Both "
        "leave it as much as before. Edges are cut in full layers: far ones reach beyond the window, near ones do not.",
    )
    return figure, texts(model, N, LENGTH, SEED)
