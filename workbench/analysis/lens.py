"""How a prediction forms over the layers, and where the next token was undecided."""

import numpy as np
import xarray as xr

from workbench.checks import check_number, check_type
from workbench.errors import NotRecorded
from workbench.traces import Trace
from workbench.units import with_units


def logit_lens(trace: Trace) -> xr.Dataset:
    """The logit lens: what each layer would predict if the model ended there (nostalgebraist 2020).

    The final norm and the unembedding are applied to the residual stream after each layer. The last layer is the
    model's own prediction.

    Returns a Dataset:
    `token` and `text` (layer pos rank), the most likely next tokens, as ids and as texts;
    `logprob` (layer pos rank), their log-probabilities in nats;
    `entropy` (layer pos), the entropy of the whole distribution in nats;
    `kl` (layer pos), KL(final || layer) in nats.

    Early layers may hold information in a form that the unembedding does not read, so a poor early prediction does not
    show that the information is absent; `wb.lens.tuned_lens` corrects for a linear change of basis.

    >>> trace = wb.trace("What is 12+30?", record="lens")
    >>> lens = wb.lens.logit_lens(trace)
    >>> lens["token"].dims, bool(abs(lens["kl"].isel(layer=-1)).max() < 1e-5)
    (('layer', 'pos', 'rank'), True)

    Raises NotRecorded if the trace was not recorded with record="lens".
    """
    check_type("logit_lens", trace, Trace)
    token = np.asarray(trace["lens_ids"])
    data = {
        "token": (("layer", "pos", "rank"), token),
        "text": (("layer", "pos", "rank"), _texts(trace, token)),
        "logprob": (("layer", "pos", "rank"), np.asarray(trace["lens_logprobs"])),
        "entropy": (("layer", "pos"), np.asarray(trace["lens_entropy"])),
        "kl": (("layer", "pos"), np.asarray(trace["lens_kl"])),
    }
    coords = {dim: np.arange(n) for dim, n in zip(("layer", "pos", "rank"), token.shape)}
    return with_units(xr.Dataset(data, coords), "nats", token="token id")


def prediction_depth(trace: Trace, *, kl: float | None = None) -> xr.DataArray:
    """The first layer from which on the prediction no longer changes, for each position (pos): Baldock et al. 2021.

    0 is the first layer, n_layers - 1 the last. By default "no longer changes" means that the most likely token stays
    the same in all later layers. With `kl`, it means that KL(final || layer) stays at or below that many nats. The
    layers' predictions are those of the logit lens, with its limits.

    >>> depth = prediction_depth(wb.trace("What is 12+30?", record="lens"))
    >>> depth.dims, bool((depth <= 5).all())
    (('pos',), True)

    Raises NotRecorded if the trace was not recorded with record="lens".
    """
    check_type("prediction_depth", trace, Trace)
    kl = None if kl is None else check_number("kl", kl, low=0)
    if kl is None:
        top_token = np.asarray(trace["lens_ids"])[..., 0]
        settled = top_token == top_token[-1]
    else:
        settled = np.asarray(trace["lens_kl"]) <= kl
        settled[-1] = True
    last_other = np.where(settled.all(0), -1, len(settled) - 1 - (~settled)[::-1].argmax(0))
    attrs = {"long_name": "prediction depth", "units": "layer", "n_layers": len(settled)}
    return xr.DataArray(last_other + 1, {"pos": np.arange(len(trace))}, ("pos",), attrs=attrs)


def forking_tokens(trace: Trace, top_fraction: float = 0.2) -> xr.DataArray:
    """The generated positions with the most undecided prediction (fork): the `top_fraction` with the highest entropy.

    The values are entropies in nats, highest first, of the prediction made one position earlier. The coordinate `pos`
    is the position of the token that was then chosen (arXiv 2506.01939). `attrs["n"]` is the number of generated
    tokens; those that tools put in are not among them. High entropy shows that several tokens were likely, not that the
    choice changes the answer: see `wb.reasoning.resampling`.

    >>> trace = wb.trace("What is 12+30?")
    >>> forks = forking_tokens(trace, 0.1)
    >>> bool((np.diff(forks) <= 0).all()), bool((forks["pos"] >= trace.prompt_length).all())
    (True, True)

    Raises ArgumentError unless 0 < top_fraction <= 1, NotRecorded if nothing was generated.
    """
    check_type("forking_tokens", trace, Trace)
    top_fraction = check_number("top_fraction", top_fraction, above=0, high=1)
    generated = trace.written_by("model")
    generated = generated[generated > 0]  # nothing predicted the first token
    if not len(generated):
        raise NotRecorded(
            "nothing was generated in this run, so it has no forking tokens; generate tokens with max_tokens"
        )
    entropy = np.asarray(trace["entropy"], np.float64)[generated - 1]
    order = np.argsort(-entropy, kind="stable")[: int(np.ceil(top_fraction * len(generated)))]
    attrs = {"long_name": "entropy of the choice", "units": "nats", "top_fraction": top_fraction, "n": len(generated)}
    return xr.DataArray(entropy[order], {"pos": ("fork", generated[order])}, ("fork",), attrs=attrs)


def _texts(trace: Trace, ids: np.ndarray) -> np.ndarray:
    vocab_text = trace.vocab_text
    unique, place = np.unique(ids, return_inverse=True)
    return np.array([vocab_text.get(int(i), f"<{int(i)}>") for i in unique], object)[place].reshape(ids.shape)
