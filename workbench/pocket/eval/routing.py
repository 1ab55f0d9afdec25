"""Which experts are used for what, and how much attention goes to the sinks, over held-out conversations."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from workbench.analysis.statistics import entropy, mutual_information, shuffled_mutual_information
from workbench.model.gpt_oss import forward
from workbench.model.model import Model
from workbench.pocket.eval.accuracy import problems
from workbench.pocket.eval.writing import alike
from workbench.pocket.families import CHAINS
from workbench.pocket.families.people import COLORS, NAMES
from workbench.pocket.rendering import render
from workbench.pocket.vocabulary import SPECIALS, pieces
from workbench.recording.taps import Recorder

DEAD = 0.05  # of an even share


def token_class(piece: str) -> str:
    """
    >>> [token_class(piece) for piece in ("<|end|>", "7", " Kay", "b", "+", ",", " drop")]
    ['special', 'digit', 'name', 'letter', 'sign', 'mark', 'word']
    """
    word = piece.strip()
    if piece in SPECIALS:
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
    """Load by layer, and the information that the first expert has about family, channel and token class.

    Normalised by the entropy of what is told: 1 would be certainty. Each with its null, the mean over shuffles; for
    "given class" labels are shuffled among tokens of one class.
    """
    chosen, sinks, labels = _seen(model, n)
    c = model.config
    layers = []
    for layer in range(c.n_layers):
        load = np.bincount(chosen[layer].ravel(), minlength=c.n_experts) / chosen[layer].size * c.n_experts
        first = chosen[layer][:, 0]
        known = {name: knows(first, labels[name], None, n_shuffles) for name in labels}
        known["family given token class"] = knows(first, labels["family"], labels["token class"], n_shuffles)
        layers.append(
            {
                "load_min": round(float(load.min()), 3),
                "load_max": round(float(load.max()), 3),
                "dead": int((load < DEAD).sum()),
                "entropy": round(float(entropy(load, correct=False)) / float(np.log(c.n_experts)), 4),
                "knows": known,
            }
        )
    mean, most = np.mean(sinks, -1), np.max(sinks, -1)
    return {
        "tokens": chosen.shape[1],
        "layers": layers,
        "sink_mean": mean.astype(float).round(4).tolist(),
        "sink_max": most.astype(float).round(4).tolist(),
        "heads_with_5_percent_somewhere": round(float((most >= 0.05).mean()), 3),
        "heads_with_5_percent_on_average": round(float((mean >= 0.05).mean()), 3),
    }


def knows(x: np.ndarray, y: np.ndarray, given: np.ndarray | None, n_shuffles: int) -> dict[str, float]:
    """How much of what is to be known of y (given what is given) x tells: 1 would be all. And the same by chance."""
    all_of_it = mutual_information(y, y, given)
    null = shuffled_mutual_information(x, y, given, n_shuffles=n_shuffles).mean()
    return {"nmi": round(mutual_information(x, y, given) / all_of_it, 4), "null": round(float(null) / all_of_it, 4)}


def _seen(model: Model, n: int) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
    """Choices (layer token choice), sink mass (layer head token), and labels by name (token)."""
    c = model.config
    asked = [(p, e) for family in CHAINS for p in problems(family, n) for e in ("low", "high")]
    texts = [render(p, effort).ids for p, effort in asked]
    experts = [f"blocks.{layer}.mlp.hook_expert_indices" for layer in range(c.n_layers)]
    sinks = [f"blocks.{layer}.attn.hook_sink" for layer in range(c.n_layers)]
    chosen, mass = [], []
    family, channel, kind = [], [], []
    for rows in alike(texts):
        seen = Recorder([*experts, *sinks])
        forward(c, model.weights, torch.tensor([list(texts[row]) for row in rows]), seen)
        chosen.append(torch.stack([seen[name].flatten(0, 1) for name in experts]).numpy())
        mass.append(torch.stack([seen[name].transpose(1, 2).flatten(0, 1).T for name in sinks]).numpy())
        for row in rows:
            said = pieces(texts[row])
            family += [asked[row][0].family] * len(said)
            channel += _channels(said)
            kind += map(token_class, said)
    labels = {"family": np.array(family), "channel": np.array(channel), "token class": np.array(kind)}
    return np.concatenate(chosen, 1), np.concatenate(mass, 2), labels


def _channels(said: Sequence[str]) -> list[str]:
    """The channel (or else the role) of the message that each token is in."""
    names: list[str] = []
    now, start = "system", 0
    for i, piece in enumerate(said):
        if piece == "<|start|>":
            names += [now] * (i - start)
            now, start = said[i + 1] if i + 1 < len(said) else now, i
        elif piece == "<|channel|>":
            now = said[i + 1]
    return names + [now] * (len(said) - start)
