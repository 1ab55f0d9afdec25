"""Which heads does pocket need? Additions that greedy decoding still reproduces with one head ablated, head by head.

One forward pass is enough: greedy decoding reproduces a text if and only if each token is the most likely at its place.
"""

from collections import Counter
from collections.abc import Sequence
from functools import cache

import numpy as np
import torch
import xarray as xr

import workbench as wb
from workbench.figures import Figure, heatmap
from workbench.studies.held_out import tokenizer_of, traced_problems

FAMILY, N, LENGTH, SEED = "addition", 30, 3, "needed"


def first_changes(model: wb.Model, traces: Sequence[wb.Trace]) -> list[tuple[str, str] | None]:
    """Of each text, the first token after the prompt that is not the most likely, and what is; None if none."""
    longest, changes = max(map(len, traces)), []
    # attention is causal, so padding at the end changes nothing
    ids = torch.tensor([[*trace.tokens, *[0] * (longest - len(trace))] for trace in traces])
    with torch.inference_mode():
        most_likely = model.forward(ids).argmax(-1)
    for trace, top in zip(traces, most_likely.tolist()):
        start = next(span for span in trace.spans if span.channel == "analysis").content_start
        wrong = [(trace.str_tokens[i], top[i - 1]) for i in range(start, len(trace)) if top[i - 1] != trace.tokens[i]]
        changes.append((wrong[0][0], tokenizer_of(model).str_tokens([wrong[0][1]])[0]) if wrong else None)
    return changes


@cache
def measure(model: wb.Model) -> xr.Dataset:
    """How many texts are reproduced with each head ablated.

    Returns a Dataset over (layer, head), and `intact` over (text):
        reproduced, low, high: the share of texts reproduced without the head, and its 95 % interval (Wilson)
        p: adjusted for all heads; under the null, ablation gains a text as often as it loses one
        first: the most frequent first change, and in how many texts
        intact: whether the text is reproduced with all heads
    """
    traces = [one.trace for one in traced_problems(model, FAMILY, N, LENGTH, "", SEED)]
    shape, intact, ablated = (model.config.n_layers, model.config.n_heads), first_changes(model, traces), []
    for layer, head in np.ndindex(shape):
        with model.edit(f"blocks.{layer}.attn.hook_z", wb.ablate(head=head)):
            ablated.append(first_changes(model, traces))
    hits, intact_hits = (np.array([[one is None for one in row] for row in rows]) for rows in (ablated, [intact]))
    bounds = np.array([wb.statistics.wilson_interval(int(row.sum()), N) for row in hits]).T
    columns = {"reproduced": hits.mean(1), "low": bounds[0], "high": bounds[1]}
    columns["p"] = wb.statistics.westfall_young((intact_hits.astype(float) - hits).T)
    most = [Counter(filter(None, row)).most_common(1) for row in ablated]
    columns["first"] = np.array([f"{m[0][0][0]!r} to {m[0][0][1]!r} in {m[0][1]}" if m else "" for m in most])
    data = {name: (("layer", "head"), column.reshape(shape)) for name, column in columns.items()}
    return xr.Dataset(data | {"intact": ("text", intact_hits[0])})


def draw(model: wb.Model) -> tuple[Figure, Sequence[wb.Trace]]:
    """The figure, and the traces behind it."""
    measured = measure(model)
    needed = ", ".join(f"{layer}.{head}" for layer, head in np.argwhere((measured["p"] < 0.05).values))
    figure = heatmap(
        measured["reproduced"].assign_attrs(long_name="reproduced", units="share"),
        written=True,
        low=0,
        high=1,
        title="Heads that pocket needs to generate its sums",
        note=f"n = {N} held-out additions of {LENGTH} digits; {int(measured['intact'].sum())} are reproduced token by "
        f"token with all heads. Needed, with adjusted p < 0.05 (Westfall and Young, over texts): {needed}. "
        f"Intervals are at most {float((measured['high'] - measured['low']).max()):.2f} wide (Wilson, 95 %).",
        height=75,
        width=wb.figures.WIDTHS["column"],
    )
    return figure, [one.trace for one in traced_problems(model, FAMILY, N, LENGTH, "", SEED)]
