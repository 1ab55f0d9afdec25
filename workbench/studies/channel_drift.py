"""Does it switch experts when it stops thinking? How the answer is routed, and what of that is the channel's doing.

Analysis beside answer: as it is, word by word, renamed, without a header, and two yardsticks.
"""

import json
from collections.abc import Sequence
from functools import cache
from itertools import combinations
from pathlib import Path

import numpy as np
import xarray as xr

import workbench as wb
from workbench.figures import Axis, Figure, Line, Panel, Rule, above, bars
from workbench.pocket.families import CHAINS
from workbench.studies.held_out import Read, read
from workbench.studies.matched_loads import drift, jackknife, loads

N, LENGTH, SEED = 10, 4, "stops thinking"


def passages(model: wb.Model, one: Read) -> dict[str, np.ndarray]:
    """Loads of an analysis beside its answer: as it is, in the name of the analysis, and as a sentence within it."""
    trace, ids = one.trace, list(one.trace.tokens)
    thought, answer = (s.content for s in trace.spans if s.channel in ("analysis", "final"))
    named = model.trace([*ids[: answer.start - 2], ids[thought.start - 2], *ids[answer.start - 1 :]], record="")
    within = model.trace(ids[: thought.stop] + ids[answer], record="")
    return {
        "answer": loads(trace, thought, trace, answer, by_word=False),
        "… by word": loads(trace, thought, trace, answer),
        "… renamed": loads(named, thought, named, answer),
        "… within": loads(within, thought, within, slice(thought.stop, None)),
        "last step": loads(trace, slice(thought.start, one.parts[-1].start), trace, one.parts[-1]),
    }


@cache
def measure(model: wb.Model, seed: str = SEED, n: int = N) -> xr.Dataset:
    """Drift in bits (compared problem layer): its mean over problems is the estimate; `null`, what chance reaches."""
    rows: list[dict[str, list[np.ndarray]]] = []
    for ones in zip(*(read(model, family, n, LENGTH, "", seed=seed) for family in CHAINS)):
        each = [passages(model, one) for one in ones]
        found = {name: [parts[name] for parts in each] for name in each[0]}
        thoughts = [(one.trace, s.content) for one in ones for s in one.trace.spans if s.channel == "analysis"]
        found["other problems"] = [loads(*a, *b) for a, b in combinations(thoughts, 2)]
        rows.append(found)
    every = {name: np.array([found[name] for found in rows]) for name in rows[0]}
    parts = {name: jackknife(lambda some: drift(some)[0], loads) for name, loads in every.items()}
    null = {name: drift(loads)[1] for name, loads in every.items()}
    dims = ("compared", "problem", "layer")
    data = {"drift": (dims, np.array([*parts.values()])), "null": (dims[::2], np.array([*null.values()]))}
    return xr.Dataset(data, {"compared": list(parts)}, {"units": "bits", "families": len(CHAINS), "n": n})


def reference() -> np.ndarray:
    """The divergence of gpt-oss-20b by layer, from public counts; they lie in the repository, not in the package."""
    counts = Path(__file__).parents[2] / "data/reference/gpt-oss-20b-routing.json"
    return np.array(json.loads(counts.read_text("utf-8"))["analysis_final_jsd_bits"])


def draw(model: wb.Model) -> tuple[Figure, Sequence[wb.Trace]]:
    """The figure, and the traces behind it."""
    found = measure(model)
    lines = []
    for color, name in enumerate(found["compared"].values[[0, 1, 4]]):
        sure = wb.statistics.mean_interval(found["drift"].sel(compared=name).values)
        lines.append(Line(x=_depth(6), y=sure.value, low=sure.low, high=sure.high, name=name, color=color))
    lines.append(Line(x=_depth(24), y=reference(), name="gpt-oss-20b, all words", color=3))
    panel = Panel(
        marks=[Rule(at=0.0, text="no more than chance"), *lines],
        x=Axis(label="depth (0 is the first layer, 1 the last)"),
        y=Axis(label="divergence from the analysis (bits)"),
    )
    sure = wb.statistics.mean_interval(found["drift"].mean("layer").values.T)
    mean = xr.DataArray(
        sure.value, {"compared": found["compared"].values}, attrs={"long_name": "mean of the layers (bits)"}
    )
    figure = above(
        Figure(panels=[panel], height=62),
        bars(
            mean,
            low=np.asarray(sure.low),
            high=np.asarray(sure.high),
            height=45,
            null=found["null"].mean("layer").values,
        ),
        title="The answer has experts of its own, and hardly for being called the answer",
        note=f"n = {found.attrs['n']} held-out problems of each of {len(CHAINS)} families; 95 % intervals over "
        "problems, jackknife. Jensen-Shannon divergence of expert loads, less the mean over positions dealt out anew; "
        "chance: their 95th percentile. By word: each token counts alike on both sides. Renamed: the header says "
        "analysis; within: no header, the answer ends the analysis. Last step: against those before it, by word. Other "
        "problems: analyses of two families, by word. gpt-oss-20b: public counts of 36,000 prompts (Priyanshu and "
        "Vijay 2025, Apache-2.0), generated tokens, not matched by token, nothing taken off. Layers of two models are "
        "not the same.",
    )
    return figure, [one.trace for family in CHAINS for one in read(model, family, N, LENGTH, "", seed=SEED)]


def _depth(layers: int) -> np.ndarray:
    return np.linspace(0, 1, layers)
