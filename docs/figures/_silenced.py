"""Additions read with one head silenced after the other."""

from collections import Counter
from functools import cache

import numpy as np
import torch
import xarray as xr
from _runs import Sequence, pocket, read

import workbench as wb

FAMILY, N, LENGTH, SEED = "addition", 30, 3, "needed"


def changes(traces: Sequence[wb.Trace]) -> list[tuple[str, str] | None]:
    """The first token of each text, from its thought on, that would be written differently, and how; None if none."""
    longest, found = max(map(len, traces)), []
    ids = torch.tensor([[*trace.tokens, *[0] * (longest - len(trace))] for trace in traces])  # nobody looks ahead
    with torch.inference_mode():
        likeliest = pocket().forward(ids).argmax(-1)
    for trace, top in zip(traces, likeliest.tolist()):
        start = next(span for span in trace.spans if span.channel == "analysis").content_start
        wrong = [(trace.pieces[i], top[i - 1]) for i in range(start, len(trace)) if top[i - 1] != trace.tokens[i]]
        found.append((wrong[0][0], pocket().tokenizer.pieces([wrong[0][1]])[0]) if wrong else None)
    return found


@cache
def measure() -> xr.Dataset:
    """`kept`, the share of texts still written without a head, with `low` and `high` (layer head); `p`, adjusted for
    all heads: under the null silencing gains as often as it loses; `first`, what most often changes first, and in how
    many texts. `whole` (text): those written with all heads."""
    model, traces = pocket(), [one.trace for one in read(FAMILY, N, LENGTH, "", SEED)]
    shape, whole, without = (model.config.n_layers, model.config.n_heads), changes(traces), []
    for layer, head in np.ndindex(shape):
        with model.edit(f"blocks.{layer}.attn.hook_z", wb.ablate(head=head)):
            without.append(changes(traces))
    hits, right = (np.array([[one is None for one in row] for row in rows]) for rows in (without, [whole]))
    bounds = np.array([wb.statistics.wilson(int(row.sum()), N) for row in hits]).T
    parts = {"kept": hits.mean(1), "low": bounds[0], "high": bounds[1]}
    parts["p"] = wb.statistics.max_t((right.astype(float) - hits).T)
    most = [Counter(filter(None, row)).most_common(1) for row in without]
    parts["first"] = np.array([f"{m[0][0][0]!r} to {m[0][0][1]!r} in {m[0][1]}" if m else "" for m in most])
    data = {name: (("layer", "head"), part.reshape(shape)) for name, part in parts.items()}
    return xr.Dataset(data | {"whole": ("text", right[0])})
