"""Does the model switch experts for the answer, and how much of that is due to the channel?

Expert loads of analysis and answer are compared as recorded, matched by token, with the header renamed, and without a
header. Two comparisons give the scale: the last step against earlier steps, and analyses of different families.
"""

import json
from collections.abc import Sequence
from functools import cache
from itertools import combinations

import numpy as np
import xarray as xr

import workbench as wb
from workbench.figures import Axis, Figure, Line, Panel, Rule, above, bars
from workbench.model.checkpoints.bundled import reference_counts
from workbench.pocket.families import CHAINS
from workbench.studies.held_out import TracedProblem, traced_problems
from workbench.studies.matched_loads import drift, jackknife, loads

N, LENGTH, SEED = 10, 4, "stops thinking"


def passages(model: wb.Model, one: TracedProblem) -> dict[str, np.ndarray]:
    """Expert loads of an analysis and its answer: unedited, with "analysis" in the header, and inside the analysis."""
    trace, ids = one.trace, list(one.trace.tokens)
    thought, answer = (s.content for s in trace.spans if s.channel in ("analysis", "final"))
    renamed = model.trace([*ids[: answer.start - 2], ids[thought.start - 2], *ids[answer.start - 1 :]], record="")
    within = model.trace(ids[: thought.stop] + ids[answer], record="")
    return {
        "answer": loads(trace, thought, trace, answer, match_tokens=False),
        "… matched": loads(trace, thought, trace, answer),
        "… renamed": loads(renamed, thought, renamed, answer),
        "… within": loads(within, thought, within, slice(thought.stop, None)),
        "last step": loads(trace, slice(thought.start, one.steps[-1].start), trace, one.steps[-1]),
    }


@cache
def measure(model: wb.Model, seed: str = SEED, n: int = N) -> xr.Dataset:
    """`drift` in bits (compared problem layer), whose mean over problems is the estimate, and its `null`."""
    rows: list[dict[str, list[np.ndarray]]] = []
    for problems in zip(*(traced_problems(model, family, n, LENGTH, "", seed=seed) for family in CHAINS)):
        by_family = [passages(model, one) for one in problems]
        row = {name: [loads_of[name] for loads_of in by_family] for name in by_family[0]}
        thoughts = [(one.trace, s.content) for one in problems for s in one.trace.spans if s.channel == "analysis"]
        row["other problems"] = [loads(*a, *b) for a, b in combinations(thoughts, 2)]
        rows.append(row)
    all_loads = {name: np.array([row[name] for row in rows]) for name in rows[0]}
    drifts = {name: jackknife(lambda some: drift(some)[0], counts) for name, counts in all_loads.items()}
    null = {name: drift(counts)[1] for name, counts in all_loads.items()}
    dims = ("compared", "problem", "layer")
    data = {"drift": (dims, np.array([*drifts.values()])), "null": (dims[::2], np.array([*null.values()]))}
    return xr.Dataset(data, {"compared": list(drifts)}, {"units": "bits", "families": len(CHAINS), "n": n})


def reference() -> np.ndarray:
    """The divergence of gpt-oss-20b by layer, from public counts."""
    return np.array(json.loads(reference_counts().read_text("utf-8"))["analysis_final_jsd_bits"])


def draw(model: wb.Model) -> tuple[Figure, Sequence[wb.Trace]]:
    """The figure, and the traces behind it."""
    drifts = measure(model)
    lines = []
    for color, name in enumerate(drifts["compared"].values[[0, 1, 4]]):
        mean = wb.statistics.mean_interval(drifts["drift"].sel(compared=name).values)
        lines.append(
            Line(x=_depth(drifts.sizes["layer"]), y=mean.value, low=mean.low, high=mean.high, name=name, color=color)
        )
    lines.append(Line(x=_depth(len(reference())), y=reference(), name="gpt-oss-20b, all tokens", color=3))
    panel = Panel(
        marks=[Rule(at=0.0, text="chance"), *lines],
        x=Axis(label="depth (0 is the first layer, 1 the last)"),
        y=Axis(label="divergence from the analysis (bits)"),
    )
    by_comparison = wb.statistics.mean_interval(drifts["drift"].mean("layer").values.T)
    value = xr.DataArray(
        by_comparison.value, {"compared": drifts["compared"].values}, attrs={"long_name": "mean of the layers (bits)"}
    )
    figure = above(
        Figure(panels=[panel], height=62),
        bars(
            value,
            low=np.asarray(by_comparison.low),
            high=np.asarray(by_comparison.high),
            height=45,
            null=drifts["null"].mean("layer").values,
        ),
        title="The answer uses different experts, and hardly because of its channel's name",
        note=f"n = {drifts.attrs['n']} held-out problems of each of {len(CHAINS)} families; 95 % intervals over "
        "problems, jackknife. Jensen-Shannon divergence of expert loads, minus its mean over random permutations of "
        "positions; chance: their 95th percentile. Matched: each token has the same weight on both sides. Renamed: the "
        "header contains the token analysis; within: no header, the answer is the end of the analysis. Last step: "
        "against earlier steps, matched. Other problems: analyses of two families, matched. gpt-oss-20b: public counts "
        "of 36,000 prompts (Priyanshu and Vijay 2025, Apache-2.0), generated tokens, not matched by token, no chance "
        "level subtracted. Layers of different models do not correspond.",
    )
    return figure, [one.trace for family in CHAINS for one in traced_problems(model, family, N, LENGTH, "", seed=SEED)]


def _depth(layers: int) -> np.ndarray:
    return np.linspace(0, 1, layers)
