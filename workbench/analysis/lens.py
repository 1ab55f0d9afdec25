"""How a prediction comes about, layer by layer, and where it is undecided."""

import numpy as np
import xarray as xr

from workbench.errors import ArgumentError, NotRecorded
from workbench.traces import Trace


def logit_lens(trace: Trace) -> xr.Dataset:
    """What each layer would predict if the model ended there: final norm and unembedding on its residual stream.

    `token` and `logprob` (layer pos rank) are the likeliest next tokens and their log-probabilities, in nats;
    `entropy` (layer pos) that of the whole distribution; `kl` (layer pos) how far it is from what the model predicts
    in the end, KL(final || layer). The last layer is the model itself. `text` is the token as it is written.

    >>> trace = wb.trace("What is 12+30?", record="lens")
    >>> lens = wb.lens.logit_lens(trace)
    >>> lens["token"].dims, bool(abs(lens["kl"].isel(layer=-1)).max() < 1e-5)
    (('layer', 'pos', 'rank'), True)

    Raises NotRecorded without record="lens".
    """
    token = np.asarray(trace["lens_ids"])
    data = {
        "token": (("layer", "pos", "rank"), token),
        "text": (("layer", "pos", "rank"), _texts(trace, token)),
        "logprob": (("layer", "pos", "rank"), np.asarray(trace["lens_logprobs"])),
        "entropy": (("layer", "pos"), np.asarray(trace["lens_entropy"])),
        "kl": (("layer", "pos"), np.asarray(trace["lens_kl"])),
    }
    coords = {dim: np.arange(n) for dim, n in zip(("layer", "pos", "rank"), token.shape)}
    found = xr.Dataset(data, coords)
    for name in ("logprob", "entropy", "kl"):
        found[name].attrs["units"] = "nats"
    return found


def prediction_depth(trace: Trace, *, kl: float | None = None) -> xr.DataArray:
    """The first layer from which on the prediction stays what it will be (pos): 0 is the first, n_layers - 1 the last.

    The likeliest token stays the same; or, with `kl`, the distribution stays within so many nats of the final one.

    >>> depth = prediction_depth(wb.trace("What is 12+30?", record="lens"))
    >>> depth.dims, bool((depth <= 5).all())
    (('pos',), True)

    Raises NotRecorded without record="lens".
    """
    if kl is None:
        first = np.asarray(trace["lens_ids"])[..., 0]
        settled = first == first[-1]
    else:
        settled = np.asarray(trace["lens_kl"]) <= kl
        settled[-1] = True
    last_other = np.where(settled.all(0), -1, len(settled) - 1 - (~settled)[::-1].argmax(0))
    attrs = {"long_name": "settle depth", "units": "layer", "n_layers": len(settled)}
    return xr.DataArray(last_other + 1, {"pos": np.arange(len(trace))}, ("pos",), attrs=attrs)


def forking_tokens(trace: Trace, top_fraction: float = 0.2) -> xr.DataArray:
    """The positions whose prediction was least decided: that share of those written, by entropy, highest first (fork).

    The values are entropies in nats; the coordinate `pos` is the token that was then chosen (arXiv 2506.01939).

    >>> trace = wb.trace("What is 12+30?")
    >>> forks = forking_tokens(trace, 0.1)
    >>> bool((np.diff(forks) <= 0).all()), bool((forks["pos"] >= trace.prompt_length).all())
    (True, True)

    Raises ArgumentError unless 0 < top_fraction <= 1, NotRecorded if nothing was written.
    """
    if not 0 < top_fraction <= 1:
        raise ArgumentError(f"top_fraction must be above 0 and at most 1, got {top_fraction}.")
    written = np.arange(max(trace.prompt_length, 1), len(trace))
    if not len(written):
        raise NotRecorded("nothing was written in this run: forks are where the model chose")
    entropy = np.asarray(trace["entropy"], np.float64)[written - 1]
    order = np.argsort(-entropy, kind="stable")[: int(np.ceil(top_fraction * len(written)))]
    attrs = {"long_name": "entropy of the choice", "units": "nats", "top_fraction": top_fraction, "n": len(written)}
    return xr.DataArray(entropy[order], {"pos": ("fork", written[order])}, ("fork",), attrs=attrs)


def _texts(trace: Trace, ids: np.ndarray) -> np.ndarray:
    words = trace.vocab_text
    unique, place = np.unique(ids, return_inverse=True)
    return np.array([words.get(int(i), f"<{int(i)}>") for i in unique], object)[place].reshape(ids.shape)
