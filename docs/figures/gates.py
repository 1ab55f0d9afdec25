"""What sinks and far edges are worth: would pocket still write the solution, word by word, without them?

One pass tells: greedy text is the text that was read if, and only if, each of its tokens is the likeliest in its place.
"""

from collections.abc import Callable
from contextlib import nullcontext
from functools import cache

import numpy as np
import torch
import xarray as xr
from _runs import CHAINS, Sequence, main, pocket, read

import workbench as wb
from workbench.figures import Figure, above, bars

N, LENGTH, SEED = 8, 5, "gates"
SINKS, FULL = "blocks.*.attn.hook_sink", "blocks.[135].attn.hook_attn_scores"
SETS = ("as it is", "sinks held", "sinks moved", "no sinks", "no far edges", "no near edges")


def edits(trace: wb.Trace) -> dict[str, tuple[str, Callable] | None]:
    """What is done to sinks, by head, and to what the full layers see beyond and within the window."""
    sink, window = torch.tensor(np.asarray(trace["sink"])), trace.config["window"]  # layer head query
    others = sink[..., torch.randperm(sink.shape[-1], generator=torch.Generator().manual_seed(0))]
    mean = sink.mean(-1, keepdim=True).expand_as(sink)

    def put(values):
        return SINKS, lambda x, hook: values[hook.layer][None, :, hook.positions.start : hook.positions.stop]

    def cut(low, high):  # edges of that length; a token always sees itself
        def hide(x, hook):
            behind = torch.tensor(hook.positions)[:, None] - torch.arange(x.shape[-1])
            return x.masked_fill((behind >= low) & (behind < high), -torch.inf)

        return FULL, hide

    made = (None, put(mean), put(others), put(0 * sink), cut(window, len(trace)), cut(1, window))
    return dict(zip(SETS, made, strict=True))


def likeliest(trace: wb.Trace, edit: tuple[str, Callable] | None) -> np.ndarray:
    """For each token that the model should write: is it the likeliest in its place?"""
    ids, (thought, *_) = torch.tensor([trace.tokens]), [s for s in trace.spans if s.channel == "analysis"]
    with torch.inference_mode(), pocket().edit(*edit) if edit else nullcontext():
        top = pocket().forward(ids).argmax(-1)
    return (top == ids.roll(-1))[0, thought.content_start - 1 : -1].numpy()


@cache
def measure() -> xr.Dataset:
    """By problem (set problem): `written`, whether all of thought and answer is written as it should; `tokens`, the
    share of tokens that are the likeliest in their places. `family` (problem)."""
    runs = [(family, one.trace) for family in CHAINS for one in read(family, N, LENGTH, seed=SEED)]
    hits = [[likeliest(trace, edit) for edit in edits(trace).values()] for _, trace in runs]
    data = {"written": [[h.all() for h in by] for by in hits], "tokens": [[h.mean() for h in by] for by in hits]}
    coords = {"set": list(SETS), "family": ("problem", [family for family, _ in runs])}
    return xr.Dataset({name: (("problem", "set"), np.array(d, float)) for name, d in data.items()}, coords)


def draw() -> tuple[Figure, Sequence[wb.Trace]]:
    found, sheets = measure(), []
    for name, label in (("written", "texts written word by word"), ("tokens", "tokens likeliest in their place")):
        sure = wb.statistics.mean(found[name].values)
        array = xr.DataArray(sure.value, {"set": list(SETS)}, "set", attrs={"long_name": "share"})
        sheets.append(bars(array, low=sure.low, high=sure.high, title=label, height=45))
    figure = above(
        *sheets,
        title="Sinks are gates: at the wrong tokens they harm more than if there were none",
        note=f"n = {found.sizes['problem']} held-out problems of length {LENGTH}, {N} a family; 95 % intervals over "
        "problems. Held: each head's sink at its mean over the text. Moved: sinks of other tokens of the text. Both "
        "leave it as much as before. Edges are cut in full layers: far ones reach beyond the window, near ones do not.",
    )
    return figure, [one.trace for family in CHAINS for one in read(family, N, LENGTH, seed=SEED)]


if __name__ == "__main__":
    main(__file__, draw)
