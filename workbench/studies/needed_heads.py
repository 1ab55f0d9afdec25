"""Which heads can pocket not do without? Additions that it would still write word by word with one head silenced.

Additions read with one head silenced after the other.
One pass tells: greedy text is the text that was read if, and only if, each of its tokens is the likeliest in its place.
"""

from collections import Counter
from collections.abc import Sequence
from functools import cache

import numpy as np
import torch
import xarray as xr

import workbench as wb
from workbench.figures import Figure, heatmap
from workbench.studies.held_out import read, tokenizer_of

FAMILY, N, LENGTH, SEED = "addition", 30, 3, "needed"


def changes(model: wb.Model, traces: Sequence[wb.Trace]) -> list[tuple[str, str] | None]:
    """The first token of each text, from its thought on, that would be written differently, and how; None if none."""
    longest, found = max(map(len, traces)), []
    ids = torch.tensor([[*trace.tokens, *[0] * (longest - len(trace))] for trace in traces])  # nobody looks ahead
    with torch.inference_mode():
        likeliest = model.forward(ids).argmax(-1)
    for trace, top in zip(traces, likeliest.tolist()):
        start = next(span for span in trace.spans if span.channel == "analysis").content_start
        wrong = [(trace.str_tokens[i], top[i - 1]) for i in range(start, len(trace)) if top[i - 1] != trace.tokens[i]]
        found.append((wrong[0][0], tokenizer_of(model).str_tokens([wrong[0][1]])[0]) if wrong else None)
    return found


@cache
def measure(model: wb.Model) -> xr.Dataset:
    """`kept`, the share of texts still written without a head, with `low` and `high` (layer head); `p`, adjusted for
    all heads: under the null silencing gains as often as it loses; `first`, what most often changes first, and in how
    many texts. `whole` (text): those written with all heads.
    """
    traces = [one.trace for one in read(model, FAMILY, N, LENGTH, "", SEED)]
    shape, whole, without = (model.config.n_layers, model.config.n_heads), changes(model, traces), []
    for layer, head in np.ndindex(shape):
        with model.edit(f"blocks.{layer}.attn.hook_z", wb.ablate(head=head)):
            without.append(changes(model, traces))
    hits, right = (np.array([[one is None for one in row] for row in rows]) for rows in (without, [whole]))
    bounds = np.array([wb.statistics.wilson_interval(int(row.sum()), N) for row in hits]).T
    parts = {"kept": hits.mean(1), "low": bounds[0], "high": bounds[1]}
    parts["p"] = wb.statistics.westfall_young((right.astype(float) - hits).T)
    most = [Counter(filter(None, row)).most_common(1) for row in without]
    parts["first"] = np.array([f"{m[0][0][0]!r} to {m[0][0][1]!r} in {m[0][1]}" if m else "" for m in most])
    data = {name: (("layer", "head"), part.reshape(shape)) for name, part in parts.items()}
    return xr.Dataset(data | {"whole": ("text", right[0])})


def draw(model: wb.Model) -> tuple[Figure, Sequence[wb.Trace]]:
    """The figure, and the traces behind it."""
    found = measure(model)
    missed = ", ".join(f"{layer}.{head}" for layer, head in np.argwhere((found["p"] < 0.05).values))
    figure = heatmap(
        found["kept"].assign_attrs(long_name="still written", units="share"),
        written=True,
        low=0,
        high=1,
        title="Heads without which pocket writes sums differently",
        note=f"n = {N} held-out additions of {LENGTH} digits; {int(found['whole'].sum())} are written word by word "
        f"with all heads. Missed, with p < 0.05 for all together (Westfall and Young, over texts): {missed}. "
        f"Intervals are at most {float((found['high'] - found['low']).max()):.2f} wide (Wilson, 95 %).",
        height=75,
        width=wb.figures.WIDTHS["column"],
    )
    return figure, [one.trace for one in read(model, FAMILY, N, LENGTH, "", SEED)]
