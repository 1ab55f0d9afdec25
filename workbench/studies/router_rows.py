"""Can a token's experts be predicted from the token alone? By the router's rows, and by its experts in other texts."""

from collections import Counter, defaultdict
from collections.abc import Sequence
from functools import cache

import numpy as np
import xarray as xr

import workbench as wb
from workbench.figures import Figure, line
from workbench.pocket.families import CHAINS
from workbench.studies.held_out import chain_traces

N, LENGTH, SEED = 6, 4, "weights"


def traces(model: wb.Model) -> list[wb.Trace]:
    """The traces that are measured."""
    return chain_traces(model, N, LENGTH, SEED)


PREDICTORS = (
    "router row · embedding",
    "the token's most frequent experts in other texts",
    "the layer's most frequent experts",
)
SHUFFLES = 20


@cache
def rows(model: wb.Model, layer: int) -> np.ndarray:
    """The experts that the router's rows prefer for each token's embedding, best first (token choice)."""
    ranking = wb.circuits.router_tokens(model, layer, k=model.config.d_vocab)
    preference = np.full((model.config.d_vocab, model.config.n_experts), -np.inf)
    for expert in range(model.config.n_experts):
        preference[ranking["token"].values[expert], expert] = ranking["preference"].values[expert]
    return np.argsort(-preference, 1)[:, : model.config.n_active]


def overlap(predicted: np.ndarray, chosen: np.ndarray) -> float:
    """The share of the chosen experts that were predicted (both pos choice)."""
    return float((predicted[:, :, None] == chosen[:, None]).any(1).mean())


@cache
def measure(model: wb.Model) -> xr.Dataset:
    """The `share` of chosen experts that each predictor gets right (text predictor layer), and its `null` (text layer).

    The null applies the router's rows to the same tokens in shuffled order.
    """
    rng, share, null = np.random.default_rng(0), [], []
    runs = [(np.array(t.tokens), np.asarray(t["expert_indices"])) for t in traces(model)]
    k = runs[0][1].shape[-1]
    for number, (tokens, experts) in enumerate(runs):
        by_layer, shuffled = [], []
        for layer, chosen in enumerate(experts):
            of_token, of_layer = defaultdict(Counter), Counter()
            for other, (other_tokens, other_experts) in enumerate(runs):
                if other != number:
                    of_layer.update(other_experts[layer].ravel().tolist())
                    for token, route in zip(other_tokens.tolist(), other_experts[layer].tolist()):
                        of_token[token].update(route)
            most = [expert for expert, _ in of_layer.most_common(k)]
            usual = [([e for e, _ in of_token[t].most_common(k)] + most)[:k] for t in tokens.tolist()]
            predictions = (rows(model, layer)[tokens], np.array(usual), np.array([most] * len(tokens)))
            by_layer.append([overlap(prediction, chosen) for prediction in predictions])
            shuffled.append(np.mean([overlap(rng.permutation(predictions[0]), chosen) for _ in range(SHUFFLES)]))
        share.append(np.array(by_layer).T)
        null.append(shuffled)
    data = {"share": (("text", "predictor", "layer"), np.array(share)), "null": (("text", "layer"), np.array(null))}
    return xr.Dataset(data, {"predictor": list(PREDICTORS), "layer": np.arange(len(runs[0][1]))})


def draw(model: wb.Model) -> tuple[Figure, Sequence[wb.Trace]]:
    """The figure, and the traces behind it."""
    measured = measure(model)
    interval = wb.statistics.mean_interval(measured["share"].values)
    rows_alone = measured["share"].mean("text").sel(predictor=PREDICTORS[0]).values
    figure = line(
        measured["share"].mean("text").assign_attrs(long_name="chosen experts predicted", units="share"),
        by="predictor",
        low=np.asarray(interval.low),
        high=np.asarray(interval.high),
        null=measured["null"].mean("text"),
        title=f"The router's rows predict {rows_alone[0]:.0%} of the routing in the first layer, and "
        f"{rows_alone[-1]:.0%} in the last",
        note=f"n = {measured.sizes['text']} held-out texts of {len(CHAINS)} families; bands: 95 % intervals over "
        f"texts. Four of {model.config.n_experts} experts run for a token. Chance: the rows applied to the same tokens "
        "in shuffled order.",
    )
    return figure, traces(model)
