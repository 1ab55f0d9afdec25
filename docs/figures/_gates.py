"""Texts read with sinks held, moved and taken away, and with far and near edges cut."""

from functools import cache

import numpy as np
import torch
import xarray as xr
from _runs import CHAINS, pocket, read

import workbench as wb

N, LENGTH, SEED = 12, 5, "gates"
SINKS, FULL = "blocks.*.attn.hook_sink", "blocks.[135].attn.hook_attn_scores"
SETS = ("as it is", "sinks held", "sinks moved", "no sinks", "no far edges", "no near edges")


def likeliest(trace: wb.Trace) -> np.ndarray:
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

    with torch.inference_mode(), pocket().edit(SINKS, gate), pocket().edit(FULL, cut):
        top = pocket().forward(ids.expand(len(SETS), -1)).argmax(-1)
    return (top == ids.roll(-1))[:, thought.content_start - 1 : -1].numpy()


@cache
def measure() -> xr.Dataset:
    """By problem (set problem): `written`, whether all of thought and answer is written as it should; `tokens`, the
    share of tokens that are the likeliest in their places. `family` (problem)."""
    runs = [(family, one.trace) for family in CHAINS for one in read(family, N, LENGTH, seed=SEED)]
    hits = [likeliest(trace) for _, trace in runs]
    data = {"written": [one.all(-1) for one in hits], "tokens": [one.mean(-1) for one in hits]}
    coords = {"set": list(SETS), "family": ("problem", [family for family, _ in runs])}
    return xr.Dataset({name: (("problem", "set"), np.array(d, float)) for name, d in data.items()}, coords)
