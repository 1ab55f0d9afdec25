"""Which experts run? What a router's rows say of a token alone, beside the usual route of that token elsewhere.

Which experts run for a token: what rows of routers say, and what other texts say.
"""

from collections import Counter, defaultdict
from collections.abc import Sequence
from functools import cache

import numpy as np
import xarray as xr

import workbench as wb
from workbench.figures import Figure, line
from workbench.pocket.families import CHAINS
from workbench.studies.held_out import texts

N, LENGTH, SEED = 6, 4, "weights"


def traces(model: wb.Model) -> list[wb.Trace]:
    """The texts that are measured."""
    return texts(model, N, LENGTH, SEED)


WAYS = ("the router's row on the embedding", "the token's usual route in other texts", "the layer's busiest experts")
SHUFFLES = 20


@cache
def rows(model: wb.Model, layer: int) -> np.ndarray:
    """Which experts the weights say would run for each token, best first (token choice)."""
    found = wb.circuits.router_tokens(model, layer, k=model.config.d_vocab)
    preference = np.full((model.config.d_vocab, model.config.n_experts), -np.inf)
    for expert in range(model.config.n_experts):
        preference[found["token"].values[expert], expert] = found["preference"].values[expert]
    return np.argsort(-preference, 1)[:, : model.config.n_active]


def overlap(said: np.ndarray, ran: np.ndarray) -> float:
    """The share of the experts that ran which had been said (both pos choice)."""
    return float((said[:, :, None] == ran[:, None]).any(1).mean())


@cache
def measure(model: wb.Model) -> xr.Dataset:
    """`share` of the experts that ran, by way (text way layer); `null` (text layer): rows of tokens in other order."""
    rng, share, null = np.random.default_rng(0), [], []
    every = [(np.array(t.tokens), np.asarray(t["expert_indices"])) for t in traces(model)]
    k = every[0][1].shape[-1]
    for number, (tokens, ran) in enumerate(every):
        by_way, shuffled = [], []
        for layer, chosen in enumerate(ran):
            of, busy = defaultdict(Counter), Counter()
            for other, (theirs, routes) in enumerate(every):
                if other != number:
                    busy.update(routes[layer].ravel().tolist())
                    for token, route in zip(theirs.tolist(), routes[layer].tolist()):
                        of[token].update(route)
            most = [expert for expert, _ in busy.most_common(k)]
            usual = [([e for e, _ in of[t].most_common(k)] + most)[:k] for t in tokens.tolist()]
            said = (rows(model, layer)[tokens], np.array(usual), np.array([most] * len(tokens)))
            by_way.append([overlap(one, chosen) for one in said])
            shuffled.append(np.mean([overlap(rng.permutation(said[0]), chosen) for _ in range(SHUFFLES)]))
        share.append(np.array(by_way).T)
        null.append(shuffled)
    data = {"share": (("text", "way", "layer"), np.array(share)), "null": (("text", "layer"), np.array(null))}
    return xr.Dataset(data, {"way": list(WAYS), "layer": np.arange(len(every[0][1]))})


def draw(model: wb.Model) -> tuple[Figure, Sequence[wb.Trace]]:
    """The figure, and the traces behind it."""
    found = measure(model)
    sure = wb.statistics.mean_interval(found["share"].values)
    figure = line(
        found["share"].mean("text").assign_attrs(long_name="of the experts that ran", units="share"),
        by="way",
        low=np.asarray(sure.low),
        high=np.asarray(sure.high),
        null=found["null"].mean("text"),
        title="The router's rows tell the routes of the first layer, and less above",
        note=f"n = {found.sizes['text']} held-out texts of {len(CHAINS)} families; bands: 95 % intervals over texts. "
        f"Four of {model.config.n_experts} experts run for a token. Chance: what the rows say of the same tokens in "
        "another order.",
    )
    return figure, traces(model)
