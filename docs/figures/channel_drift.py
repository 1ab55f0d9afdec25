"""Does it change experts when it stops thinking? How differently analysis and answer are routed, beside the 20b."""

import numpy as np
from _runs import CHAINS, Sequence, main, read

import workbench as wb
from workbench.figures import Axis, Figure, Line, Panel, Rule

N, LENGTH = 6, 4
# gpt-oss-20b, 36,000 prompts, by layer: from the raw counts of ExpertFingerprinting (Apache-2.0), pooled, in bits
LARGE = """.114 .077 .105 .103 .085 .070 .135 .159 .212 .151 .182 .172
.201 .303 .279 .227 .313 .211 .205 .216 .176 .172 .247 .200"""


def draw() -> tuple[Figure, Sequence[wb.Trace]]:
    traces = [one.trace for family in CHAINS for one in read(family, N, LENGTH)]
    drifts = []
    for trace in traces:
        parts = [span.content for span in trace.spans if span.channel in ("analysis", "final")]
        drifts.append(wb.routing_drift(trace, parts, shuffles=50)["drift"].values[:, 1, 0])
    drift = wb.statistics.mean(np.array(drifts))
    large = np.array(LARGE.split(), float)
    lines = [
        Line(x=_depth(6), y=drift.value, low=drift.low, high=drift.high, name="pocket, less what chance gives"),
        Line(x=_depth(24), y=large, name="gpt-oss-20b, published counts, pooled", color=1),
    ]
    panel = Panel(
        marks=[Rule(at=0.0, text="no more than chance"), *lines],
        x=Axis(label="depth (0 is the first layer, 1 the last)"),
        y=Axis(label="divergence (bits)"),
    )
    figure = Figure(
        panels=[panel],
        title="Analysis and answer are routed differently, in pocket too",
        note=f"Jensen-Shannon divergence of expert loads. pocket: n = {len(traces)} texts, 95 % interval over texts, "
        "less the mean over positions dealt out anew. 20b: generated tokens of 36,000 prompts, nothing taken off. "
        "Neither is matched by token: answers are short templates, and much of this is their words. Layers of two "
        "models are not the same.",
    )
    return figure, traces


def _depth(layers: int) -> np.ndarray:
    return np.linspace(0, 1, layers)


if __name__ == "__main__":
    main(__file__, draw)
