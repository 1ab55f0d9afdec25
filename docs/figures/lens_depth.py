"""At which depth is the next token there? How far each layer's prediction is from the last, by what is predicted."""

import numpy as np
import xarray as xr
from _runs import CHAINS, Sequence, main, read

import workbench as wb
from workbench.figures import Figure, line

N, LENGTH = 6, 4
KINDS = {
    "a digit": str.isdigit,
    "a name": str.istitle,
    "punctuation": lambda text: not text.isalnum() and len(text) == 1,
}


def draw() -> tuple[Figure, Sequence[wb.Trace]]:
    traces = [one.trace for family in CHAINS for one in read(family, N, LENGTH, "attention lens")]
    means, counts = [], []
    for is_one in KINDS.values():
        values, of = [], []
        for number, trace in enumerate(traces):
            kl = wb.logit_lens(trace)["kl"].values
            for span in trace.spans:
                if span.channel == "analysis":
                    at = [p for p in range(span.content_start, span.content_stop) if is_one(trace.pieces[p].strip())]
                    values.append(kl[:, [p - 1 for p in at]].T)  # a token is predicted at the one before
                    of += [number] * len(at)
        means.append(wb.statistics.mean(np.concatenate(values), of))
        counts.append(f"{len(of)} of {means[-1].n_clusters} texts")
    coords = {"predicted": list(KINDS), "layer": np.arange(traces[0].config["n_layers"])}
    attrs = {"long_name": "KL from the final prediction", "units": "nats"}
    kl = xr.DataArray(np.array([m.value for m in means]), coords, ("predicted", "layer"), attrs=attrs)
    figure = line(
        kl,
        by="predicted",
        low=np.array([m.low for m in means]),
        high=np.array([m.high for m in means]),
        title="pocket decides digits by layer 3, names only in its last layer",
        note=f"Logit lens on tokens of the analysis; n = {', '.join(counts)} in that order; 95 % intervals, cluster "
        "bootstrap over texts. The last layer is the model itself, so 0.",
    )
    return figure, traces


if __name__ == "__main__":
    main(__file__, draw)
