"""Expert loads, the mutual information of expert choice and labels, and sink masses, over held-out conversations."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from workbench.analysis.statistics import entropy, mutual_information, shuffled_mutual_information
from workbench.model.gpt_oss import forward
from workbench.model.model import Model
from workbench.pocket.eval.accuracy import held_out
from workbench.pocket.eval.generation import groups_by_length
from workbench.pocket.families import CHAINS
from workbench.pocket.families.people import COLORS, NAMES
from workbench.pocket.rendering import render
from workbench.pocket.vocabulary import SPECIALS, str_tokens
from workbench.recording.taps import Recorder

DEAD = 0.05  # an expert with less than this share of an even load counts as dead


def token_class(str_token: str) -> str:
    """The class of a token.

    >>> [token_class(token) for token in ("<|end|>", "7", " Kay", "b", "+", ",", " drop")]
    ['special', 'digit', 'name', 'letter', 'sign', 'mark', 'word']
    """
    word = str_token.strip()
    if str_token in SPECIALS:
        return "special"
    if word.isdigit():
        return "digit"
    if word in NAMES or word in COLORS:
        return "name"
    if len(word) == 1 and word.isalpha():
        return "letter"
    if word and word in "+-*=":
        return "sign"
    return "word" if word.isalpha() else "mark"


@torch.inference_mode()
def routing(model: Model, n: int, n_shuffles: int = 20) -> dict[str, Any]:
    """By layer, expert loads and the mutual information of the first expert with family, channel and token class.

    The mutual information is divided by the entropy of the label, so 1 means that the expert determines the label. Its
    null is the mean over shuffles; for the family given the token class, the shuffles are within each token class.
    """
    chosen, sinks, labels = _record(model, n)
    c = model.config
    layers = []
    for layer in range(c.n_layers):
        load = np.bincount(chosen[layer].ravel(), minlength=c.n_experts) / chosen[layer].size * c.n_experts
        first = chosen[layer][:, 0]
        information = {name: normalized_information(first, labels[name], None, n_shuffles) for name in labels}
        information["family given token class"] = normalized_information(
            first, labels["family"], labels["token class"], n_shuffles
        )
        layers.append(
            {
                "load_min": round(float(load.min()), 3),
                "load_max": round(float(load.max()), 3),
                "dead": int((load < DEAD).sum()),
                "entropy": round(float(entropy(load, correct=False)) / float(np.log(c.n_experts)), 4),
                "knows": information,
            }
        )
    mean, largest = np.mean(sinks, -1), np.max(sinks, -1)
    return {
        "tokens": chosen.shape[1],
        "layers": layers,
        "sink_mean": mean.astype(float).round(4).tolist(),
        "sink_max": largest.astype(float).round(4).tolist(),
        "heads_with_5_percent_somewhere": round(float((largest >= 0.05).mean()), 3),
        "heads_with_5_percent_on_average": round(float((mean >= 0.05).mean()), 3),
    }


def normalized_information(
    x: np.ndarray, y: np.ndarray, condition: np.ndarray | None, n_shuffles: int
) -> dict[str, float]:
    """The mutual information of x and y (conditioned on `condition`) divided by the entropy of y, and its null.

    Args:
        x: Values of the predictor (token).
        y: Values of the label (token).
        condition: Values of the condition (token), or None.
        n_shuffles: Number of shuffles of x; the null is their mean.
    """
    entropy_of_y = mutual_information(y, y, condition)
    null = shuffled_mutual_information(x, y, condition, n_shuffles=n_shuffles).mean()
    nmi = mutual_information(x, y, condition) / entropy_of_y
    return {"nmi": round(nmi, 4), "null": round(float(null) / entropy_of_y, 4)}


def _record(model: Model, n: int) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
    """Expert choices (layer token choice), sink masses (layer head token), and labels by name (token)."""
    c = model.config
    conversations = [(p, e) for family in CHAINS for p in held_out(family, n) for e in ("low", "high")]
    texts = [render(p, effort).ids for p, effort in conversations]
    experts = [f"blocks.{layer}.mlp.hook_expert_indices" for layer in range(c.n_layers)]
    sinks = [f"blocks.{layer}.attn.hook_sink" for layer in range(c.n_layers)]
    chosen, mass = [], []
    family, channel, kind = [], [], []
    for rows in groups_by_length(texts):
        recorded = Recorder([*experts, *sinks])
        forward(c, model.weights, torch.tensor([list(texts[row]) for row in rows]), recorded)
        chosen.append(torch.stack([recorded[name].flatten(0, 1) for name in experts]).numpy())
        mass.append(torch.stack([recorded[name].transpose(1, 2).flatten(0, 1).T for name in sinks]).numpy())
        for row in rows:
            tokens = str_tokens(texts[row])
            family += [conversations[row][0].family] * len(tokens)
            channel += _channels(tokens)
            kind += map(token_class, tokens)
    labels = {"family": np.array(family), "channel": np.array(channel), "token class": np.array(kind)}
    return np.concatenate(chosen, 1), np.concatenate(mass, 2), labels


def _channels(tokens: Sequence[str]) -> list[str]:
    """For each token, the channel of its message, or the role if there is no channel."""
    names: list[str] = []
    name, start = "system", 0
    for i, token in enumerate(tokens):
        if token == "<|start|>":
            names += [name] * (i - start)
            name, start = tokens[i + 1] if i + 1 < len(tokens) else name, i
        elif token == "<|channel|>":
            name = tokens[i + 1]
    return names + [name] * (len(tokens) - start)
