"""What the weights alone say of heads, beside what runs show: who looks one token back, and who sinks."""

from _by_weights import FAR, KINDS, NAMES, measure, traces
from _runs import Sequence, main

import workbench as wb
from workbench.figures import Figure, beside, scatter

__all__ = ["FAR", "KINDS", "NAMES", "draw", "measure", "traces"]


def draw() -> tuple[Figure, Sequence[wb.Trace]]:
    found, sheets, said = measure(), [], []
    kinds = [kind.split("_")[0] for kind in traces()[0].config["layer_types"]]
    heads = [(layer, head) for layer in range(len(kinds)) for head in range(found.sizes["head"])]
    text = [f"layer {layer} head {head}" for layer, head in heads]
    for name, label in NAMES.items():
        one = found.sel(name=name)
        x = one["weights"].assign_attrs(long_name="said by the weights", units="share")
        y = one["runs"].assign_attrs(long_name="seen in runs", units="share")
        sheets.append(scatter(x, y, groups=[kinds[layer] for layer, _ in heads], text=text, title=label))
        said += [f"{label}, {k}: {float(r):.2f} (p = {float(p):.2g})" for k, r, p in zip(KINDS, one["rank"], one["p"])]
    figure = beside(
        *sheets,
        title="Weights alone name the heads that look one token back, and sinks where the window is short",
        note=f"n = {len(heads)} heads, means over {found.attrs['n']} held-out texts. From the weights: the softmax of "
        f"a head's mean scores by distance, up to {FAR}, and its sink. Spearman's correlation over the heads of a "
        f"kind, against shuffled heads: {'; '.join(said)}.",
        height=62,
    )
    return figure, traces()


if __name__ == "__main__":
    main(__file__, draw)
